//! The body of a worker's answer, over whichever protocol it comes.

use std::pin::Pin;
use std::task::Context;

use bytes::Bytes;
use http_body::{Body, SizeHint};
use hyper::body::Incoming;

use super::{Broken, NextFrame};
use crate::{http1, http2};

/// The body of a worker's answer.
pub enum AnswerBody {
    /// Over HTTP/1.1.
    Http1(http1::Body),
    /// Over HTTP/2, or in place of an upgrade.
    Hyper(Incoming),
}

impl AnswerBody {
    /// So many bytes are read at once from now on, and no more; over HTTP/2 a frame at a time is.
    pub fn take_at_most(&mut self, bytes: usize) {
        match self {
            Self::Http1(body) => body.take_at_most(bytes),
            Self::Hyper(_) => {}
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> NextFrame {
        match &mut *self {
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(|error| Broken::Off(error.into())),
            Self::Hyper(body) => {
                Pin::new(body).poll_frame(cx).map_err(|error| match http2::refusal(&error) {
                    Some(_) => Broken::Refused,
                    None => Broken::from(error),
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Hyper(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Hyper(body) => body.size_hint(),
        }
    }
}

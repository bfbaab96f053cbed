//! The content of a request, read when it is asked for.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::strict::Findings;
use crate::body::Broken;
use crate::guard;

type NextFrame = Poll<Option<Result<Frame<Bytes>, Broken>>>;

/// The content of a request. What is handed on makes room for more.
pub struct Incoming {
    /// Until it has ended.
    stream: Option<RecvStream>,
    findings: Rc<Findings>,
    /// As much is to come, where the client has said so.
    left: Option<u64>,
    /// The last part of a known length, which goes on when nothing has come behind it.
    last: Option<Bytes>,
    /// Only trailers may follow.
    data_ended: bool,
}

impl Incoming {
    /// What follows a head with these fields.
    pub(super) fn new(stream: RecvStream, fields: &HeaderMap, findings: &Rc<Findings>) -> Self {
        let ended = stream.is_end_stream();
        let left = if ended { None } else { guard::content_length(fields) };
        let stream = (!ended).then_some(stream);
        Self { stream, findings: findings.clone(), left, last: None, data_ended: false }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> NextFrame {
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        while !self.data_ended {
            match ready!(stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    let _ = stream.flow_control().release_capacity(data.len()); // it has come, so it can be
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    if stream.is_end_stream() {
                        self.end();
                        let data = if data.is_empty() { self.last.take().unwrap_or(data) } else { data };
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    if self.left != Some(0) {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    // With it the worker would have the whole of the request, whatever came behind it.
                    self.last = self.last.take().or(Some(data));
                }
                Some(Err(error)) => return broken(error),
                None => self.data_ended = true,
            }
        }
        if self.findings.has_faulty_trailers(stream.stream_id().as_u32()) {
            return broken("the fields behind the content break a rule of HTTP/2");
        }
        if let Some(last) = self.last.take() {
            return Poll::Ready(Some(Ok(Frame::data(last))));
        }
        match ready!(stream.poll_trailers(cx)) {
            Ok(trailers) => {
                self.end();
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
            Err(error) => broken(error),
        }
    }

    fn end(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.findings.forget_trailers(stream.stream_id().as_u32());
        }
    }
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> NextFrame {
    Poll::Ready(Some(Err(Broken::Off(error.into()))))
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.end();
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> NextFrame {
        self.poll_next(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            _ if self.stream.is_none() => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left + self.last.as_ref().map_or(0, |last| last.len() as u64)),
            None => SizeHint::default(),
        }
    }
}

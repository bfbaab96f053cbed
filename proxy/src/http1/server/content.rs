//! The content of a request, read when it is asked for.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::line::{Content, Line};
use crate::body::{Broken, NextFrame};
use crate::http1::chunked::Next;
use crate::http1::framing::Framing;

/// The content of a request.
pub struct Incoming {
    /// Until it has ended.
    line: Option<Rc<Line>>,
    framing: Framing,
}

impl Incoming {
    /// The content that follows a head on this connection.
    pub(in crate::http1) fn new(line: &Rc<Line>, framing: Framing) -> Self {
        if framing.is_empty() {
            return Self { line: None, framing: Framing::None };
        }
        line.set_content(Content::Wanted);
        Self { line: Some(line.clone()), framing }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> NextFrame {
        let Some(line) = &self.line else { return Poll::Ready(None) };
        loop {
            let mut received = line.received();
            let next = self.framing.next(&mut received);
            line.put_back(received);
            match next {
                Ok(Next::Data(data)) => {
                    if self.framing.is_empty() {
                        self.end();
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Next::Trailers(trailers)) => {
                    self.end();
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Ok(Next::End) => {
                    self.end();
                    return Poll::Ready(None);
                }
                Ok(Next::More) => {}
                Err(malformed) => return Poll::Ready(Some(Err(Broken::Off(malformed.into())))),
            }
            if !ready!(line.poll_content(cx)).map_err(|error| Broken::Off(error.into()))? {
                let early = "the client closed the connection before the end of its request";
                return Poll::Ready(Some(Err(Broken::Off(early.into()))));
            }
        }
    }

    fn end(&mut self) {
        if let Some(line) = self.line.take() {
            line.set_content(Content::Ended);
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let Some(line) = self.line.take() else { return };
        // What is here already need not be read from the client: it may go on with its next request.
        let mut received = line.received();
        let ended = loop {
            match self.framing.next(&mut received) {
                Ok(Next::Data(_)) if self.framing.is_empty() => break true,
                Ok(Next::Data(_)) => {}
                Ok(Next::End | Next::Trailers(_)) => break true,
                Ok(Next::More) | Err(_) => break false,
            }
        };
        line.put_back(received);
        line.set_content(if ended { Content::Ended } else { Content::Unwanted });
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> NextFrame {
        self.poll_next(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.line.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.framing.left() {
            _ if self.line.is_none() => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}

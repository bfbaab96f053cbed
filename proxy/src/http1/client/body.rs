//! The body of an answer, read when it is asked for.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::head::Framing;
use super::{Error, Line};
use crate::http1::chunked::Next;

type NextFrame = Poll<Option<Result<Frame<Bytes>, Error>>>;

/// The body of an answer. Dropped before its end, it closes its connection.
pub struct Body {
    line: Rc<Line>,
    framing: Framing,
    /// What came and was not handed on.
    received: Bytes,
    keeps_alive: bool,
    ended: bool,
    /// Whether a part was handed on that may not have gone further yet.
    fresh: bool,
    failed: Option<Error>,
}

impl Body {
    pub(super) fn new(line: Rc<Line>, framing: Framing, received: Bytes, keeps_alive: bool) -> Self {
        let mut body =
            Self { line, framing, received, keeps_alive, ended: false, fresh: false, failed: None };
        if let Framing::None | Framing::Length(0) = body.framing {
            body.end();
        }
        body
    }

    /// The connection may be used again, unless more has come than the answer.
    fn end(&mut self) {
        self.ended = true;
        self.line.reusable.set(self.keeps_alive && self.received.is_empty() && !self.line.cut.get());
    }

    /// The next bytes, whatever they mean.
    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.received = ready!(self.line.poll_read(cx))?;
        Poll::Ready(if self.received.is_empty() { Err(Error::Closed) } else { Ok(()) })
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> NextFrame {
        loop {
            match self.next_received() {
                Ok(None) if !self.ended => {}
                next => return Poll::Ready(next.transpose()),
            }
            match ready!(self.poll_bytes(cx)) {
                Ok(()) => {}
                Err(Error::Closed) if matches!(self.framing, Framing::Close) => self.ended = true,
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    /// The next part of what has come; `None` when more must come first, or at the end.
    fn next_received(&mut self) -> Result<Option<Frame<Bytes>>, Error> {
        match &mut self.framing {
            _ if self.ended => {}
            Framing::Chunked(chunked) => match chunked.next(&mut self.received)? {
                Next::Data(data) => return Ok(Some(Frame::data(data))),
                Next::Trailers(trailers) => {
                    self.end();
                    return Ok(Some(Frame::trailers(trailers)));
                }
                Next::End => self.end(),
                Next::More => {}
            },
            Framing::Length(left) if !self.received.is_empty() => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(self.received.len());
                *left -= taken as u64;
                let ended = *left == 0;
                let data = self.received.split_to(taken);
                if ended {
                    self.end();
                }
                return Ok(Some(Frame::data(data)));
            }
            Framing::Close if !self.received.is_empty() => {
                return Ok(Some(Frame::data(std::mem::take(&mut self.received))));
            }
            Framing::Length(_) | Framing::Close | Framing::None => {}
        }
        Ok(None)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> NextFrame {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Some(Err(error)));
        }
        let next = self.poll_next(cx);
        let fresh = std::mem::replace(&mut self.fresh, next.is_ready());
        match next {
            Poll::Ready(Some(Err(error))) if fresh => {
                // Who learns of it at once forgets the parts before it, and the head too.
                self.failed = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            next => next,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        match self.framing {
            _ if self.ended => SizeHint::with_exact(0),
            Framing::Length(left) => SizeHint::with_exact(left),
            Framing::None | Framing::Chunked(_) | Framing::Close => SizeHint::default(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if !self.ended {
            self.line.close();
        }
    }
}

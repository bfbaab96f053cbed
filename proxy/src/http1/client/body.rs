//! The body of an answer, read when it is asked for.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::{Error, Line};
use crate::http1::chunked::Next;
use crate::http1::framing::Framing;

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
        if body.framing.is_empty() {
            body.end();
        }
        body
    }

    /// So many bytes are read at once from now on, and no more.
    pub fn take_at_most(&mut self, bytes: usize) {
        self.line.part.set(bytes);
    }

    /// The connection may be used again, unless more has come than the answer, or the request has not gone out whole: a worker
    /// that does not read the rest of it as content takes that for another request, and answers it.
    fn end(&mut self) {
        self.ended = true;
        let whole = self.received.is_empty() && !self.line.is_uploading();
        self.line.reusable.set(self.keeps_alive && whole && !self.line.cut.get());
    }

    /// Why the answer has broken off behind its head, if it has: then nothing of it need be sent.
    pub fn broken_at_once(&mut self) -> Option<Error> {
        if self.ended || !self.received.is_empty() {
            return None;
        }
        match self.poll_bytes(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Err(Error::Closed)) if matches!(self.framing, Framing::Close) => None, // that is its end
            Poll::Ready(Err(error)) => Some(error),
            Poll::Ready(Ok(())) | Poll::Pending => None,
        }
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
        if self.ended {
            return Ok(None);
        }
        let next = self.framing.next(&mut self.received).map_err(|rule| Error::Chunk(rule.0))?;
        let ended = matches!(next, Next::End | Next::Trailers(_)) || self.framing.is_empty();
        if ended {
            self.end();
        }
        Ok(match next {
            Next::Data(data) => Some(Frame::data(data)),
            Next::Trailers(trailers) => Some(Frame::trailers(trailers)),
            Next::End | Next::More => None,
        })
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
        match self.framing.left() {
            _ if self.ended => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
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

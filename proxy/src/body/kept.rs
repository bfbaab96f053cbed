//! A client's body of which what was handed on is kept, up to a limit, so that another worker can be sent it from its
//! start. What is not here yet is read from the client by whoever has the latest reader.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::{Broken, ClientBody, NextFrame, Patient};

/// The body, shared by the tries that send it.
#[derive(Clone)]
pub struct Kept(Rc<RefCell<Inner>>);

struct Inner {
    body: Patient<ClientBody>,
    /// What was read of it; empty for good once it was more than `limit`.
    frames: Vec<Part>,
    bytes: usize,
    limit: usize,
    overflown: bool,
    ended: bool,
    /// The reader that may go on; an older one belongs to a try that was given up.
    latest: u32,
}

#[derive(Clone)]
enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// Reads the body from its start.
pub(super) struct Reader {
    kept: Kept,
    number: u32,
    next: usize,
}

impl Kept {
    pub(super) fn new(body: Patient<ClientBody>, limit: usize) -> Self {
        let inner =
            Inner { body, frames: Vec::new(), bytes: 0, limit, overflown: false, ended: false, latest: 0 };
        Self(Rc::new(RefCell::new(inner)))
    }

    /// A reader from the start, in place of any other; `None` when the start is not kept any more.
    pub(super) fn reader(&self) -> Option<Reader> {
        let mut inner = self.0.borrow_mut();
        inner.latest += 1;
        (!inner.overflown).then(|| Reader { kept: self.clone(), number: inner.latest, next: 0 })
    }

    /// Whether it can be sent once more, as far as it was read.
    pub(super) fn is_whole(&self) -> bool {
        !self.0.borrow().overflown
    }
}

impl Inner {
    fn keep(&mut self, part: Part) {
        if let Part::Data(data) = &part {
            self.bytes += data.len();
            self.overflown |= self.limit < self.bytes || !self.body.may_keep(self.bytes);
        }
        if self.overflown {
            self.frames = Vec::new();
            self.body.may_keep(0);
        } else {
            self.frames.push(part);
        }
    }
}

impl Reader {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> NextFrame {
        let mut inner = self.kept.0.borrow_mut();
        if inner.latest != self.number {
            return Poll::Ready(Some(Err(Broken::GivenUp)));
        }
        if let Some(part) = inner.frames.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(part.clone().into_frame())));
        }
        if inner.ended {
            return Poll::Ready(None);
        }
        let frame = ready!(inner.body.poll(cx));
        match &frame {
            None => inner.ended = true,
            Some(Err(_)) => {}
            Some(Ok(frame)) => {
                let part = match (frame.data_ref(), frame.trailers_ref()) {
                    (Some(data), _) => Part::Data(data.clone()),
                    (_, Some(trailers)) => Part::Trailers(trailers.clone()),
                    _ => return Poll::Ready(None), // there is no third kind of frame
                };
                inner.keep(part);
                self.next += 1;
                inner.ended = inner.body.is_end_stream();
            }
        }
        Poll::Ready(frame)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let inner = self.kept.0.borrow();
        inner.frames.len() <= self.next && (inner.ended || inner.body.is_end_stream())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let inner = self.kept.0.borrow();
        let again: u64 = inner.frames.iter().skip(self.next).map(Part::len).sum();
        let mut hint = if inner.ended { SizeHint::with_exact(0) } else { inner.body.size_hint() };
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + again);
        }
        hint.set_lower(hint.lower() + again);
        hint
    }
}

impl Part {
    fn into_frame(self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data),
            Self::Trailers(trailers) => Frame::trailers(trailers),
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Trailers(_) => 0,
        }
    }
}

//! Sends a request: its head, and its body as the client sends that.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::Request;
use http_body::{Body, Frame};

use super::Line;
use super::request::{self, Framing};
use crate::body::{Broken, RequestBody};
use crate::http1::Buffers;

/// Why a request cannot be sent to its end.
pub(super) enum UploadError {
    /// The worker does not take it.
    Socket(io::Error),
    /// The client does not give it.
    Body(Broken),
}

/// A request that is being sent.
pub(super) struct Upload {
    /// What goes first, from `written` on: the head, or what stands before a chunk.
    lead: Vec<u8>,
    written: usize,
    /// What goes then: a part of the body.
    data: Bytes,
    /// What goes last: the end of a chunk.
    tail: &'static [u8],
    /// Until it has been read to its end.
    body: Option<RequestBody>,
    framing: Framing,
    /// Whether neither was a byte sent nor the body read.
    untouched: bool,
    /// How many bytes the head has.
    head: usize,
}

impl Upload {
    /// A request of which nothing was sent. Its body is taken, if it has one.
    pub(super) fn new(request: &mut Request<RequestBody>, buffers: &Buffers) -> Self {
        let framing = Framing::of(request);
        let mut lead = buffers.head();
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        request::write_head(&mut lead, (request.method(), target, request.headers()), framing);
        let body = match framing {
            Framing::None => None,
            _ => Some(std::mem::replace(request.body_mut(), RequestBody::empty())),
        };
        let untouched = body.is_none();
        let head = lead.len();
        Self { lead, written: 0, data: Bytes::new(), tail: &[], body, framing, untouched, head }
    }

    /// Whether nothing of the request has left, and it is whole where it came from.
    pub(super) fn is_untouched(&self) -> bool {
        self.untouched
    }

    /// How many bytes the request has, where they are its head alone.
    pub(super) fn head_alone(&self) -> Option<usize> {
        matches!(self.framing, Framing::None).then_some(self.head)
    }

    /// The buffer that was lent to it.
    pub(super) fn into_buffer(self) -> Vec<u8> {
        self.lead
    }

    /// Sends as much as can be. Ready when all has been sent.
    pub(super) fn poll(&mut self, line: &Rc<Line>, cx: &mut Context<'_>) -> Poll<Result<(), UploadError>> {
        loop {
            // The first part of a body goes with the head, if it is there.
            let mut waits = false;
            if self.data.is_empty() && self.tail.is_empty() && self.body.is_some() {
                waits = self.poll_body(cx).map_err(UploadError::Body)?.is_pending();
            }
            ready!(self.poll_write(line, cx)).map_err(UploadError::Socket)?;
            if waits {
                return Poll::Pending;
            }
            if self.body.is_none() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn poll_write(&mut self, line: &Rc<Line>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.lead.len() || !self.data.is_empty() || !self.tail.is_empty() {
            let slices = [&self.lead[self.written..], &self.data, self.tail].map(IoSlice::new);
            let slices = if self.data.is_empty() && self.tail.is_empty() { &slices[..1] } else { &slices };
            let written = ready!(line.buffers.outbox.poll_write(line, cx, slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.untouched = false;
            self.advance(written);
        }
        self.lead.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, written: usize) {
        let lead = written.min(self.lead.len() - self.written);
        let data = (written - lead).min(self.data.len());
        self.written += lead;
        self.data.advance(data);
        self.tail = &self.tail[written - lead - data..];
    }

    /// Takes the next part of the body.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let Some(body) = &mut self.body else { return Poll::Ready(Ok(())) };
        let next = ready!(Pin::new(&mut *body).poll_frame(cx)).transpose()?;
        let ended = next.is_none() || body.is_end_stream();
        if ended {
            self.body = None;
        }
        Poll::Ready(match self.framing {
            Framing::Chunked => {
                self.chunk(next, ended);
                Ok(())
            }
            Framing::Length(left) => self.part(next, left, ended),
            Framing::None => Ok(()),
        })
    }

    fn chunk(&mut self, next: Option<Frame<Bytes>>, ended: bool) {
        match next.map(Frame::into_data) {
            Some(Ok(data)) if !data.is_empty() => {
                request::write_chunk_size(&mut self.lead, data.len());
                self.data = data;
                self.tail = if ended { request::LAST_CHUNK_END } else { request::CHUNK_END };
            }
            Some(Err(frame)) => {
                let trailers = frame.into_trailers().unwrap_or_default();
                request::write_end(&mut self.lead, &trailers);
                self.body = None;
            }
            Some(Ok(_)) if !ended => {}
            None | Some(Ok(_)) => request::write_end(&mut self.lead, &Default::default()),
        }
    }

    /// What the head has promised, no more and no less.
    fn part(&mut self, next: Option<Frame<Bytes>>, left: u64, ended: bool) -> Result<(), Broken> {
        let data = next.and_then(|frame| frame.into_data().ok()).unwrap_or_default();
        let left = left.checked_sub(data.len() as u64).filter(|left| *left == 0 || !ended);
        let left = left.ok_or_else(|| Broken::Off("it is not as long as its Content-Length says".into()))?;
        self.data = data;
        self.framing = Framing::Length(left);
        Ok(())
    }
}

//! A message on its way out, in either direction: its head, and its content as that comes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame};

use crate::body::Broken;

/// How the end of the content is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is none.
    None,
    /// By the number of bytes.
    Length(u64),
    /// By the last chunk.
    Chunked,
    /// By the end of the connection.
    Close,
}

/// Why a message cannot be sent to its end.
#[derive(Debug)]
pub(super) enum Failed {
    /// The peer does not take it.
    Socket(io::Error),
    /// Its content does not come.
    Content(Broken),
}

/// A message that is being sent.
pub(super) struct Message<B> {
    /// What goes first, from `written` on: the head, or what stands before a chunk.
    lead: Vec<u8>,
    written: usize,
    /// What goes then: a part of the content.
    data: Bytes,
    /// What goes last: the end of a chunk.
    tail: &'static [u8],
    /// Until it has been read to its end.
    body: Option<B>,
    framing: Framing,
    /// Whether the receiver takes trailers.
    trailers: bool,
    /// The content broke off; what came of it goes first.
    broken: Option<Broken>,
    /// Whether a byte was sent.
    begun: bool,
}

impl<B> Message<B>
where
    B: Body<Data = Bytes, Error = Broken> + Unpin,
{
    /// A message with this head, of which nothing was sent. `trailers` says whether fields behind the content are written.
    pub(super) fn new(head: Vec<u8>, body: Option<B>, framing: Framing, trailers: bool) -> Self {
        let (data, tail) = (Bytes::new(), &[][..]);
        Self { lead: head, written: 0, data, tail, body, framing, trailers, broken: None, begun: false }
    }

    /// Whether a byte was sent.
    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// The buffer that was its head's.
    pub(super) fn into_buffer(self) -> Vec<u8> {
        self.lead
    }

    /// Sends as much as can be, by `write`. Ready when all has been sent.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&mut Context<'_>, &[IoSlice<'_>]) -> Poll<io::Result<usize>>,
    ) -> Poll<Result<(), Failed>> {
        loop {
            // The first part of the content goes with the head, if it is there.
            let mut waits = false;
            if self.data.is_empty() && self.tail.is_empty() && self.body.is_some() {
                match self.poll_body(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(broken)) => (self.broken, self.body) = (Some(broken), None),
                    Poll::Pending => waits = true,
                }
            }
            ready!(self.poll_write(cx, &mut write)).map_err(Failed::Socket)?;
            if waits {
                return Poll::Pending;
            }
            if self.body.is_none() {
                return Poll::Ready(self.broken.take().map_or(Ok(()), |broken| Err(Failed::Content(broken))));
            }
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        write: &mut impl FnMut(&mut Context<'_>, &[IoSlice<'_>]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<()>> {
        while self.written < self.lead.len() || !self.data.is_empty() || !self.tail.is_empty() {
            let slices = [&self.lead[self.written..], &self.data, self.tail].map(IoSlice::new);
            let slices = if self.data.is_empty() && self.tail.is_empty() { &slices[..1] } else { &slices };
            let written = ready!(write(cx, slices))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.begun = true;
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

    /// Takes the next part of the content.
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
            Framing::Close => {
                self.data = next.and_then(|frame| frame.into_data().ok()).unwrap_or_default();
                Ok(())
            }
            Framing::None => Ok(()),
        })
    }

    fn chunk(&mut self, next: Option<Frame<Bytes>>, ended: bool) {
        match next.map(Frame::into_data) {
            Some(Ok(data)) if !data.is_empty() => {
                write_chunk_size(&mut self.lead, data.len());
                self.data = data;
                self.tail = if ended { LAST_CHUNK_END } else { CHUNK_END };
            }
            Some(Err(frame)) => {
                let trailers = frame.into_trailers().ok().filter(|_| self.trailers);
                write_end(&mut self.lead, &trailers.unwrap_or_default());
                self.body = None;
            }
            Some(Ok(_)) if !ended => {}
            None | Some(Ok(_)) => write_end(&mut self.lead, &HeaderMap::new()),
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

/// Writes a field's line.
pub(super) fn write_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes what stands before a chunk of so many bytes. After it come `CHUNK_END` or, if it is the last, `LAST_CHUNK_END`.
fn write_chunk_size(out: &mut Vec<u8>, bytes: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - bytes.leading_zeros()).div_ceil(4).max(1);
    (0..digits).rev().for_each(|place| out.push(DIGITS[bytes >> (4 * place) & 15]));
    out.extend_from_slice(b"\r\n");
}

/// What stands after a chunk.
const CHUNK_END: &[u8] = b"\r\n";
/// What stands after the last chunk with content.
const LAST_CHUNK_END: &[u8] = b"\r\n0\r\n\r\n";

/// Writes the end of a chunked body.
fn write_end(out: &mut Vec<u8>, trailers: &HeaderMap) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        write_field(out, name.as_str(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn sizes_of_chunks_are_hexadecimal() {
        for size in [0, 1, 9, 10, 15, 16, 255, 256, 65_535, 65_536, usize::MAX] {
            let mut out = Vec::new();
            write_chunk_size(&mut out, size);
            assert_eq!(String::from_utf8(out).expect("text"), format!("{size:x}\r\n"));
        }
    }

    #[test]
    fn trailers_follow_the_last_chunk() {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        let mut out = Vec::new();
        write_end(&mut out, &trailers);
        assert_eq!(out, b"0\r\nx-sum: 1\r\n\r\n");
    }
}

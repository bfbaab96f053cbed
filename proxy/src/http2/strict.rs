//! A client's bytes on their way to `h2`: what it and `http` would settle without a word is found here first.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use h2::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::block::Fault;
use super::frames::{Frames, Message};
use super::hpack::Target;

/// What may be read in one turn: so much memory of heads, so that those of many streams are not all there before the first
/// of them is refused, and so many bytes, so that one connection does not keep the others waiting.
const HEADS_IN_A_TURN: usize = 64 << 10;
const BYTES_IN_A_TURN: usize = 256 << 10;
/// So many messages with faults nobody asks for.
const MAX_FAULTY: usize = 256;
/// So much is read at once of what is kept until it is whole.
const PIECE: usize = 2 << 10;

/// A client's stream, read by the rules of HTTP/2.
pub(super) struct Strict<S> {
    stream: S,
    frames: Frames,
    /// Was kept until it was whole, and goes on.
    whole: Vec<u8>,
    findings: Rc<Findings>,
}

/// What was found in a client's bytes.
pub(super) struct Findings {
    /// The heads of requests that `h2` has not handed out.
    heads: RefCell<Vec<Head>>,
    /// As many of them it has read.
    seen: Cell<usize>,
    /// Streams whose trailers have a fault.
    faulty: RefCell<Vec<u32>>,
    /// Why nothing more is read.
    violation: Cell<Option<Reason>>,
    heard: Cell<bool>,
    /// What may still be read in this turn, of bytes and of heads.
    bytes: Cell<usize>,
    memory: Cell<usize>,
    /// Something waits for the next turn.
    paused: Cell<bool>,
    /// The stream on which the fields of a message have begun and not ended.
    unfinished: Cell<Option<u32>>,
}

/// What was found in a request's head.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) stream: u32,
    pub(super) fault: Option<Fault>,
    /// The target, where `h2` has another one.
    pub(super) target: Option<Target>,
    pub(super) memory: usize,
}

impl Default for Findings {
    fn default() -> Self {
        Self {
            heads: RefCell::default(),
            seen: Cell::new(0),
            faulty: RefCell::default(),
            violation: Cell::new(None),
            heard: Cell::new(false),
            bytes: Cell::new(BYTES_IN_A_TURN),
            memory: Cell::new(HEADS_IN_A_TURN),
            paused: Cell::new(false),
            unfinished: Cell::new(None),
        }
    }
}

impl Findings {
    fn take(&self, message: Message) {
        let Message { stream, trailers, fault, target, memory } = message;
        self.memory.set(self.memory.get().saturating_sub(memory));
        if !trailers {
            return self.heads.borrow_mut().push(Head { stream, fault, target, memory });
        }
        if fault.is_some() {
            let mut faulty = self.faulty.borrow_mut();
            faulty.push(stream);
            if MAX_FAULTY < faulty.len() {
                self.violation.set(Some(Reason::ENHANCE_YOUR_CALM));
            }
        }
    }

    /// So many bytes came.
    fn heard(&self, bytes: usize) {
        self.heard.set(self.heard.get() || 0 < bytes);
        self.bytes.set(self.bytes.get().saturating_sub(bytes));
    }

    /// Whether more may be read in this turn.
    fn may_read(&self) -> bool {
        if self.violation.get().is_some() {
            return false; // the connection ends in this turn
        }
        let may = self.bytes.get() != 0 && self.memory.get() != 0;
        self.paused.set(self.paused.get() || !may);
        may
    }

    /// What was found in the head of a request that `h2` hands out.
    pub(super) fn head(&self, stream: u32) -> Option<Head> {
        let mut heads = self.heads.borrow_mut();
        let at = heads.iter().position(|head| head.stream == stream)?;
        if at < self.seen.get() {
            self.seen.set(self.seen.get() - 1);
        }
        Some(heads.remove(at))
    }

    /// Whether `h2` may have requests to hand out.
    pub(super) fn has_heads(&self) -> bool {
        !self.heads.borrow().is_empty()
    }

    /// The requests that `h2` has read and does not hand out: those it has refused by itself.
    pub(super) fn refused(&self) -> impl Iterator<Item = Head> {
        let seen = self.seen.replace(0);
        let mut heads = self.heads.borrow_mut();
        heads.drain(..seen).collect::<Vec<_>>().into_iter()
    }

    /// Whether the trailers of this stream have a fault.
    pub(super) fn has_faulty_trailers(&self, stream: u32) -> bool {
        self.faulty.borrow().contains(&stream)
    }

    /// Nobody asks for the trailers of this stream any more.
    pub(super) fn forget_trailers(&self, stream: u32) {
        self.faulty.borrow_mut().retain(|faulty| *faulty != stream);
    }

    /// Why the connection must end.
    pub(super) fn violation(&self) -> Option<Reason> {
        self.violation.get()
    }

    /// Whether something came since this was last asked.
    pub(super) fn was_heard(&self) -> bool {
        self.heard.replace(false)
    }

    /// The stream on which the fields of a message have begun and not ended.
    pub(super) fn unfinished(&self) -> Option<u32> {
        self.unfinished.get()
    }

    /// A new turn begins. Whether something has waited for it.
    pub(super) fn next_turn(&self) -> bool {
        self.bytes.set(BYTES_IN_A_TURN);
        self.memory.set(HEADS_IN_A_TURN);
        self.paused.replace(false)
    }
}

impl<S> Strict<S> {
    pub(super) fn new(stream: S, findings: Rc<Findings>) -> Self {
        Self { stream, frames: Frames::default(), whole: Vec::new(), findings }
    }
}

impl<S: AsyncRead + Unpin> Strict<S> {
    /// Reads some of what is missing of the frame that is kept. Ready with whether there was any.
    fn poll_missing(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let findings = &self.findings;
        let mut piece = [0; PIECE];
        let missing = self.frames.missing().min(PIECE);
        let mut buf = ReadBuf::new(&mut piece[..missing]);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf))?;
        let read = buf.filled();
        findings.heard(read.len());
        match self.frames.complete(read, |message| findings.take(message)) {
            Ok(whole) => self.whole = whole.unwrap_or_default(),
            Err(reason) => findings.violation.set(Some(reason)),
        }
        findings.unfinished.set(self.frames.unfinished());
        Poll::Ready(Ok(!read.is_empty()))
    }

    /// Reads frames, and hands on what may go on. Ready with whether there was anything, or the end came.
    fn poll_frames(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let findings = &self.findings;
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let read = &mut buf.filled_mut()[before..];
        findings.heard(read.len());
        let ended = read.is_empty();
        let sound = self.frames.read(read, |message| findings.take(message)).unwrap_or_else(|violation| {
            findings.violation.set(Some(violation.reason));
            violation.sound
        });
        findings.unfinished.set(self.frames.unfinished());
        buf.set_filled(before + sound);
        Poll::Ready(Ok(0 < sound || ended))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Strict<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Who asks for more has read all that there was.
        self.findings.seen.set(self.findings.heads.borrow().len());
        loop {
            if !self.whole.is_empty() {
                let handed = self.whole.len().min(buf.remaining());
                buf.put_slice(&self.whole[..handed]);
                self.whole.drain(..handed);
                return Poll::Ready(Ok(()));
            }
            if !self.findings.may_read() {
                return Poll::Pending;
            }
            let goes_on = match self.frames.missing() {
                0 => !ready!(self.poll_frames(cx, buf))?,
                _ => ready!(self.poll_missing(cx))?,
            };
            if !goes_on {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

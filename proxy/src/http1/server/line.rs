//! A client's connection, as its task and the content of its request share it.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::answer;
use crate::connection::Watched;
use crate::http1::buffers::joined;
use crate::http1::{BLOCK, Buffers};

/// As much is read of what comes while a request is served: the start of the next one.
const EARLY: usize = 4 << 10;

/// A client's connection.
pub struct Line {
    stream: RefCell<Watched>,
    pub(super) buffers: Rc<Buffers>,
    /// What came and was not used.
    received: RefCell<Bytes>,
    /// The client sends no more.
    ended: Cell<bool>,
    content: Cell<Content>,
    /// Whether the client waits for `100 Continue` before it sends its content.
    awaited: Cell<bool>,
    /// Whoever reads the content, while it waits for more.
    reader: Cell<Option<Waker>>,
    /// Interim answers that wait to be written.
    interim: RefCell<Vec<u8>>,
    /// The connection's task, while it waits for others.
    task: RefCell<Option<Waker>>,
}

/// What became of the content of the request that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// It was read to its end, or there is none.
    Ended,
    /// Somebody reads it, or will.
    Wanted,
    /// Nobody will read what is left of it.
    Unwanted,
}

impl Line {
    /// A connection of which `received` was read.
    pub(in crate::http1) fn new(stream: Watched, received: Bytes, buffers: Rc<Buffers>) -> Rc<Self> {
        Rc::new(Self {
            stream: RefCell::new(stream),
            buffers,
            received: RefCell::new(received),
            ended: Cell::new(false),
            content: Cell::new(Content::Ended),
            awaited: Cell::new(false),
            reader: Cell::default(),
            interim: RefCell::default(),
            task: RefCell::default(),
        })
    }

    /// What came and was not used.
    pub(super) fn received(&self) -> Bytes {
        self.received.take()
    }

    /// These bytes are for whoever reads next.
    pub(super) fn put_back(&self, unused: Bytes) {
        *self.received.borrow_mut() = unused;
    }

    /// How many bytes came that were not used.
    pub(super) fn received_bytes(&self) -> usize {
        self.received.borrow().len()
    }

    /// Whether bytes came that were not used.
    pub(super) fn has_received(&self) -> bool {
        !self.received.borrow().is_empty()
    }

    /// Whether the client waits for `100 Continue` before it sends its content.
    pub fn awaits_continue(&self, awaits: bool) {
        self.awaited.set(awaits);
    }

    /// Whether it still does.
    pub(super) fn is_awaited(&self) -> bool {
        self.awaited.get() && self.content.get() == Content::Wanted
    }

    /// Nobody is to read what may come of the content.
    pub(super) fn give_up(&self) {
        self.awaited.set(false);
        self.content.set(Content::Unwanted);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    /// What became of the content of its request.
    pub(super) fn content(&self) -> Content {
        self.content.get()
    }

    /// The content's reader has ended, or will not go on.
    pub(super) fn set_content(&self, content: Content) {
        if self.content.get() != Content::Unwanted || content == Content::Wanted {
            self.content.set(content);
        }
        if let Some(task) = self.task.take() {
            task.wake();
        }
    }

    /// Whom to wake when the content's reader has ended, or an interim answer waits.
    fn listen(&self, cx: &Context<'_>) {
        let mut task = self.task.borrow_mut();
        match &mut *task {
            Some(task) => task.clone_from(cx.waker()),
            None => *task = Some(cx.waker().clone()),
        }
    }

    /// Reads what comes; nothing at the end.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let bytes = ready!(self.buffers.poll_read(&mut *self.stream.borrow_mut(), BLOCK, cx))?;
        self.ended.set(bytes.is_empty());
        Poll::Ready(Ok(bytes))
    }

    /// Adds to what came what comes of the content; false when nothing more does.
    pub(super) fn poll_content(&self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.content.get() == Content::Unwanted {
            return Poll::Ready(Ok(false));
        }
        let more = self.poll_more(cx);
        match more {
            Poll::Pending => self.reader.set(Some(cx.waker().clone())),
            Poll::Ready(_) => self.awaited.set(false),
        }
        more
    }

    /// Ready when nobody reads the content any more.
    pub(super) fn poll_unwanted(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.content.get() != Content::Wanted {
            return Poll::Ready(());
        }
        self.listen(cx);
        Poll::Pending
    }

    /// Adds what comes to what came; false at the end.
    pub(super) fn poll_more(&self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let bytes = ready!(self.poll_read(cx))?;
        let more = !bytes.is_empty();
        let received = self.received();
        self.put_back(joined(received, bytes));
        Poll::Ready(Ok(more))
    }

    /// Whether the client has closed its side: it may wait for its answer still.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    /// Watches the client while its request is served: ready with the error when the connection is broken. A client that
    /// only has nothing more to send gets its answer.
    pub(super) fn poll_broken(&self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.listen(cx);
        if self.content.get() != Content::Ended || self.ended.get() || !self.received.borrow().is_empty() {
            return Poll::Pending;
        }
        let mut space = [const { MaybeUninit::uninit() }; EARLY];
        let mut early = ReadBuf::uninit(&mut space);
        match ready!(Pin::new(&mut *self.stream.borrow_mut()).poll_read(cx, &mut early)) {
            // Over TLS the client may close without a word.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => self.ended.set(true),
            Err(error) => return Poll::Ready(error),
            Ok(()) if early.filled().is_empty() => self.ended.set(true),
            Ok(()) => self.put_back(Bytes::copy_from_slice(early.filled())),
        }
        Poll::Pending
    }

    /// Writes what it can.
    pub(super) fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut stream = self.stream.borrow_mut();
        match slices {
            [slice] => Pin::new(&mut *stream).poll_write(cx, slice),
            _ => Pin::new(&mut *stream).poll_write_vectored(cx, slices),
        }
    }

    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_flush(cx)
    }

    pub(super) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_shutdown(cx)
    }

    /// The answer broke off where only the end of the connection would tell its end: the client must not take this for that.
    pub(super) fn reset(&self) {
        self.stream.borrow().reset();
    }

    /// An interim answer is to be written.
    pub fn interim(&self, status: StatusCode, fields: &HeaderMap) {
        answer::write_interim(&mut self.interim.borrow_mut(), status, fields);
        if let Some(task) = self.task.take() {
            task.wake();
        }
    }

    /// Writes the interim answers that wait.
    pub(super) fn poll_interim(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut interim = self.interim.borrow_mut();
        if interim.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while !interim.is_empty() {
            let written = ready!(self.poll_write(cx, &[IoSlice::new(&interim)]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            interim.drain(..written);
        }
        *interim = Vec::new(); // few requests need it
        self.poll_flush(cx)
    }

    /// The stream, for whoever takes the connection over.
    pub(super) fn into_stream(self: Rc<Self>) -> Option<Watched> {
        let line = Rc::into_inner(self)?;
        Some(line.stream.into_inner().put_back(line.received.into_inner()))
    }
}

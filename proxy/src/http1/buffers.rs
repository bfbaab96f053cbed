//! What the connections of one thread borrow while they are read or written.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::outbox::Outbox;

/// What is read at once at most.
pub const BLOCK: usize = 64 << 10;
/// A read has room for as much at least.
const ROOM: usize = 16 << 10;
/// As many bytes as are copied rather than kept in a block that others share: so few must not hold a whole block, and the
/// block stays the same, in the cache.
pub(super) const FEW: usize = 4 << 10;
/// As many maps of fields are kept: those of the requests of one turn.
const SPARE: usize = 32;

/// One thread's buffers.
#[derive(Default)]
pub struct Buffers {
    /// By which they send.
    pub(super) outbox: Rc<Outbox>,
    /// Empty, with room.
    block: RefCell<BytesMut>,
    /// Empty, for the next request's head.
    head: Cell<Vec<u8>>,
    /// Empty, for the fields of the next messages: a request's and an answer's are in use at once.
    fields: RefCell<Vec<HeaderMap>>,
}

impl Buffers {
    /// Empty ones, for connections that send by way of `outbox`.
    pub fn new(outbox: Rc<Outbox>) -> Self {
        Self { outbox, ..Self::default() }
    }

    /// Reads what has come, so many bytes of it at most; nothing means the end.
    pub(super) fn poll_read(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        most: usize,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Bytes>> {
        let mut block = self.block.borrow_mut();
        if block.capacity() < ROOM {
            block.reserve(BLOCK);
        }
        let read = ready!(pin!(stream.read_buf(&mut (&mut *block).limit(most))).poll(cx))?;
        if FEW < read {
            return Poll::Ready(Ok(block.split().freeze()));
        }
        let bytes = Bytes::copy_from_slice(&block);
        block.clear();
        Poll::Ready(Ok(bytes))
    }

    /// An empty buffer for the head of a request.
    pub(super) fn head(&self) -> Vec<u8> {
        self.head.take()
    }

    /// It is not needed any more.
    pub(super) fn give_back(&self, head: Option<Vec<u8>>) {
        if let Some(mut head) = head.filter(|head| head.capacity() <= ROOM) {
            head.clear();
            self.head.set(head);
        }
    }

    /// An empty map for the fields of a message.
    pub(super) fn fields(&self) -> HeaderMap {
        self.fields.borrow_mut().pop().unwrap_or_default()
    }

    /// Nobody reads these fields any more: the next message may have their place.
    pub fn take_over(&self, mut fields: HeaderMap) {
        let mut spare = self.fields.borrow_mut();
        if spare.len() < SPARE {
            fields.clear();
            spare.push(fields);
        }
    }
}

/// One after the other, without a copy where one is empty.
pub(super) fn joined(first: Bytes, second: Bytes) -> Bytes {
    if first.is_empty() || second.is_empty() {
        return if first.is_empty() { second } else { first };
    }
    let mut both = BytesMut::from(first);
    both.extend_from_slice(&second);
    both.freeze()
}

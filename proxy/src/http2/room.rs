//! How much the answers of one connection may hold that its client does not read.
//!
//! A stream asks its worker for more only when what it was given before has left, or nearly. It always may hold a little, so
//! that no stream waits for another; a few streams may hold much at a time, so that large answers go by in large parts.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};

use crate::connection::{Activity, Holding};

/// What each stream may be given at once, whatever others hold.
pub const LITTLE: usize = 4 << 10;
/// What a stream may be given at once where there is room: a block as it was read from a worker.
pub(super) const MUCH: usize = 64 << 10;
/// As many streams may hold that much.
const BLOCKS: usize = 4;
/// A stream may hold as many parts, however short.
const MAX_PARTS: usize = 16;

/// What the streams of a connection share.
pub(super) struct Room {
    /// How many blocks they hold.
    blocks: Cell<usize>,
    activity: Rc<Activity>,
}

impl Room {
    /// The room of a connection whose streams hold nothing.
    pub(super) fn new(activity: Rc<Activity>) -> Self {
        Self { blocks: Cell::new(0), activity }
    }

    /// How much a stream may be given next.
    pub(super) fn next(&self) -> usize {
        if self.blocks.get() < BLOCKS && !self.activity.is_tight() { MUCH } else { LITTLE }
    }
}

/// What one stream was given and has not sent.
#[derive(Default)]
pub(super) struct Unsent {
    bytes: Cell<usize>,
    parts: Cell<usize>,
    waker: RefCell<Option<Waker>>,
}

impl Unsent {
    /// Ready when the stream may be given more.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.has_room() {
            return Poll::Ready(());
        }
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    pub(super) fn has_room(&self) -> bool {
        self.bytes.get() < LITTLE && self.parts.get() < MAX_PARTS
    }
}

/// A part of an answer until it has left. It is dropped while `h2` holds its locks, so it must not hold a stream of it.
#[derive(Default)]
pub(super) struct Part {
    data: Bytes,
    /// Until it is dropped.
    _held: Option<Held>,
}

struct Held {
    unsent: Rc<Unsent>,
    bytes: usize,
    /// Where the part takes one of the blocks.
    _block: Option<Block>,
}

/// One of the blocks that the streams of a connection hold.
struct Block {
    room: Rc<Room>,
    _holding: Holding,
}

impl Block {
    /// A block of this room. A part of it may be all that is left of it, and holds all of it.
    fn of(room: &Rc<Room>) -> Self {
        room.blocks.set(room.blocks.get() + 1);
        let mut holding = Holding::by(room.activity.clone());
        holding.is_now(MUCH);
        Self { room: room.clone(), _holding: holding }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.room.blocks.set(self.room.blocks.get() - 1);
    }
}

impl Part {
    /// A part that nobody waits for, as short as a stream may always hold.
    pub(super) fn last(data: Bytes) -> Self {
        Self { data, _held: None }
    }

    /// A part of a stream.
    pub(super) fn new(data: Bytes, unsent: &Rc<Unsent>, room: &Rc<Room>) -> Self {
        let bytes = data.len();
        unsent.bytes.set(unsent.bytes.get() + bytes);
        unsent.parts.set(unsent.parts.get() + 1);
        let block = (LITTLE < bytes).then(|| Block::of(room));
        Self { data, _held: Some(Held { unsent: unsent.clone(), bytes, _block: block }) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let unsent = &self.unsent;
        unsent.bytes.set(unsent.bytes.get() - self.bytes);
        unsent.parts.set(unsent.parts.get() - 1);
        if unsent.has_room()
            && let Some(waker) = unsent.waker.take()
        {
            waker.wake();
        }
    }
}

impl Buf for Part {
    fn remaining(&self) -> usize {
        self.data.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.data
    }

    fn advance(&mut self, count: usize) {
        self.data.advance(count);
    }
}

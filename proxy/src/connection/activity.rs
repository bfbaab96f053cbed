//! What a connection is doing, and since when: its task notes it, and the thread looks at it once a tick.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::{Limits, Place};
use crate::memory::{ALWAYS, Share};
use crate::rejection::Rejection;
use crate::thread::TICK;

/// How long a client has to take the refusal of a head that came too late.
const GRACE: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Idle,
    Head,
    Request,
    /// The answer to its last request was written, and what it still sends is read and forgotten.
    Lingering,
}

/// What a connection is doing, and since which tick.
pub struct Activity {
    pub(super) clock: Rc<Cell<u32>>,
    pub(super) phase: Cell<Phase>,
    pub(super) since: Cell<u32>,
    /// The tick after which nothing could be written; 0: nothing waits to be written.
    pub(super) blocked: Cell<u32>,
    pub(super) requests: Cell<u32>,
    pub(super) uploads: Cell<u32>,
    pub(super) share: Rc<Share>,
    /// What the process holds for it, in bytes, and what of that goes when workers answer.
    pub(super) held: Cell<usize>,
    /// As much it may hold whatever others do.
    pub(super) always: Cell<usize>,
    pub(super) waiting: Cell<usize>,
    /// The tick at which something of that went last.
    pub(super) moved: Cell<u32>,
    /// HTTP/2 frames between requests are no head.
    pub(super) http2: Cell<bool>,
    /// Over HTTP/2: whose fields have begun and not ended, and the tick since which that is so.
    pub(super) unfinished: Cell<Option<(u32, u32)>>,
    pub(super) closing: Cell<bool>,
    pub(super) late: Cell<bool>,
    /// Why it gives way to others, if it does, and whether that was told.
    pub(super) shed: Cell<Option<Rejection>>,
    pub(super) told: Cell<bool>,
    /// Its place among the connections of the process, for as long as its stream is used.
    pub(super) place: Cell<Option<Place>>,
    pub(super) waker: RefCell<Option<Waker>>,
}

impl Activity {
    /// A connection of which nothing was read yet. The clock counts ticks; what it holds is a part of the share.
    pub fn new(clock: Rc<Cell<u32>>, share: Rc<Share>) -> Self {
        Self {
            phase: Cell::new(Phase::Head),
            since: Cell::new(clock.get()),
            clock,
            blocked: Cell::new(0),
            requests: Cell::new(0),
            uploads: Cell::new(0),
            share,
            held: Cell::new(0),
            always: Cell::new(ALWAYS),
            waiting: Cell::new(0),
            moved: Cell::new(0),
            http2: Cell::new(false),
            unfinished: Cell::new(None),
            closing: Cell::new(false),
            late: Cell::new(false),
            shed: Cell::new(None),
            told: Cell::new(false),
            place: Cell::new(None),
            waker: RefCell::default(),
        }
    }

    /// A request's head has been read.
    pub fn request_began(&self) {
        self.requests.set(self.requests.get() + 1);
        self.phase.set(Phase::Request);
    }

    /// A request's answer has ended.
    pub fn request_ended(&self) {
        self.requests.set(self.requests.get().saturating_sub(1));
        self.rest_if_unused();
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(self.clock.get());
    }

    pub(super) fn read(&self) {
        if !self.http2.get() {
            self.head_began();
        }
    }

    /// The client has begun to send a head.
    pub fn head_began(&self) {
        if self.phase.get() == Phase::Idle {
            self.enter(Phase::Head);
        }
    }

    /// Its last request was answered, and it may still send.
    pub fn lingers(&self) {
        self.enter(Phase::Lingering);
    }

    pub(super) fn wrote(&self, pending: bool) {
        if !pending {
            if self.blocked.replace(0) != 0 {
                self.read_on();
            }
        } else if self.blocked.get() == 0 {
            self.blocked.set(self.clock.get().max(1));
            self.unread();
        }
    }

    /// It speaks HTTP/2, and its first request may take its time.
    pub fn speaks_http2(&self) {
        self.http2.set(true);
        self.enter(Phase::Idle);
    }

    /// The fields of a message on this stream of HTTP/2 have begun and not ended, if those of any have.
    pub fn reads_fields(&self, stream: Option<u32>) {
        let before = self.unfinished.get().filter(|(before, _)| Some(*before) == stream);
        self.unfinished.set(stream.map(|stream| before.unwrap_or((stream, self.clock.get()))));
    }

    /// No further requests: the next answer, or GOAWAY, tells the client.
    pub fn close(&self) {
        self.closing.set(true);
        self.wake();
    }

    /// Whether it is to take no further requests.
    pub fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Whether its head has not come in time.
    pub fn is_late(&self) -> bool {
        self.late.get()
    }

    /// What comes of `wanted`, unless the connection is to close first.
    pub async fn unless_closing<T>(&self, wanted: impl Future<Output = T>) -> Option<T> {
        let mut wanted = std::pin::pin!(wanted);
        std::future::poll_fn(|cx| {
            self.listen(cx);
            match self.closing.get() {
                true => Poll::Ready(None),
                false => wanted.as_mut().poll(cx).map(Some),
            }
        })
        .await
    }

    /// Whom to wake when something is asked of the connection.
    pub fn listen(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
    }

    pub(super) fn wake(&self) {
        let waker = self.waker.borrow().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn verdict(&self, limits: &Limits) -> Verdict {
        let now = self.clock.get();
        let over = |since: u32, limit: Duration| limit < TICK * now.saturating_sub(since);
        let since = self.since.get();
        let blocked = self.blocked.get();
        if blocked != 0 && over(blocked, limits.stall) {
            return Verdict::Cut;
        }
        if self.unfinished.get().is_some_and(|(_, since)| over(since, limits.head)) {
            return Verdict::Cut;
        }
        match self.phase.get() {
            Phase::Head if over(since, limits.head + GRACE) => Verdict::Cut,
            Phase::Head if self.closing.get() && over(since, GRACE) => Verdict::Cut,
            Phase::Head if over(since, limits.head) => Verdict::Late,
            Phase::Idle if over(since, limits.idle + limits.head) => Verdict::Cut,
            Phase::Idle if over(since, limits.idle) => Verdict::Close,
            _ => Verdict::Stay,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Stay,
    /// Its head is refused.
    Late,
    /// Gracefully.
    Close,
    /// At once.
    Cut,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        head: Duration::from_secs(10),
        idle: Duration::from_secs(60),
        stall: Duration::from_secs(30),
    };

    fn after(activity: &Activity, time: Duration) -> Verdict {
        let ticks = u32::try_from(time.as_millis() / TICK.as_millis()).expect("small");
        activity.clock.set(activity.clock.get() + ticks + 1);
        activity.verdict(&LIMITS)
    }

    fn activity() -> Activity {
        Activity::new(Rc::new(Cell::new(1)), Rc::default())
    }

    #[test]
    fn a_head_that_does_not_end_is_cut() {
        let silent = activity();
        assert_eq!(after(&silent, LIMITS.head), Verdict::Late);
        assert_eq!(after(&silent, GRACE), Verdict::Cut);
        let slow = activity();
        slow.request_began();
        slow.request_ended();
        assert_eq!(after(&slow, LIMITS.head), Verdict::Stay);
        slow.read();
        assert_eq!(after(&slow, LIMITS.head / 2), Verdict::Stay);
        slow.read(); // one more byte buys no more time
        assert_eq!(after(&slow, LIMITS.head / 2), Verdict::Late);
    }

    #[test]
    fn a_head_does_not_hold_up_the_end() {
        let slow = activity();
        slow.close();
        assert_eq!(after(&slow, GRACE / 2), Verdict::Stay);
        assert_eq!(after(&slow, GRACE / 2), Verdict::Cut);
    }

    #[test]
    fn a_request_may_take_what_the_policy_says() {
        let busy = activity();
        busy.request_began();
        assert_eq!(after(&busy, LIMITS.idle * 10), Verdict::Stay);
        busy.request_ended();
        assert_eq!(after(&busy, LIMITS.idle), Verdict::Close);
        assert_eq!(after(&busy, LIMITS.head), Verdict::Cut);
    }

    #[test]
    fn the_fields_of_one_stream_do_not_come_for_ever_behind_others() {
        let slow = activity();
        slow.speaks_http2();
        slow.request_began(); // one that takes its time
        slow.reads_fields(Some(1));
        assert_eq!(after(&slow, LIMITS.head / 2), Verdict::Stay);
        slow.reads_fields(Some(3)); // those of stream 1 have ended
        assert_eq!(after(&slow, LIMITS.head / 2), Verdict::Stay);
        slow.reads_fields(Some(3));
        assert_eq!(after(&slow, LIMITS.head / 2), Verdict::Cut);
        slow.reads_fields(None);
        assert_eq!(slow.verdict(&LIMITS), Verdict::Stay);
    }

    #[test]
    fn a_client_that_does_not_read_is_cut() {
        let full = activity();
        full.request_began();
        full.wrote(true);
        assert_eq!(after(&full, LIMITS.stall / 2), Verdict::Stay);
        full.wrote(true);
        assert_eq!(after(&full, LIMITS.stall / 2), Verdict::Cut);
        full.wrote(false);
        assert_eq!(full.verdict(&LIMITS), Verdict::Stay);
    }
}

//! A client's connection: which protocol it speaks, and how long it may take for what.
//!
//! No request arms a timer for its connection. Every connection notes in which phase it is and since which
//! tick; once a tick the thread looks at all of them, parks those that rest and ends those that overstay.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::client::Peer;
use crate::siblings::Arrival;
use crate::thread::TICK;

pub use self::stream::{Duplex, Watched, is_http2};

mod stream;

/// How long a client may take, whatever the policy says.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From the first byte of a head to its end, and for the TLS handshake.
    pub head: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// How long a client may leave what was sent to it unread.
    pub stall: Duration,
    /// Connections open at once, in this thread.
    pub connections: usize,
}

/// The connection a request came on.
pub struct Client {
    /// Who is at its other end.
    pub peer: Peer,
    /// What it is doing.
    pub activity: Rc<Activity>,
    /// Who takes the connection over once it no longer speaks HTTP.
    pub upgrade: Cell<Option<Taker>>,
    /// Which port it came to.
    pub arrival: Arrival,
}

/// Takes over the stream of a connection.
pub type Taker = oneshot::Sender<Box<dyn Duplex>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Head,
    Request,
}

/// What a connection is doing, and since which tick.
pub struct Activity {
    clock: Rc<Cell<u32>>,
    phase: Cell<Phase>,
    since: Cell<u32>,
    /// The tick after which nothing could be written; 0: nothing waits to be written.
    blocked: Cell<u32>,
    requests: Cell<u32>,
    /// Bodies that the client may still be sending, whether or not their requests have been answered.
    uploads: Cell<u32>,
    /// HTTP/2 frames between requests are no head.
    http2: Cell<bool>,
    closing: Cell<bool>,
    parking: Cell<Parking>,
    waker: RefCell<Option<Waker>>,
}

/// Whether a connection keeps what it needs for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parking {
    No,
    /// It is to give it up.
    Wanted,
    /// Its stream is all that is left of it.
    Parked,
}

impl Activity {
    /// A connection of which nothing was read yet. The clock counts ticks.
    pub fn new(clock: Rc<Cell<u32>>) -> Self {
        Self {
            phase: Cell::new(Phase::Head),
            since: Cell::new(clock.get()),
            clock,
            blocked: Cell::new(0),
            requests: Cell::new(0),
            uploads: Cell::new(0),
            http2: Cell::new(false),
            closing: Cell::new(false),
            parking: Cell::new(Parking::No),
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
        let left = self.requests.get().saturating_sub(1);
        self.requests.set(left);
        if left == 0 {
            self.enter(Phase::Idle);
        }
    }

    /// A body follows a head.
    pub fn upload_began(&self) {
        self.uploads.set(self.uploads.get() + 1);
    }

    /// The body was read whole, or nobody wants the rest of it.
    pub fn upload_ended(&self) {
        self.uploads.set(self.uploads.get().saturating_sub(1));
    }

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(self.clock.get());
    }

    fn read(&self) {
        if self.phase.get() == Phase::Idle && !self.http2.get() {
            self.enter(Phase::Head);
        }
    }

    fn wrote(&self, pending: bool) {
        if !pending {
            self.blocked.set(0);
        } else if self.blocked.get() == 0 {
            self.blocked.set(self.clock.get().max(1));
        }
    }

    /// It speaks HTTP/2, and its first request may take its time.
    pub fn speaks_http2(&self) {
        self.http2.set(true);
        self.enter(Phase::Idle);
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

    /// Whom to wake when something is asked of the connection.
    pub fn listen(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
    }

    fn wake(&self) {
        let waker = self.waker.borrow().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whether the connection was asked to give up what only a request needs, and may: neither does it serve one, nor
    /// does anything of one wait to be read or written.
    pub fn may_park(&self) -> bool {
        self.parking.get() == Parking::Wanted && self.rests()
    }

    fn rests(&self) -> bool {
        self.phase.get() == Phase::Idle
            && self.uploads.get() == 0
            && self.blocked.get() == 0
            && !self.http2.get()
            && !self.closing.get()
    }

    /// Notes whether the connection is its stream alone.
    pub fn park(&self, parked: bool) {
        self.parking.set(if parked { Parking::Parked } else { Parking::No });
    }

    /// Whether the connection is its stream alone.
    pub fn is_parked(&self) -> bool {
        self.parking.get() == Parking::Parked
    }

    fn verdict(&self, limits: &Limits) -> Verdict {
        let now = self.clock.get();
        let over = |since: u32, limit: Duration| limit < TICK * now.saturating_sub(since);
        let since = self.since.get();
        let blocked = self.blocked.get();
        if blocked != 0 && over(blocked, limits.stall) {
            return Verdict::Cut;
        }
        match self.phase.get() {
            Phase::Head if over(since, limits.head) => Verdict::Cut,
            Phase::Idle if over(since, limits.idle + limits.head) => Verdict::Cut,
            Phase::Idle if over(since, limits.idle) => Verdict::Close,
            Phase::Idle if over(since, TICK) && self.rests() && !self.is_parked() => Verdict::Park,
            _ => Verdict::Stay,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Stay,
    /// It keeps its stream, and nothing that only a request needs.
    Park,
    /// Gracefully.
    Close,
    /// At once.
    Cut,
}

/// The connections of one data thread.
pub struct Connections {
    clock: Rc<Cell<u32>>,
    started: Instant,
    limits: Limits,
    open: RefCell<HashMap<u64, Open, foldhash::fast::FixedState>>,
    next: Cell<u64>,
}

struct Open {
    activity: Rc<Activity>,
    task: AbortHandle,
}

impl Connections {
    /// None yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            clock: Rc::new(Cell::new(1)),
            started: Instant::now(),
            limits,
            open: RefCell::default(),
            next: Cell::new(0),
        }
    }

    /// Whether one more may be accepted.
    pub fn room(&self) -> bool {
        self.open.borrow().len() < self.limits.connections
    }

    /// Runs a connection until it ends or is ended.
    pub fn spawn<F: Future<Output = ()> + 'static>(
        &self,
        peer: Peer,
        arrival: Arrival,
        serve: impl FnOnce(Rc<Client>) -> F,
    ) {
        let activity = Rc::new(Activity::new(self.clock.clone()));
        let client = Rc::new(Client { peer, activity: activity.clone(), arrival, upgrade: Cell::default() });
        let id = self.next.replace(self.next.get() + 1);
        let task = tokio::task::spawn_local(serve(client)).abort_handle();
        self.open.borrow_mut().insert(id, Open { activity, task });
    }

    /// Tells every connection to take no further requests.
    pub fn close_all(&self) {
        for open in self.open.borrow().values() {
            open.activity.close();
        }
    }

    /// Moves the clock and ends what overstays.
    pub fn tick(&self, now: Instant) {
        let ticks = now.duration_since(self.started).as_millis() / TICK.as_millis();
        self.clock.set(u32::try_from(ticks).unwrap_or(u32::MAX).max(1));
        self.open.borrow_mut().retain(|_, open| {
            match open.activity.verdict(&self.limits) {
                Verdict::Stay => {}
                Verdict::Park => {
                    open.activity.parking.set(Parking::Wanted);
                    open.activity.wake();
                }
                Verdict::Close => open.activity.close(),
                Verdict::Cut => open.task.abort(),
            }
            !open.task.is_finished()
        });
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.open.borrow().values().all(|open| open.task.is_finished())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        head: Duration::from_secs(10),
        idle: Duration::from_secs(60),
        stall: Duration::from_secs(30),
        connections: 1,
    };

    fn after(activity: &Activity, time: Duration) -> Verdict {
        let ticks = u32::try_from(time.as_millis() / TICK.as_millis()).expect("small");
        activity.clock.set(activity.clock.get() + ticks + 1);
        activity.verdict(&LIMITS)
    }

    fn activity() -> Activity {
        Activity::new(Rc::new(Cell::new(1)))
    }

    #[test]
    fn a_head_that_does_not_end_is_cut() {
        assert_eq!(after(&activity(), LIMITS.head), Verdict::Cut);
        let slow = activity();
        slow.request_began();
        slow.request_ended();
        assert_eq!(after(&slow, LIMITS.head), Verdict::Park);
        slow.read();
        assert_eq!(after(&slow, LIMITS.head / 2), Verdict::Stay);
        slow.read(); // one more byte buys no more time
        assert_eq!(after(&slow, LIMITS.head / 2), Verdict::Cut);
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

    #[test]
    fn only_a_connection_that_rests_is_parked() {
        let resting = activity();
        resting.request_began();
        resting.upload_began();
        resting.request_ended();
        assert_eq!(after(&resting, TICK), Verdict::Stay, "the client still sends");
        resting.upload_ended();
        assert_eq!(resting.verdict(&LIMITS), Verdict::Park);
        resting.wrote(true);
        assert_eq!(resting.verdict(&LIMITS), Verdict::Stay, "the client does not read");
        resting.wrote(false);
        resting.parking.set(Parking::Wanted);
        assert!(resting.may_park());
        resting.park(true);
        assert_eq!(resting.verdict(&LIMITS), Verdict::Stay, "it is");
        resting.read();
        assert!(!resting.may_park(), "a head begins");
        let http2 = activity();
        http2.speaks_http2();
        assert_eq!(after(&http2, TICK), Verdict::Stay);
    }
}

//! A client's connection: which protocol it speaks, and how long it may take for what.
//!
//! No request arms a timer for its connection. Every connection notes in which phase it is and since which
//! tick; once a tick the thread looks at all of them and ends those that overstay.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::client::Peer;
use crate::rejection::Rejection;
use crate::siblings::Arrival;
use crate::thread::TICK;

pub use self::cap::{Cap, Place};
use self::shed::Shedding;
pub use self::stream::{Transport, Watched, is_http2};
pub use self::uploading::Uploading;

mod cap;
mod shed;
mod stream;
mod uploading;

/// How long a client may take, whatever the policy says.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From the first byte of a head to its end, and for the TLS handshake.
    pub head: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// How long a client may leave what was sent to it unread.
    pub stall: Duration,
}

/// How long a client has to take the refusal of a head that came too late.
const GRACE: Duration = Duration::from_secs(1);

/// As many of those that overstay end at once, and so much time is between them and the next.
const AT_ONCE: usize = 16;
const BETWEEN: Duration = Duration::from_millis(5);

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
pub type Taker = oneshot::Sender<Watched>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Head,
    Request,
    /// The answer to its last request was written, and what it still sends is read and forgotten.
    Lingering,
}

/// What a connection is doing, and since which tick.
pub struct Activity {
    clock: Rc<Cell<u32>>,
    phase: Cell<Phase>,
    since: Cell<u32>,
    /// The tick after which nothing could be written; 0: nothing waits to be written.
    blocked: Cell<u32>,
    requests: Cell<u32>,
    uploads: Cell<u32>,
    /// HTTP/2 frames between requests are no head.
    http2: Cell<bool>,
    /// Over HTTP/2: whose fields have begun and not ended, and the tick since which that is so.
    unfinished: Cell<Option<(u32, u32)>>,
    closing: Cell<bool>,
    late: Cell<bool>,
    /// Why it gives way to others, if it does, and whether that was told.
    shed: Cell<Option<Rejection>>,
    told: Cell<bool>,
    /// Its place among the connections of the process, for as long as its stream is used.
    place: Cell<Option<Place>>,
    waker: RefCell<Option<Waker>>,
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

    fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.since.set(self.clock.get());
    }

    fn read(&self) {
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

    fn wake(&self) {
        let waker = self.waker.borrow().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn verdict(&self, limits: &Limits) -> Verdict {
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
enum Verdict {
    Stay,
    /// Its head is refused.
    Late,
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
    shedding: Shedding,
    /// Those that overstay.
    ending: RefCell<VecDeque<u64>>,
    cap: Arc<Cap>,
    /// Which of the threads of `cap` this is.
    thread: usize,
}

struct Open {
    client: Weak<Client>,
    task: AbortHandle,
}

impl Connections {
    /// None yet, of this thread of those that share the cap.
    pub fn new(limits: Limits, (cap, thread): (Arc<Cap>, usize)) -> Self {
        Self {
            shedding: Shedding::default(),
            ending: RefCell::default(),
            cap,
            thread,
            clock: Rc::new(Cell::new(1)),
            started: Instant::now(),
            limits,
            open: RefCell::default(),
            next: Cell::new(0),
        }
    }

    /// How long a client may take.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// A place for a connection from this address. Near the cap another gives way to it: one of this thread, or of the
    /// others.
    ///
    /// # Errors
    /// Why there is none.
    pub fn admit(&self, address: IpAddr) -> Result<Place, Rejection> {
        let place = self.cap.take(address)?;
        let refused = self.cap.is_nearly_full()
            && !self.shed_one(Rejection::ConnectionLimit)
            && !self.cap.ask_another(self.thread)
            && self.cap.is_exceeded();
        if refused { Err(Rejection::ConnectionLimit) } else { Ok(place) }
    }

    /// Whether those that give way have to end before others are accepted.
    pub fn is_full(&self) -> bool {
        self.cap.is_full()
    }

    /// Waits until another thread needs a place.
    pub async fn is_asked(&self) {
        self.cap.is_asked(self.thread).await;
    }

    /// Ends as many connections as other threads need places, and says how many more would give way.
    pub fn give_way(&self) {
        for _ in 0..self.cap.asked(self.thread) {
            self.shed_one(Rejection::ConnectionLimit);
        }
        self.cap.gives(self.thread, self.would_give_way());
    }

    /// Runs a connection until it ends or is ended.
    pub fn spawn<F: Future<Output = ()> + 'static>(
        &self,
        peer: Peer,
        arrival: Arrival,
        place: Option<Place>,
        serve: impl FnOnce(Rc<Client>) -> F,
    ) {
        let activity = Rc::new(Activity::new(self.clock.clone()));
        activity.place.set(place);
        let client = Rc::new(Client { peer, activity, arrival, upgrade: Cell::default() });
        let id = self.next.replace(self.next.get() + 1);
        let known = Rc::downgrade(&client);
        let task = tokio::task::spawn_local(serve(client)).abort_handle();
        self.open.borrow_mut().insert(id, Open { client: known, task });
    }

    /// Tells every connection to take no further requests.
    pub fn close_all(&self) {
        for client in self.open.borrow().values().filter_map(|open| open.client.upgrade()) {
            client.activity.close();
        }
    }

    /// Moves the clock and finds what overstays, of which some end at once and the rest by `end_some`.
    pub fn tick(&self, now: Instant) {
        let ticks = now.duration_since(self.started).as_millis() / TICK.as_millis();
        self.clock.set(u32::try_from(ticks).unwrap_or(u32::MAX).max(1));
        let mut ending = self.ending.borrow_mut();
        ending.clear();
        self.open.borrow_mut().retain(|id, open| {
            let Some(client) = open.client.upgrade() else { return false };
            if client.activity.verdict(&self.limits) != Verdict::Stay {
                ending.push_back(*id);
            }
            !open.task.is_finished()
        });
        drop(ending);
        self.end_some();
    }

    /// Ends some of what overstays: thousands may at once, and nobody else is to wait until all of them have ended.
    pub fn end_some(&self) {
        for _ in 0..AT_ONCE {
            let Some(id) = self.ending.borrow_mut().pop_front() else { return };
            let open = self.open.borrow();
            let Some(open) = open.get(&id) else { continue };
            let Some(client) = open.client.upgrade() else { continue };
            let activity = &client.activity;
            match activity.verdict(&self.limits) {
                Verdict::Stay => {}
                Verdict::Late => {
                    activity.late.set(true);
                    activity.wake();
                }
                Verdict::Close => activity.close(),
                Verdict::Cut => open.task.abort(),
            }
        }
    }

    /// Waits until the next of what overstays may end; for ever where nothing does.
    pub async fn more_to_end(&self) {
        if self.ending.borrow().is_empty() {
            std::future::pending().await
        }
        tokio::time::sleep(BETWEEN).await;
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

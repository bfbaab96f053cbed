//! How the body of a request gets on: whoever waits for the worker's answer goes by it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use super::Broken;
use crate::clock;
use crate::connection::{Holding, Uploading};
use crate::rejection::Rejection;

/// For as long in all a worker must have waited for a client before it is the client's doing that the worker gives up: its
/// own patience is not known.
pub(super) const HELD_UP: Duration = Duration::from_secs(1);

/// How the body of a request gets on, and its answer beside it.
pub struct Progress {
    /// For so long both may stand still.
    idle: Duration,
    fault: Cell<Option<Rejection>>,
    /// When a part of either went on last.
    moved: Cell<Instant>,
    waited_for: Cell<bool>,
    /// Since when, and for how long before that.
    waits_since: Cell<Option<Instant>>,
    waited: Cell<Duration>,
    /// When the end went to the worker, by the present try and by the first that came so far.
    sent_at: Cell<Option<Instant>>,
    whole_at: Cell<Option<Instant>>,
    /// Whoever waits for the answer: the end of the body changes until when.
    waiter: RefCell<Option<Waker>>,
    /// Until the end of the body: the client's connection does not rest.
    uploading: Cell<Option<Uploading>>,
    /// What was handed on and may not have left, and what is kept for another try.
    handed_on: Option<RefCell<Holding>>,
    kept: Option<RefCell<Holding>>,
    /// How much of it may have come that nobody asked for.
    ahead: usize,
}

/// What HTTP/2 takes of one body before somebody asks for it, mostly.
const AHEAD: usize = 64 << 10;

/// What the kernel holds meanwhile: what the client has sent to be read, and what waits to be sent to the worker.
const IN_THE_KERNEL: usize = 192 << 10;
/// Shorter parts take too little to be counted.
const SHORT: usize = 4 << 10;

impl Progress {
    /// Of a body of which nothing went on yet.
    pub fn new(idle: Duration, uploading: Option<Uploading>) -> Self {
        let holding = || uploading.as_ref().map(|uploading| RefCell::new(uploading.holding()));
        let ahead = if uploading.as_ref().is_some_and(Uploading::comes_ahead) { AHEAD } else { 0 };
        Self {
            ahead,
            handed_on: holding(),
            kept: holding(),
            idle,
            fault: Cell::default(),
            moved: Cell::new(clock::now()),
            waited_for: Cell::default(),
            waits_since: Cell::default(),
            waited: Cell::default(),
            sent_at: Cell::default(),
            whole_at: Cell::default(),
            waiter: RefCell::default(),
            uploading: Cell::new(uploading),
        }
    }

    /// Whether the worker waits for the client from now on.
    pub(super) fn waits(&self, waits: bool) {
        self.waited_for.set(waits);
        match (waits, self.waits_since.get()) {
            (true, None) => self.waits_since.set(Some(clock::now())),
            (false, Some(since)) => {
                self.waited.set(self.waited.get() + clock::now().saturating_duration_since(since));
                self.waits_since.set(None);
            }
            _ => {}
        }
    }

    /// A part of the body with so many bytes was handed on, and what was handed on before has left.
    pub(super) fn handed_on(&self, bytes: usize) {
        if let Some(holding) = &self.handed_on {
            let all = bytes + IN_THE_KERNEL + self.ahead;
            holding.borrow_mut().is_now(if SHORT < bytes { all } else { 0 });
        }
    }

    /// All that was handed on has left.
    pub fn left(&self) {
        self.handed_on(0);
    }

    /// Whether there is memory to keep so many bytes of the body.
    pub(super) fn may_keep(&self, bytes: usize) -> bool {
        self.kept.as_ref().is_none_or(|kept| kept.borrow_mut().may_become(bytes))
    }

    /// A part of the body or of the answer went on.
    pub fn moved(&self) {
        self.moved.set(clock::now());
    }

    /// The end of the body went on.
    pub(super) fn ended(&self) {
        let now = Some(clock::now());
        self.sent_at.set(now);
        self.uploading.take();
        if self.whole_at.get().is_none() {
            self.whole_at.set(now);
        }
        if let Some(waiter) = self.waiter.take() {
            waiter.wake();
        }
    }

    /// Another try sends the body from its start.
    pub(super) fn begins_again(&self) {
        self.sent_at.set(None);
        self.moved();
    }

    /// The body broke off.
    pub(super) fn broke_off(&self, broken: &Broken) {
        match broken {
            Broken::Off(_) => self.fault.set(Some(Rejection::ClientBody)),
            Broken::Stalled => self.fault.set(Some(Rejection::CLIENT_STOOD_STILL)),
            Broken::GivenUp | Broken::Refused => {}
        }
    }

    /// Whom to wake when the end of the body has gone on.
    pub fn listen(&self, cx: &Context<'_>) {
        let mut waiter = self.waiter.borrow_mut();
        match &mut *waiter {
            Some(waiter) => waiter.clone_from(cx.waker()),
            None => *waiter = Some(cx.waker().clone()),
        }
    }

    /// What the client did wrong, if it did.
    pub fn fault(&self) -> Option<Rejection> {
        self.fault.get()
    }

    /// When the end of the body went to the worker of the present try.
    pub fn sent_at(&self) -> Option<Instant> {
        self.sent_at.get()
    }

    /// When it went to a worker first.
    pub fn whole_at(&self) -> Option<Instant> {
        self.whole_at.get()
    }

    /// When body and answer will have stood still for too long, as things stand.
    pub fn stands_still_at(&self) -> Instant {
        self.moved.get() + self.idle
    }

    /// Waits until both have stood still for too long.
    pub async fn stands_still(&self) {
        while clock::now() < self.stands_still_at() {
            tokio::time::sleep_until(self.stands_still_at().into()).await;
        }
    }

    /// The answer has ended, and the body may go on. Where neither its worker nor its client does anything about it, the
    /// client's connection counts as one that rests in the end.
    pub fn left_alone(self: &Rc<Self>) {
        if self.sent_at.get().is_some() {
            return;
        }
        let left = Rc::downgrade(self);
        let mut until = self.stands_still_at();
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep_until(until.into()).await;
                let Some(progress) = left.upgrade() else { return };
                if progress.stands_still_at() <= until {
                    progress.uploading.take();
                    return;
                }
                until = progress.stands_still_at();
            }
        });
    }

    /// Whether the worker waits for the client just now, and not the client for the worker.
    pub fn waited_for(&self) -> bool {
        self.waited_for.get()
    }

    /// Whether the worker had to wait for the client for so long that it may have given up.
    pub fn held_up_its_worker(&self) -> bool {
        self.holds_up_its_worker_at() <= clock::now()
    }

    /// When that will be so at the earliest, as things stand.
    pub fn holds_up_its_worker_at(&self) -> Instant {
        self.waits_since.get().unwrap_or_else(clock::now) + HELD_UP.saturating_sub(self.waited.get())
    }
}

//! One worker: where it listens, what is known of it, and the permit to send it one request.
//!
//! A worker lives as long as its process: state survives policy changes, and a restarted process is a new worker.

pub mod socket;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use outrigger_policy::effective::BreakerName;
use parking_lot::Mutex;

use self::socket::Listening;
use crate::availability;
use crate::balance::Load;
use crate::balance::measure::{Ended, How};
use crate::breaker::{Call, Era, Failure, Outcome, SharedBreaker};
use crate::canary::Tally;
use crate::drain::worker::{Draining, Serves};
use crate::health::acceptance::{Acceptance, Accepts};
use crate::health::score::Health;
use crate::protocol::{Asking, Spoken};
use crate::rejection::Rejection;
use crate::siblings::Sibling;

/// What the metrics call the proxies of other pods.
const SIBLINGS: &str = "_siblings";

/// One worker of the pod, or another pod's proxy that is chosen like one. What every request touches comes first, in as
/// few cache lines as it fits: over hundreds of workers each line is one more to wait for.
#[repr(C)]
pub struct Worker {
    /// What the strategies look at.
    pub load: Arc<Load>,
    /// What it is where it is another pod's proxy.
    pub sibling: Option<Box<Sibling>>,
    /// Unique among the process's workers: which pool a connection belongs to.
    pub id: u32,
    /// Its place in the metrics.
    pub slot: u16,
    /// What it speaks, where the policy does not say.
    pub speaks: Spoken,
    /// Its answers.
    pub totals: Totals,
    /// Its circuit breaker.
    pub breaker: SharedBreaker,
    /// Its failures.
    pub faults: Faults,
    /// Whether the active health check passes; true where there is none.
    healthy: AtomicBool,
    /// Whether it was ever found healthy, rather than taken for it.
    health_known: AtomicBool,
    /// Whether it is being stopped: it gets no new requests.
    draining: AtomicBool,
    /// Whether it accepts connections, as far as the proxy's own say.
    pub(crate) accepts: Accepts,
    /// Whether it is drained.
    pub drain: Draining,
    /// The name of its container port, or `worker-N`.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Which process listens there.
    pub listening: Listening,
    /// What sessions know it by: a hash of the name, the same in every pod and after every restart.
    pub session_id: u64,
    /// Active checks.
    pub checks: Checks,
    /// Whoever asks what it speaks.
    pub asking: Asking,
    health: Mutex<Health>,
}

/// Counts of every answer since the worker was added.
#[derive(Default)]
#[repr(C)]
pub struct Totals {
    /// Requests that were answered.
    pub answers: AtomicU64,
    /// Time from those requests to the heads of their answers, summed.
    pub latency_micros: AtomicU64,
}

/// Counts of what is rarer.
#[derive(Default)]
pub struct Faults {
    /// Requests that got no answer, by the worker's doing.
    pub unanswered: AtomicU64,
    /// Those, and requests whose answer is a failure.
    pub failures: AtomicU64,
}

/// Active health checks since the worker was added.
#[derive(Default)]
pub struct Checks {
    /// All.
    pub all: AtomicU64,
    /// Those that failed.
    pub failed: AtomicU64,
}

impl Worker {
    /// A worker that is not known to be unhealthy.
    pub fn new(name: &str, address: SocketAddr) -> Arc<Self> {
        Arc::new(Self::known_as(name, address, crate::metrics::worker_slot(name)))
    }

    /// Another pod's proxy. All of them share their place in the metrics: pods come and go.
    pub fn sibling(pod: &str, address: SocketAddr, sibling: Sibling) -> Arc<Self> {
        let worker = Self::known_as(pod, address, crate::metrics::worker_slot(SIBLINGS));
        Arc::new(Self { sibling: Some(Box::new(sibling)), ..worker })
    }

    fn known_as(name: &str, address: SocketAddr, slot: u16) -> Self {
        static NEXT_ID: AtomicU32 = AtomicU32::new(0);
        let load = Arc::<Load>::default();
        load.set_ready(Instant::now());
        Self {
            name: name.to_owned(),
            address,
            listening: Listening::default(),
            session_id: crate::session::worker_id(name),
            load,
            breaker: SharedBreaker::new(BreakerName::Worker(name.to_owned())),
            healthy: AtomicBool::new(true),
            health_known: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            accepts: Accepts::default(),
            drain: Draining::default(),
            checks: Checks::default(),
            health: Mutex::default(),
            id: NEXT_ID.fetch_add(1, Relaxed),
            slot,
            speaks: Spoken::default(),
            asking: Asking::default(),
            totals: Totals::default(),
            faults: Faults::default(),
            sibling: None,
        }
    }

    /// Whether it may be sent a request, and accepts connections.
    pub fn usable(&self, now: Instant) -> bool {
        self.admits(now) && self.acceptance() == Acceptance::Accepting
    }

    /// Whether it may be sent a request: asked of every worker, changes nothing.
    pub fn admits(&self, now: Instant) -> bool {
        self.serves(now, Serves::All)
    }

    /// Whether it may be sent a request of one of its sessions, which a worker that is drained still takes.
    pub fn serves_its_sessions(&self, now: Instant) -> bool {
        self.serves(now, Serves::Sessions)
    }

    fn serves(&self, now: Instant, at_most: Serves) -> bool {
        self.is_up() && self.drain.serves() <= at_most && self.breaker.admits(now)
    }

    fn is_up(&self) -> bool {
        self.healthy.load(Relaxed) && !self.draining.load(Relaxed)
    }

    /// Whether it is healthy and not draining, whatever its breaker says.
    pub fn in_service(&self) -> bool {
        self.is_up() && self.drain.serves() == Serves::All
    }

    /// How well it does, as of the last second.
    pub fn health(&self) -> Health {
        self.health.lock().clone()
    }

    /// How well it does.
    pub fn set_health(&self, health: Health) {
        *self.health.lock() = health;
    }

    /// Takes the right to send one request: asked only of the chosen worker.
    /// `None` when another request took the last permit of a half-open breaker.
    pub fn acquire(self: &Arc<Self>, now: Instant) -> Option<Permit> {
        self.breaker.acquire(now).map(|era| self.permit(era, now))
    }

    /// As `acquire`, though the breaker is open. `None` where people hold it open.
    pub fn pass_over(self: &Arc<Self>, now: Instant) -> Option<Permit> {
        self.breaker.pass_over().map(|era| self.permit(era, now))
    }

    fn permit(self: &Arc<Self>, era: Era, now: Instant) -> Permit {
        self.load.in_flight.fetch_add(1, Relaxed);
        let (answered, finished, failed, excused) = (false, false, false, false);
        Permit { worker: self.clone(), era, since: now, answered, finished, failed, excused, tally: None }
    }

    /// What the active health check found. A worker that becomes healthy starts slowly, where the policy says so.
    pub fn set_healthy(&self, healthy: bool) {
        if healthy {
            self.health_known.store(true, Relaxed);
        }
        let before = self.healthy.swap(healthy, Relaxed);
        if healthy != before {
            availability::changed();
        }
        if healthy && !before {
            self.speaks.forget();
            self.load.set_ready(Instant::now());
        }
    }

    /// Whether it was ever found healthy: a worker that was not may be still starting.
    pub fn health_known(&self) -> bool {
        self.health_known.load(Relaxed)
    }

    /// Whether the active health check passes.
    pub fn healthy(&self) -> bool {
        self.healthy.load(Relaxed)
    }

    /// Takes the worker out of the choice; requests in flight go on.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Relaxed);
        availability::changed();
    }

    /// Whether it is being stopped.
    pub fn draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Requests that were answered or failed, since it was added.
    pub fn requests(&self) -> u64 {
        self.totals.answers.load(Relaxed) + self.faults.unanswered.load(Relaxed)
    }

    /// Requests that failed.
    pub fn failures(&self) -> u64 {
        self.faults.failures.load(Relaxed)
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.load.in_flight.load(Relaxed)
    }
}

/// The right to send one request to one worker. Dropped without an outcome it was abandoned: the client
/// went away or was at fault; that says nothing of the worker, and a half-open breaker gets its permit back.
pub struct Permit {
    worker: Arc<Worker>,
    era: Era,
    /// From when on the worker had what it needs to answer.
    since: Instant,
    /// Whether the head of its answer counted as a good one.
    answered: bool,
    finished: bool,
    /// Its outcome was a failure, which counts once.
    failed: bool,
    /// What comes of the request says nothing of the worker.
    excused: bool,
    /// Where it is counted for its version; none after a failure, which counts once.
    tally: Option<Tally>,
}

impl Permit {
    /// The same, counted for its version.
    #[must_use]
    pub fn counted(mut self, tally: Option<Tally>) -> Self {
        self.tally = tally;
        self
    }

    /// The worker it is for.
    pub fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    /// The client's body had gone to the worker whole at this time: how long the client took for it is not the
    /// worker's doing.
    pub fn body_sent(&mut self, at: Instant) {
        self.since = self.since.max(at);
    }

    /// How long the answer has taken.
    pub fn latency(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// The request is sent now, and not when it came: another worker took the time between.
    pub fn sent_again(&mut self, now: Instant) {
        self.since = now;
    }

    /// The head of an answer is here that is not a failure so far: so fast is the worker.
    pub fn answered(&mut self, now: Instant) {
        self.answered = true;
        self.worker.load.ended(Ended { sent: self.since, now, how: How::Answered });
    }

    /// Whether the next outcomes decide if the worker gets requests again.
    pub fn probes(&self) -> bool {
        self.worker.breaker.half_open()
    }

    /// There is no answer. Where that is the worker's doing it is held against the worker.
    pub fn refused(&mut self, rejection: Rejection, now: Instant) {
        if let Some(failure) = rejection.failure().filter(|_| !self.finished) {
            self.worker.faults.unanswered.fetch_add(1, Relaxed);
            self.finish(Call { outcome: Outcome::Failed(failure), latency: self.latency(now) }, now);
        }
    }

    /// What comes of the request is the client's doing and says nothing of the worker: a half-open breaker gets the permit
    /// back. The request stays in flight until the permit is dropped.
    pub fn excuse(&mut self) {
        self.excused = true;
        if !std::mem::replace(&mut self.finished, true) {
            self.worker.breaker.abandon(self.era);
        }
    }

    /// Whether what comes of the request says nothing of the worker.
    pub fn is_excused(&self) -> bool {
        self.excused
    }

    /// What the request says of the worker. The request stays in flight until the permit is dropped.
    pub fn finish(&mut self, call: Call, now: Instant) {
        if !self.finished {
            self.finished = true;
            if let Some(tally) = &self.tally {
                tally.answered(call.outcome.is_failure(), call.latency);
            }
            if call.outcome.is_failure() {
                self.tally = None;
            }
            self.observe(call, now);
        }
    }

    /// The answer broke off: the request's outcome, or, where that was decided early, a failure after all.
    pub fn broke_off(&mut self, failure: Failure, now: Instant) {
        let call = Call { outcome: Outcome::Failed(failure), latency: self.latency(now) };
        if self.excused || self.failed {
            return;
        }
        if self.finished {
            if let Some(tally) = self.tally.take() {
                tally.failed_late();
            }
            self.observe(call, now);
        } else {
            self.finish(call, now);
        }
    }

    fn observe(&mut self, call: Call, now: Instant) {
        if call.outcome.is_failure() {
            self.failed = true;
            let how = if self.answered { How::FailedAfterHead } else { How::Failed };
            self.worker.load.ended(Ended { sent: self.since, now, how });
            self.worker.faults.failures.fetch_add(1, Relaxed);
        }
        self.worker.breaker.record(self.era, call, now);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.worker.load.in_flight.fetch_sub(1, Relaxed);
        if !self.finished {
            self.worker.breaker.abandon(self.era);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn a_failure_counts_once() {
        let (worker, now) = (Worker::new("fails", ([127, 0, 0, 1], 1).into()), Instant::now());
        let mut permit = worker.acquire(now).expect("no breaker");
        permit.finish(Call { outcome: Outcome::Answered(500), latency: Duration::ZERO }, now);
        permit.broke_off(Failure::Reset, now);
        assert_eq!(worker.failures(), 1, "an error that breaks off is one failure");
        let mut permit = worker.acquire(now).expect("no breaker");
        permit.finish(Call { outcome: Outcome::Answered(200), latency: Duration::ZERO }, now);
        permit.broke_off(Failure::Reset, now);
        permit.broke_off(Failure::Reset, now);
        assert_eq!(worker.failures(), 2, "an answer that began well is one after all");
    }

    #[test]
    fn what_every_request_touches_lies_together() {
        let counts = 2 * size_of::<usize>(); // of the `Arc`, before the worker
        let word = offset_of!(Worker, breaker); // of the breaker's first
        assert!(counts + word + size_of::<AtomicU64>() <= 64, "{word}");
        // From 256 bytes on jemalloc's sizes are multiples of a line's. Of a size that is a power of two all first lines would
        // share a few places of the cache.
        let size = counts + size_of::<Worker>();
        assert!(512 < size && size <= 640, "{size}");
    }
}

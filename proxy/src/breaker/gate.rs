//! The breaker in front of a route or of the service, which the requests of every thread meet.
//!
//! A worker's breaker is told of each outcome under its own short lock. One lock for a whole route would be one that
//! all threads share, so an outcome goes to a shard of the thread's own first. Outcomes leave the shards in the order
//! of their times, for the one state machine: when something went wrong (at once, by whoever finds nobody else at
//! it), when a shard has `BATCH` of them, and at every tick. To ask costs one atomic load, here as there; the few
//! outcomes of a half-open breaker go straight to it.

use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use outrigger_policy::effective::{self, BreakerName, BreakerOverride};

use super::sync::{AtomicU64, Mutex, MutexGuard, Ordering::Relaxed};
use super::{At, Call, Command, Era, NoBreaker, SharedBreaker, View};

#[cfg(not(loom))]
const SHARDS: usize = 16;
#[cfg(loom)]
const SHARDS: usize = 2;

/// Outcomes of one shard that are worth a look.
const BATCH: usize = 64;
/// Outcomes of one shard for which a thread waits until it may look.
const MOST: usize = 4096;

/// A breaker, or none, in front of a route or of the service.
pub struct Gate {
    breaker: SharedBreaker,
    shards: [Shard; SHARDS],
    /// Who holds it brings the outcomes to the breaker. It is a buffer, kept so that it need not be made again.
    moving: Mutex<Vec<Ended>>,
}

/// The outcomes of a thread, on a cache line of their own.
#[repr(align(128))]
struct Shard {
    ended: Mutex<Vec<Ended>>,
    refused: AtomicU64,
}

#[derive(Clone, Copy)]
struct Ended {
    era: Era,
    call: Call,
    at: Instant,
}

/// A request was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    /// How long until one may pass, as far as that is known.
    pub retry_after: Option<Duration>,
}

/// The shard of the calling thread.
pub fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: usize = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % SHARDS;
    }
    SHARD.with(|shard| *shard)
}

impl Gate {
    /// No breaker, with a name for those to come.
    pub fn new(name: BreakerName) -> Self {
        let shard = |_| Shard { ended: Mutex::new(Vec::new()), refused: AtomicU64::new(0) };
        Self {
            breaker: SharedBreaker::new(name),
            shards: std::array::from_fn(shard),
            moving: Mutex::new(Vec::new()),
        }
    }

    /// Which breaker it is.
    pub fn name(&self) -> &BreakerName {
        self.breaker.name()
    }

    /// As `SharedBreaker::configure`.
    pub fn configure(
        &self,
        settings: Option<&effective::Breaker>,
        held: Option<&BreakerOverride>,
        now: Instant,
    ) {
        self.breaker.configure(settings, held, now);
    }

    /// As `SharedBreaker::command`.
    ///
    /// # Errors
    /// That there is no breaker that could be half-open.
    pub fn command(&self, command: Command, now: Instant, unix_millis: i64) -> Result<(), NoBreaker> {
        self.breaker.command(command, now, unix_millis)
    }

    /// Takes the right to send one request, which must be given back by `record` or by `abandon`.
    ///
    /// # Errors
    /// That the breaker is open, or that the request is not of the share that passes after it closed.
    pub fn enter(&self, at: At) -> Result<Era, Refused> {
        let era = self.breaker.takes_share(at.now, at.random).then(|| self.breaker.acquire(at.now)).flatten();
        era.ok_or_else(|| {
            self.shards[shard()].refused.fetch_add(1, Relaxed);
            Refused { retry_after: self.breaker.retry_after(at.now) }
        })
    }

    /// Gives a permit back with its outcome, on the shard of the calling thread.
    pub fn record(&self, shard: usize, era: Era, call: Call, now: Instant) {
        if !self.breaker.counts() || era == Era::NONE {
            return;
        }
        if self.breaker.half_open() {
            self.breaker.record(era, call, now);
            return;
        }
        let waiting = {
            let mut ended = self.shards[shard].ended.lock();
            ended.push(Ended { era, call, at: now });
            ended.len()
        };
        if MOST <= waiting {
            self.bring(self.moving.lock());
        } else if BATCH <= waiting || !call.outcome.is_plain_success() {
            self.bring_if_free();
        }
    }

    fn bring_if_free(&self) {
        if let Some(moving) = self.moving.try_lock() {
            self.bring(moving);
        }
    }

    /// Brings what the shards hold to the breaker, oldest first.
    fn bring(&self, mut moving: MutexGuard<'_, Vec<Ended>>) {
        for shard in &self.shards {
            moving.append(&mut shard.ended.lock());
        }
        moving.sort_by_key(|ended| ended.at); // stable: what one thread saw stays in its order
        for Ended { era, call, at } in moving.drain(..) {
            self.breaker.record(era, call, at);
        }
    }

    /// Gives a permit back without an outcome.
    pub fn abandon(&self, era: Era) {
        self.breaker.abandon(era);
    }

    /// Whether requests pass only to find out how it stands: then is no time for retries.
    pub fn half_open(&self) -> bool {
        self.breaker.half_open()
    }

    /// As `SharedBreaker::tick`, with the outcomes until now.
    pub fn tick(&self, at: At, unix_millis: i64) {
        self.bring(self.moving.lock());
        self.breaker.tick(at, unix_millis);
    }

    /// What can be seen at this time.
    pub fn view(&self, now: Instant) -> View {
        self.bring(self.moving.lock());
        self.breaker.view(now)
    }

    /// Requests that were refused.
    pub fn refused(&self) -> u64 {
        self.shards.iter().map(|shard| shard.refused.load(Relaxed)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breaker::tests::{FAILURE, SUCCESS, call, settings};

    fn gate(settings: &effective::Breaker) -> (Gate, Instant) {
        let (gate, now) = (Gate::new(BreakerName::Service), Instant::now());
        gate.configure(Some(settings), None, now);
        (gate, now)
    }

    fn at(now: Instant) -> At {
        At { now, random: 0 }
    }

    #[test]
    fn a_failure_counts_at_once_and_a_success_at_the_next_look() {
        let (gate, now) = gate(&settings());
        let era = gate.enter(at(now)).expect("closed");
        gate.record(0, era, call(SUCCESS), now);
        assert_eq!(gate.breaker.view(now).calls, 0);
        assert_eq!(gate.view(now).calls, 1);
        gate.record(1, era, call(FAILURE), now);
        assert_eq!(gate.breaker.view(now).calls, 2);
        gate.record(2, era, call(FAILURE), now);
        let refused = gate.enter(at(now)).expect_err("two failures in a row");
        assert_eq!(refused.retry_after, Some(Duration::from_secs(5)));
        assert_eq!(gate.refused(), 1);
    }

    #[test]
    fn outcomes_of_all_shards_count_in_the_order_of_their_times() {
        let (gate, now) = gate(&settings());
        let era = gate.enter(at(now)).expect("closed");
        let later = |millis| now + Duration::from_millis(millis);
        let moving = gate.moving.lock(); // another thread is at it
        gate.record(0, era, call(FAILURE), later(1));
        gate.record(0, era, call(FAILURE), later(3));
        gate.record(1, era, call(SUCCESS), later(2));
        drop(moving);
        let view = gate.view(later(4));
        assert_eq!(
            (view.state, view.consecutive_failures, view.calls),
            ("closed", 1, 3),
            "never two in a row"
        );
    }

    #[test]
    fn a_shard_that_fills_is_emptied() {
        let (gate, now) = gate(&settings());
        let era = gate.enter(at(now)).expect("closed");
        (0..BATCH).for_each(|_| gate.record(3, era, call(SUCCESS), now));
        assert_eq!(gate.breaker.view(now).calls, BATCH as u64);
    }

    #[test]
    fn half_open_lets_few_through_and_closes() {
        let settings = effective::Breaker { permitted_calls_in_half_open: 2, ..settings() };
        let (gate, now) = gate(&settings);
        let era = gate.enter(at(now)).expect("closed");
        (0..2).for_each(|_| gate.record(0, era, call(FAILURE), now));
        let later = now + Duration::from_secs(5);
        let probes = [(); 2].map(|()| gate.enter(at(later)).expect("two probes"));
        assert!(gate.half_open() && gate.enter(at(later)).is_err());
        gate.abandon(probes[0]);
        let probe = gate.enter(at(later)).expect("it was given back");
        gate.record(0, probe, call(SUCCESS), later);
        gate.record(1, probes[1], call(SUCCESS), later);
        assert_eq!(gate.view(later).state, "closed");
    }

    #[test]
    fn without_a_breaker_nothing_is_kept() {
        let (gate, now) = (Gate::new(BreakerName::Service), Instant::now());
        let era = gate.enter(at(now)).expect("no breaker");
        (0..100).for_each(|_| gate.record(0, era, call(FAILURE), now));
        assert!(gate.shards.iter().all(|shard| shard.ended.lock().is_empty()));
    }

    #[test]
    fn every_outcome_of_many_threads_counts_once() {
        const THREADS: usize = 8;
        const EACH: usize = 5000;
        let never = effective::Breaker { consecutive_failures: None, ..settings() };
        let (gate, now) = gate(&never);
        let gate = &gate;
        std::thread::scope(|scope| {
            for shard in 0..THREADS {
                scope.spawn(move || {
                    for i in 0..EACH {
                        let era = gate.enter(at(now)).expect("closed");
                        let outcome = if i % 50 == 0 { FAILURE } else { SUCCESS };
                        gate.record(shard, era, call(outcome), now);
                    }
                });
            }
        });
        let view = gate.view(now);
        assert_eq!((view.calls, view.failures), ((THREADS * EACH) as u64, (THREADS * EACH / 50) as u64));
    }
}

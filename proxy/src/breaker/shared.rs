//! The breaker that concurrent requests meet.
//!
//! While it is closed, or there is none, a request that asks and acquires reads one atomic word and takes no lock.
//! The word is a copy of what the locked state machine says. It may lag behind: a request that is let through by an
//! old word carries the era of that word, and so its outcome counts for nothing. Its own lock protects all else;
//! nothing is read through the word, so relaxed order is enough.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use outrigger_policy::effective;
use parking_lot::{Mutex, MutexGuard};

use super::{Breaker, Era, Outcome, Phase, Transition, View};

/// A worker's breaker, or none. It starts with none.
#[derive(Default)]
pub struct SharedBreaker {
    /// The era and, in the last two bits, what a request may do without asking further.
    word: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    breaker: Option<Breaker>,
    /// The era in which there is no breaker, or the last one of those: eras never repeat.
    without: u64,
}

const DISABLED: u64 = 0;
const CLOSED: u64 = 1;
const ASK: u64 = 2;
const TAG_BITS: u32 = 2;

/// What the word says.
#[derive(Clone, Copy)]
struct Word(u64);

impl Word {
    fn new(era: Era, tag: u64) -> Self {
        Self(era.0 << TAG_BITS | tag)
    }

    fn tag(self) -> u64 {
        self.0 & ((1 << TAG_BITS) - 1)
    }

    fn era(self) -> Era {
        Era(self.0 >> TAG_BITS)
    }
}

impl SharedBreaker {
    /// Puts settings in force. A breaker keeps its state and its counts, see `Breaker::reconfigure`; without
    /// settings there is none, and one that comes back later starts closed.
    pub fn configure(&self, settings: Option<&effective::Breaker>) {
        let mut inner = self.inner.lock();
        match (&mut inner.breaker, settings) {
            (Some(breaker), Some(settings)) => breaker.reconfigure(settings),
            (None, Some(settings)) => {
                let era = Era(inner.without).next();
                inner.breaker = Some(Breaker::in_era(settings, era));
            }
            (Some(breaker), None) => {
                inner.without = breaker.era.next().0;
                inner.breaker = None;
            }
            (None, None) => (),
        }
        self.publish(&inner);
    }

    /// Whether a request may be sent. Changes nothing.
    pub fn admits(&self, now: Instant) -> bool {
        self.word().tag() != ASK
            || self.inner.lock().breaker.as_ref().is_none_or(|breaker| breaker.admits(now))
    }

    /// Takes the right to send one request, which must be given back by `record` or by `abandon`.
    pub fn acquire(&self, now: Instant) -> Option<Era> {
        let word = self.word();
        if word.tag() != ASK {
            return Some(word.era());
        }
        let mut inner = self.inner.lock();
        let era = match &mut inner.breaker {
            Some(breaker) => breaker.acquire(now)?,
            None => Era(inner.without),
        };
        self.publish(&inner);
        Some(era)
    }

    /// Gives a permit back with its outcome.
    pub fn record(&self, era: Era, outcome: Outcome, now: Instant) -> Option<Transition> {
        let mut inner = self.current(era)?;
        let transition = inner.breaker.as_mut()?.record(era, outcome, now);
        if transition.is_some() {
            self.publish(&inner);
        }
        transition
    }

    /// Gives a permit back without an outcome.
    pub fn abandon(&self, era: Era) {
        if self.word().tag() != ASK {
            return; // an era has one state: a permit of a half-open one is of the past now
        }
        if let Some(mut inner) = self.current(era)
            && let Some(breaker) = &mut inner.breaker
        {
            breaker.abandon(era);
        }
    }

    /// Whether requests pass only to find out how it stands, if any do.
    pub fn half_open(&self) -> bool {
        self.word().tag() == ASK
    }

    /// What can be seen at this time.
    pub fn view(&self, now: Instant) -> View {
        self.inner.lock().breaker.as_ref().map_or(View::NONE, |breaker| breaker.view(now))
    }

    /// The lock, unless outcomes of this era decide nothing: it is over, or there is no breaker.
    fn current(&self, era: Era) -> Option<MutexGuard<'_, Inner>> {
        let word = self.word();
        (word.tag() != DISABLED && word.era() == era).then(|| self.inner.lock())
    }

    fn word(&self) -> Word {
        Word(self.word.load(Relaxed))
    }

    /// Called under the lock, after each change of era.
    fn publish(&self, inner: &Inner) {
        let word = match &inner.breaker {
            None => Word::new(Era(inner.without), DISABLED),
            Some(breaker) if matches!(breaker.phase, Phase::Closed) => Word::new(breaker.era, CLOSED),
            Some(breaker) => Word::new(breaker.era, ASK),
        };
        self.word.store(word.0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::breaker::tests::{FAILURE, SUCCESS, settings};

    #[test]
    fn without_a_breaker_everything_passes() {
        let (shared, now) = (SharedBreaker::default(), Instant::now());
        for _ in 0..100 {
            let era = shared.acquire(now).expect("no breaker");
            assert_eq!(shared.record(era, FAILURE, now), None);
        }
        assert!(shared.admits(now));
        assert_eq!(shared.view(now), View::NONE);
    }

    #[test]
    fn configuring_it_starts_a_new_era() {
        let (shared, now) = (SharedBreaker::default(), Instant::now());
        let mut earlier = vec![shared.acquire(now).expect("no breaker")];
        for settings in [Some(settings()), None, Some(settings())] {
            shared.configure(settings.as_ref());
            for era in &earlier {
                (0..3).for_each(|_| assert_eq!(shared.record(*era, FAILURE, now), None));
            }
            assert_eq!(shared.view(now), View::NONE, "nothing was kept, and stragglers decide nothing");
            earlier.push(shared.acquire(now).expect("closed"));
        }
    }

    #[test]
    fn a_change_keeps_its_state() {
        let (shared, now) = (SharedBreaker::default(), Instant::now());
        shared.configure(Some(&settings()));
        let era = shared.acquire(now).expect("closed");
        assert_eq!(shared.record(era, FAILURE, now), None);
        shared.configure(Some(&settings()));
        assert_eq!(shared.record(era, FAILURE, now), Some(Transition::Opened));
        shared.configure(Some(&settings()));
        assert!(!shared.admits(now));
        shared.configure(None);
        assert!(shared.admits(now));
    }

    /// Many threads, a clock that runs fast, and settings that change: in the end nothing is left taken.
    #[test]
    fn no_permit_is_lost_between_threads() {
        const THREADS: u64 = 8;
        const ROUNDS: u64 = 30_000;
        let shared = SharedBreaker::default();
        let probing = effective::Breaker {
            wait_duration_in_open_state: Duration::from_millis(1),
            permitted_calls_in_half_open: 3,
            ..settings()
        };
        shared.configure(Some(&probing));
        let start = Instant::now();
        let (clock, opened, closed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let count = |transition: Option<Transition>| match transition {
            Some(Transition::Closed) => _ = closed.fetch_add(1, Relaxed),
            Some(Transition::Opened | Transition::Reopened) => _ = opened.fetch_add(1, Relaxed),
            None => (),
        };
        let work = |seed: u64| {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut permits = Vec::new();
            for _ in 0..ROUNDS {
                let now = start + Duration::from_micros(clock.fetch_add(50, Relaxed));
                if shared.admits(now) {
                    permits.extend(shared.acquire(now));
                }
                if random.u8(..) < 200 && !permits.is_empty() {
                    let era = permits.swap_remove(random.usize(..permits.len()));
                    match random.u8(..10) {
                        0..6 => count(shared.record(era, SUCCESS, now)),
                        6..9 => count(shared.record(era, FAILURE, now)),
                        _ => shared.abandon(era),
                    }
                }
                match random.u32(..10_000) {
                    0 => shared.configure(None),
                    1..9 => shared.configure(Some(&probing)),
                    _ => (),
                }
            }
            permits.into_iter().for_each(|era| shared.abandon(era));
        };
        let work = &work;
        std::thread::scope(|scope| (0..THREADS).for_each(|seed| drop(scope.spawn(move || work(seed)))));
        assert!(
            [opened, closed].iter().all(|count| 100 < count.load(Relaxed)),
            "it went through every state"
        );
        shared.configure(Some(&probing));
        let inner = shared.inner.lock();
        let breaker = inner.breaker.as_ref().expect("configured");
        if let Phase::HalfOpen { taken, succeeded, permitted } = breaker.phase {
            assert_eq!(taken, succeeded);
            assert!(succeeded < permitted);
        }
    }
}

//! What the breakers of one pod's workers know of each other: whether all of them fail alike, and how many are open.
//!
//! A worker's breaker is for a worker that is worse than its siblings. Where there is a breaker for the service and
//! every sibling that takes requests fails at least half as often as the worker that would open, over the last 16
//! calls of each, nothing would be won by taking that one out: it stays closed, and the service's breaker decides.
//! A sibling that has had no call says nothing, and neither does one that is open itself.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::sync::{AtomicU64, Mutex, Ordering::Relaxed};

/// Calls of each worker that are compared.
const RECENT: u32 = 16;

/// Why a breaker stays closed though a rule says that it must open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    /// The others fail alike: that is for the service's breaker.
    AllAlike,
    /// As many are open as `maxOpenPercent` permits.
    TooManyOpen,
}

impl Held {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            Self::AllAlike => "all workers fail alike: left to the service's breaker",
            Self::TooManyOpen => "as many breakers are open as maxOpenPercent permits",
        }
    }
}

/// What the others see of one breaker. Written under that breaker's lock only.
pub struct Standing(AtomicU64);

const OPEN: u64 = 1 << 63;

impl Default for Standing {
    fn default() -> Self {
        Self(AtomicU64::new(0))
    }
}

/// The last calls: how many, and how many of them were bad.
#[derive(Clone, Copy)]
struct Recent {
    calls: u32,
    bad: u32,
}

impl Standing {
    /// One more call. The last 16 are the lowest bits, how many there are stands above them.
    pub(super) fn note(&self, bad: bool) {
        let before = self.0.load(Relaxed);
        let bits = (before << 1 | u64::from(bad)) & ((1 << RECENT) - 1);
        let calls = (before >> RECENT & 0xff).min(u64::from(RECENT) - 1) + 1;
        self.0.store(before & OPEN | calls << RECENT | bits, Relaxed);
    }

    /// The breaker has closed: nothing is known of it.
    pub(super) fn close(&self) {
        self.0.store(0, Relaxed);
    }

    fn open(&self) {
        self.0.store(self.0.load(Relaxed) | OPEN, Relaxed);
    }

    fn is_open(&self) -> bool {
        self.0.load(Relaxed) & OPEN != 0
    }

    fn recent(&self) -> Recent {
        let word = self.0.load(Relaxed);
        Recent {
            calls: (word >> RECENT & 0xff) as u32,
            bad: (word as u32 & ((1 << RECENT) - 1)).count_ones(),
        }
    }
}

/// The breakers of one pod's workers.
pub struct Pool {
    rules: ArcSwap<Rules>,
    /// Taken when a breaker opens, and only then: two that open at once must not be one too many.
    opening: Mutex<()>,
}

/// Who is in a pool, and what holds there.
#[derive(Default)]
pub struct Rules {
    /// All workers.
    pub members: Vec<Arc<Standing>>,
    /// How many of them may be open, in percent.
    pub max_open_percent: u32,
    /// Whether a breaker of the service is enforced.
    pub has_service_breaker: bool,
}

impl Default for Pool {
    fn default() -> Self {
        Self { rules: ArcSwap::default(), opening: Mutex::new(()) }
    }
}

impl Pool {
    /// Puts other members and rules in force.
    pub fn configure(&self, rules: Rules) {
        self.rules.store(Arc::new(rules));
    }

    /// Opens a breaker that a rule says must open, unless it is to be held closed.
    pub(super) fn try_open(&self, this: &Arc<Standing>) -> Result<(), Held> {
        let rules = self.rules.load();
        if rules.has_service_breaker && rules.all_fail_like(this) {
            return Err(Held::AllAlike);
        }
        if rules.at_most() <= rules.open_beside(this) {
            return Err(Held::TooManyOpen); // seen without the lock: most often it is so for a while
        }
        let _opening = self.opening.lock();
        if rules.at_most() <= rules.open_beside(this) {
            return Err(Held::TooManyOpen);
        }
        this.open();
        Ok(())
    }
}

impl Rules {
    fn others<'a>(&'a self, this: &'a Arc<Standing>) -> impl Iterator<Item = &'a Arc<Standing>> {
        self.members.iter().filter(move |other| !Arc::ptr_eq(other, this))
    }

    fn all_fail_like(&self, this: &Arc<Standing>) -> bool {
        let mine = this.recent();
        let mut compared = 0;
        for other in self.others(this).filter(|other| !other.is_open()) {
            let theirs = other.recent();
            if theirs.calls == 0 {
                continue;
            }
            if theirs.bad == 0 || 2 * theirs.bad * mine.calls < mine.bad * theirs.calls {
                return false;
            }
            compared += 1;
        }
        0 < compared
    }

    fn open_beside(&self, this: &Arc<Standing>) -> usize {
        self.others(this).filter(|other| other.is_open()).count()
    }

    /// Never more than the percentage, but one always may.
    fn at_most(&self) -> usize {
        (self.members.len() * self.max_open_percent as usize / 100).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(workers: usize, max_open_percent: u32, has_service_breaker: bool) -> (Pool, Vec<Arc<Standing>>) {
        let members: Vec<Arc<Standing>> = (0..workers).map(|_| Arc::default()).collect();
        let pool = Pool::default();
        pool.configure(Rules { members: members.clone(), max_open_percent, has_service_breaker });
        (pool, members)
    }

    fn calls(standing: &Standing, bad: u32, good: u32) {
        (0..good).for_each(|_| standing.note(false));
        (0..bad).for_each(|_| standing.note(true));
    }

    #[test]
    fn small_pools_are_rounded_down_and_one_may_always_open() {
        for (workers, percent, expected) in [
            (1, 10, 1),
            (2, 10, 1),
            (2, 50, 1),
            (2, 99, 1),
            (2, 100, 2),
            (3, 34, 1),
            (3, 50, 1),
            (3, 67, 2),
            (3, 100, 3),
            (4, 25, 1),
            (4, 50, 2),
            (4, 75, 3),
            (10, 33, 3),
        ] {
            let (pool, members) = pool(workers, percent, false);
            let opened = members.iter().filter(|member| pool.try_open(member).is_ok()).count();
            assert_eq!(opened, expected, "{percent} % of {workers}");
            members.iter().for_each(|member| member.close());
            assert_eq!(pool.try_open(&members[0]), Ok(()), "those that closed are not counted");
        }
    }

    #[test]
    fn threads_that_open_at_once_never_open_too_many() {
        for _ in 0..200 {
            let (pool, members) = pool(4, 50, false);
            let pool = &pool;
            let opened: usize = std::thread::scope(|scope| {
                let tries: Vec<_> =
                    members.iter().map(|member| scope.spawn(move || pool.try_open(member).is_ok())).collect();
                tries.into_iter().map(|one| usize::from(one.join().expect("no panic"))).sum()
            });
            assert_eq!(opened, 2);
        }
    }

    #[test]
    fn when_all_fail_alike_none_opens() {
        let (pool, members) = pool(3, 100, true);
        members.iter().for_each(|member| calls(member, 5, 20));
        assert_eq!(pool.try_open(&members[0]), Err(Held::AllAlike));
        calls(&members[1], 0, 20);
        assert_eq!(pool.try_open(&members[0]), Ok(()), "one of the others is well");
    }

    #[test]
    fn a_worker_that_is_worse_than_its_siblings_opens() {
        let (pool, members) = pool(3, 100, true);
        calls(&members[0], 8, 8);
        calls(&members[1], 3, 13);
        calls(&members[2], 8, 8);
        assert_eq!(pool.try_open(&members[0]), Ok(()), "3 of 16 are less than half of 8 of 16");
    }

    #[test]
    fn who_has_no_calls_or_is_open_says_nothing() {
        let (pool, members) = pool(3, 100, true);
        calls(&members[0], 16, 0);
        assert_eq!(pool.try_open(&members[0]), Ok(()), "the others had no calls");
        calls(&members[1], 16, 0);
        assert_eq!(pool.try_open(&members[1]), Ok(()), "the first is open, the third had no calls");
    }

    #[test]
    fn a_first_call_that_failed_is_enough_to_be_alike() {
        let (pool, members) = pool(3, 100, true);
        calls(&members[0], 2, 0);
        calls(&members[1], 1, 0);
        calls(&members[2], 1, 0);
        assert_eq!(pool.try_open(&members[0]), Err(Held::AllAlike), "all are down from the start");
    }

    #[test]
    fn without_a_service_breaker_each_is_on_its_own() {
        let (pool, members) = pool(2, 100, false);
        members.iter().for_each(|member| calls(member, 5, 0));
        assert!(members.iter().all(|member| pool.try_open(member).is_ok()));
    }
}

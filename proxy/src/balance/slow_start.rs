//! A member that just became ready gets its full share by and by: its caches are cold, its code is not compiled yet.
//!
//! The shape is Envoy's ("Slow start mode" in its documentation): at the part `t` of the window a member has the part
//! `t^(1/aggression)` of its weight, and at least the minimum. The clock is the worker's own (`Load::ready_at`): it
//! starts when the worker is added or found healthy, and no change of policy touches it. Where every member starts at the
//! same time nobody is held back: there is nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use outrigger_policy::effective::SlowStart;

use super::measure::{self, Load};
use super::{Member, Usable};

pub(super) struct Ramp {
    settings: SlowStart,
    loads: Box<[Arc<Load>]>,
    /// The last member of those that were known at `seen` has its full share from here on, in nanoseconds.
    over: AtomicU64,
    /// How many times workers had become ready when that was found.
    seen: AtomicU64,
}

impl Ramp {
    pub(super) fn new(settings: SlowStart, members: &[Member]) -> Self {
        let loads = members.iter().map(|member| member.load.clone()).collect();
        Self { settings, loads, over: AtomicU64::new(u64::MAX), seen: AtomicU64::new(0) }
    }

    /// The members that have less than their share. Once all have theirs this costs two loads, until another becomes
    /// ready.
    pub(super) fn warming(&self, members: &Usable, now: Instant) -> Usable {
        let (events, nanos) = (measure::times_ready(), measure::nanos(now));
        if self.seen.load(Relaxed) == events && self.over.load(Relaxed) <= nanos {
            return Usable::default();
        }
        let window = u64::try_from(self.settings.window.as_nanos()).unwrap_or(u64::MAX);
        let over = |place: usize| self.loads[place].ready_at().saturating_add(window);
        let warming: Usable = members.iter().filter(|place| nanos < over(*place)).collect();
        let last = warming.iter().map(over).max().unwrap_or(0);
        let first = warming.iter().map(over).min().unwrap_or(0);
        // A millisecond apart is together: the workers were started by one loop.
        if warming == *members && last - first < 1_000_000 {
            return Usable::default();
        }
        self.over.store(last, Relaxed);
        self.seen.store(events, Relaxed);
        warming
    }

    /// What part of its weight a member has, more than 0 and at most 1.
    pub(super) fn part(&self, place: usize, now: Instant) -> f32 {
        let age = measure::nanos(now).saturating_sub(self.loads[place].ready_at());
        let progress = age as f64 / self.settings.window.as_nanos() as f64;
        let least = f64::from(self.settings.min_weight_percent) / 100.0;
        progress.clamp(0.0, 1.0).powf(1.0 / self.settings.aggression.0).max(least) as f32
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrigger_policy::effective::{LoadBalancer, Strategy};
    use outrigger_policy::units::Decimal;

    use super::*;
    use crate::balance::laws::{ALL, members, share_of};
    use crate::balance::{Balance, build};

    const WINDOW: Duration = Duration::from_secs(100);

    fn settings(aggression: f64) -> SlowStart {
        SlowStart { window: WINDOW, min_weight_percent: 10, aggression: Decimal(aggression) }
    }

    fn strategy(strategy: Strategy, members: &[Member]) -> Arc<dyn Balance> {
        build(&LoadBalancer { strategy, slow_start: Some(settings(1.0)) }, members)
    }

    #[test]
    fn the_part_grows_with_the_shape_that_was_asked_for() {
        let members = members(&[1]);
        let start = Instant::now();
        members[0].load.set_ready(start);
        let parts = |aggression| {
            let ramp = Ramp::new(settings(aggression), &members);
            [0, 1, 25, 50, 100, 200]
                .map(|second| (ramp.part(0, start + Duration::from_secs(second)) * 1000.0).round() as u32)
        };
        assert_eq!(parts(1.0), [100, 100, 250, 500, 1000, 1000]);
        assert_eq!(parts(2.0), [100, 100, 500, 707, 1000, 1000]);
        assert_eq!(parts(0.5), [100, 100, 100, 250, 1000, 1000]);
    }

    #[test]
    fn with_every_strategy_a_new_member_begins_with_less_and_ends_with_its_share() {
        for kind in ALL {
            for count in [4, 20] {
                let members = members(&vec![1; count]);
                let start = Instant::now();
                members.iter().for_each(|member| member.load.set_ready(start));
                let joined = start + 2 * WINDOW;
                members[0].load.set_ready(joined);
                let strategy = strategy(kind(), &members);
                let full = 1.0 / count as f64;
                let share = |after: u32| {
                    let now = joined + WINDOW * after / 100;
                    share_of(strategy.as_ref(), &members, 0, now) / full
                };
                let [first, half, whole] = [share(0), share(50), share(100)];
                assert!((0.01..0.25).contains(&first), "{:?} of {count}: {first}", kind());
                assert!((0.35..0.75).contains(&half), "{:?} of {count}: {half}", kind());
                assert!((0.80..1.20).contains(&whole), "{:?} of {count}: {whole}", kind());
            }
        }
    }

    #[test]
    fn members_that_start_together_share_evenly_at_once() {
        let members = members(&[1; 4]);
        let start = Instant::now();
        members.iter().for_each(|member| member.load.set_ready(start));
        for kind in ALL {
            let strategy = strategy(kind(), &members);
            let share = share_of(strategy.as_ref(), &members, 2, start);
            assert!((0.22..0.28).contains(&share), "{:?}: {share}", kind());
        }
    }
}

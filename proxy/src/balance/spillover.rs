//! The pod's own workers first, then siblings in the same zone, then all others.
//!
//! The levels share the requests as Envoy's priority levels do (Envoy, "Priority levels", with its overprovisioning
//! factor): a level can take the usable share of its members times the factor, up to everything. The first takes what
//! it can, the next what it can of the rest, and so on. Where all together cannot take everything, each takes more, in
//! the same proportions. Beyond that the first level is left out while its members have as many requests in flight as
//! the policy allows. Within a level a strategy of its own chooses.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use outrigger_policy::effective;

use super::{Balance, Choice, Load, Usable};

/// All there is to take.
const WHOLE: u64 = 1_000_000;

/// Levels of members, the nearest first.
pub struct Spillover {
    settings: effective::Spillover,
    levels: Vec<Level>,
    /// The loads of all members, by place.
    loads: Vec<Arc<Load>>,
}

/// Members that are equally near.
pub struct Level {
    /// Their places, without those that have no weight.
    pub places: Usable,
    /// Chooses among them.
    pub strategy: Arc<dyn Balance>,
}

impl Spillover {
    /// These levels, the nearest first.
    pub fn new(settings: effective::Spillover, levels: Vec<Level>, loads: Vec<Arc<Load>>) -> Self {
        Self { settings, levels, loads }
    }

    /// How much each level can take.
    fn capacities(&self, usable: &Usable) -> impl Iterator<Item = u64> {
        let rest = self.levels.iter().skip(1).any(|level| !usable.intersection(&level.places).is_empty());
        self.levels.iter().enumerate().map(move |(i, level)| {
            let here = usable.intersection(&level.places);
            if here.is_empty() || (i == 0 && rest && self.is_full(&here)) {
                return 0;
            }
            let (usable, all) = (here.len() as u64, level.places.len() as u64);
            (u64::from(self.settings.overprovisioning_factor) * WHOLE / 100 * usable / all).min(WHOLE)
        })
    }

    fn is_full(&self, here: &Usable) -> bool {
        let Some(most) = self.settings.max_parallel_requests else { return false };
        let in_flight = here.iter().map(|place| u64::from(self.loads[place].in_flight.load(Relaxed)));
        u64::from(most) * here.len() as u64 <= in_flight.sum()
    }

    /// The level that takes this request.
    fn level(&self, usable: &Usable, random: u64) -> Option<&Level> {
        let total: u64 = self.capacities(usable).sum();
        if total == 0 {
            return None;
        }
        let mut point = ((random >> 32) * total.min(WHOLE)) >> 32;
        let mut levels = self.levels.iter().zip(self.capacities(usable));
        let found = levels.find(|(_, capacity)| {
            let found = point < *capacity;
            point = point.saturating_sub(*capacity);
            found
        });
        found.map(|(level, _)| level)
    }
}

impl Balance for Spillover {
    fn pick(&self, choice: &Choice<'_>) -> Option<usize> {
        let level = self.level(choice.usable, choice.random)?;
        let usable = &choice.usable.intersection(&level.places);
        // The level was chosen by one half of the number: the strategy gets the other in its place.
        level.strategy.pick(&Choice { usable, random: choice.random.rotate_left(32), ..*choice })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use outrigger_policy::effective::{LoadBalancer, Strategy};
    use proptest::prelude::*;

    use super::super::{Member, build};
    use super::*;

    fn pick(spillover: &Spillover, usable: &Usable, random: u64) -> Option<usize> {
        spillover.pick(&Choice { usable, now: Instant::now(), random, key: None })
    }

    const SIZES: [usize; 3] = [3, 2, 4];

    fn settings(max_parallel_requests: Option<u32>) -> effective::Spillover {
        effective::Spillover { overprovisioning_factor: 140, max_parallel_requests }
    }

    /// Three levels: places 0 to 2, 3 and 4, 5 to 8.
    fn levels(settings: effective::Spillover) -> Spillover {
        let loads: Vec<Arc<Load>> = (0..9).map(|_| Arc::default()).collect();
        let mut next = 0;
        let levels = SIZES.map(|size| {
            let places: Usable = (next..next + size).collect();
            next += size;
            let members: Vec<_> = (0..9)
                .map(|place| Member {
                    key: place as u64,
                    weight: places.contains(place).into(),
                    cost: 1,
                    load: loads[place].clone(),
                })
                .collect();
            let random = LoadBalancer { strategy: Strategy::Random, slow_start: None };
            Level { places, strategy: build(&random, &members) }
        });
        Spillover::new(settings, levels.into(), loads)
    }

    /// The share of each level, in percent, over evenly spread numbers.
    fn shares(spillover: &Spillover, usable: &[usize]) -> [u32; 3] {
        let usable = usable.iter().copied().collect();
        let mut counts = [0; 3];
        for i in 0..10_000u64 {
            let random = i * (u64::MAX / 10_000) + 77;
            let place = pick(spillover, &usable, random).expect("some are usable");
            assert!(usable.contains(place));
            counts[usize::from(3 <= place) + usize::from(5 <= place)] += 1;
        }
        counts.map(|count| (count + 50) / 100)
    }

    #[test]
    fn levels_share_as_envoys_priorities_do() {
        let all = levels(settings(None));
        assert_eq!(shares(&all, &[0, 1, 2, 3, 4, 5, 6, 7, 8]), [100, 0, 0]);
        assert_eq!(shares(&all, &[0, 1, 3, 4, 5]), [93, 7, 0], "two of three times 1.4");
        assert_eq!(shares(&all, &[0, 3, 4, 5]), [47, 53, 0]);
        assert_eq!(shares(&all, &[0, 3, 5, 6, 7, 8]), [47, 53, 0], "one of two times 1.4 is 70");
        assert_eq!(shares(&all, &[3, 5, 6, 7, 8]), [0, 70, 30]);
        assert_eq!(shares(&all, &[5]), [0, 0, 100]);
        assert_eq!(shares(&all, &[0, 5]), [57, 0, 43], "47 and 35 of 82");
        assert_eq!(pick(&all, &Usable::default(), 0), None);
    }

    #[test]
    fn the_pod_is_left_out_while_it_is_full() {
        let spillover = levels(settings(Some(10)));
        let set = |place: usize, count| spillover.loads[place].in_flight.store(count, Relaxed);
        set(0, 29);
        assert_eq!(shares(&spillover, &[0, 1, 2, 5, 6, 7, 8]), [100, 0, 0]);
        set(1, 1);
        assert_eq!(shares(&spillover, &[0, 1, 2, 5, 6, 7, 8]), [0, 0, 100]);
        assert_eq!(shares(&spillover, &[0, 1, 2]), [100, 0, 0], "nobody else can take it");
        set(5, 1000);
        assert_eq!(shares(&spillover, &[0, 1, 2, 5]), [0, 0, 100], "a sibling says itself when it is full");
    }

    #[test]
    fn the_choice_of_the_level_does_not_bend_the_choice_within() {
        let spillover = levels(settings(None));
        let usable: Usable = [0, 1, 3, 4].into_iter().collect();
        let mut counts = [0u32; 5];
        let mut random = 1u64;
        for _ in 0..40_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            counts[pick(&spillover, &usable, random ^ (random >> 29)).expect("usable")] += 1;
        }
        assert!(counts[0].abs_diff(counts[1]) < 800, "{counts:?}");
        assert!(counts[3].abs_diff(counts[4]) < 200, "{counts:?}");
    }

    proptest! {
        /// As long as somebody is usable somebody is chosen, and nobody else.
        #[test]
        fn whoever_is_chosen_is_usable(mask in 1..512u16, random in any::<u64>(), full in any::<bool>()) {
            let spillover = levels(settings(full.then_some(1)));
            spillover.loads.iter().for_each(|load| load.in_flight.store(9, Relaxed));
            let usable: Usable = (0..9).filter(|place| mask & (1 << place) != 0).collect();
            let place = pick(&spillover, &usable, random);
            prop_assert!(place.is_some_and(|place| usable.contains(place)), "{place:?}");
        }
    }
}

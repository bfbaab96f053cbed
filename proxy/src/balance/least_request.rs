//! The member with the fewest requests in flight for its weight.
//!
//! Of few members all are compared, as in nginx's `least_conn`: `in_flight / weight` decides, and members
//! that are equal share by weight (there in turn, here at random, so that idle members need no shared counter).
//! Of more than that two members, or as many as the policy says, are drawn by weight and the least loaded is taken:
//! nearly as even, and it reads two loads instead of all (Mitzenmacher, "The Power of Two Choices in Randomized Load
//! Balancing", 2001). Where all of them are busy, as many more are drawn: a request should not wait behind another while
//! many have nothing to do (Lu and others, "Join-Idle-Queue", Performance Evaluation 68, 2011), and a worker that has one
//! request at a time needs one connection.

use std::cmp::Ordering;
use std::sync::Arc;

use outrigger_policy::effective;

use super::weights::WeightsNow;
use super::{Balance, Choice, Load, Member, Usable, Weights};

pub(super) struct LeastRequest {
    weights: Weights,
    settings: effective::LeastRequest,
    loads: Box<[Arc<Load>]>,
}

impl LeastRequest {
    pub(super) fn new(weights: Weights, settings: effective::LeastRequest, members: &[Member]) -> Self {
        Self { weights, settings, loads: members.iter().map(|member| member.load.clone()).collect() }
    }

    fn relative_load(&self, weights: &WeightsNow<'_>, place: usize) -> RelativeLoad {
        RelativeLoad { requests: self.loads[place].counts_as(weights.now()), weight: weights.of(place) }
    }

    /// The least loaded of the candidates; each load is read once, as it changes meanwhile.
    fn least(&self, weights: &WeightsNow<'_>, candidates: &Usable, random: u64) -> Option<usize> {
        let mut places = candidates.iter();
        let first = places.next()?;
        let mut least = self.relative_load(weights, first);
        let mut equals = Usable::from_iter([first]);
        for place in places {
            let load = self.relative_load(weights, place);
            match load.compare(least) {
                Ordering::Less => (least, equals) = (load, Usable::from_iter([place])),
                Ordering::Equal => equals.insert(place),
                Ordering::Greater => (),
            }
        }
        weights.draw(&equals, random)
    }

    /// The least loaded of some that are drawn; of equals the first, whose share is its weight's.
    fn least_of_some(&self, weights: &WeightsNow<'_>, candidates: &Usable, random: u64) -> Option<usize> {
        let mut least: Option<(usize, RelativeLoad)> = None;
        weights.draw_some(candidates, random, self.settings.choice_count, |place| {
            let load = self.relative_load(weights, place);
            if least.is_none_or(|(_, least)| load.compare(least).is_lt()) {
                least = Some((place, load));
            }
            least.is_some_and(|(_, least)| least.requests == 0)
        });
        least.map(|(place, _)| place)
    }
}

impl Balance for LeastRequest {
    fn pick(&self, choice: &Choice<'_>) -> Option<usize> {
        let weights = self.weights.at(choice.now);
        let candidates = weights.candidates(choice.usable);
        if self.loads.len() <= self.settings.full_scan {
            self.least(&weights, &candidates, choice.random)
        } else {
            self.least_of_some(&weights, &candidates, choice.random)
        }
    }
}

/// Requests, as `Load::counts_as` has them, for a weight.
#[derive(Clone, Copy)]
struct RelativeLoad {
    requests: u64,
    weight: u32,
}

impl RelativeLoad {
    /// Compares the quotients, crosswise and so exactly.
    fn compare(self, other: Self) -> Ordering {
        let [ours, theirs] =
            [(self, other), (other, self)].map(|(a, b)| u128::from(a.requests) * u128::from(b.weight));
        ours.cmp(&theirs)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;
    use crate::balance::laws::{choice, members};

    const AUTO: effective::LeastRequest = effective::LeastRequest { full_scan: 8, choice_count: 2 };

    fn strategy(settings: effective::LeastRequest, members: &[Member]) -> LeastRequest {
        LeastRequest::new(Weights::new(members, None), settings, members)
    }

    /// Sends `n` requests that never end and says how many each member has.
    fn fill(settings: effective::LeastRequest, weights: &[u32], n: u32) -> Vec<u32> {
        let members = members(weights);
        let strategy = strategy(settings, &members);
        let all = (0..weights.len()).collect();
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..n {
            let place = strategy.pick(&choice(&all, random.u64(..))).expect("all are usable");
            members[place].load.in_flight.fetch_add(1, Relaxed);
        }
        members.iter().map(|member| member.load.in_flight.load(Relaxed)).collect()
    }

    #[test]
    fn few_members_fill_by_weight() {
        assert_eq!(fill(AUTO, &[1, 1, 1], 9), [3, 3, 3]);
        let filled = fill(AUTO, &[4, 2, 1], 70);
        assert!((38..=42).contains(&filled[0]) && (18..=22).contains(&filled[1]), "{filled:?}");
    }

    #[test]
    fn many_members_fill_nearly_evenly() {
        let filled = fill(AUTO, &[1; 100], 10_000);
        assert!(filled.iter().all(|in_flight| (90..=110).contains(in_flight)), "{filled:?}");
    }

    #[test]
    fn many_members_fill_by_weight() {
        let weights: Vec<_> = (0..20).map(|place| if place < 10 { 1 } else { 4 }).collect();
        let filled = fill(AUTO, &weights, 5_000);
        assert!(filled[..10].iter().all(|in_flight| (80..=120).contains(in_flight)), "{filled:?}");
        assert!(filled[10..].iter().all(|in_flight| (370..=430).contains(in_flight)), "{filled:?}");
    }

    #[test]
    fn a_full_scan_of_many_is_even_and_more_choices_are_evener() {
        let scan = effective::LeastRequest { full_scan: usize::MAX, ..AUTO };
        assert_eq!(fill(scan, &[1; 100], 1000), [10; 100]);
        let unevenness = |choice_count| {
            let filled = fill(effective::LeastRequest { full_scan: 0, choice_count }, &[1; 100], 10_000);
            filled.iter().map(|in_flight| in_flight.abs_diff(100).pow(2)).sum::<u32>()
        };
        assert!(unevenness(8) < unevenness(2));
    }

    #[test]
    fn the_busy_member_waits() {
        let members = members(&[1, 1]);
        members[0].load.in_flight.store(1, Relaxed);
        let strategy = strategy(AUTO, &members);
        assert!((0..64).all(|bit| strategy.pick(&choice(&(0..2).collect(), 1 << bit)) == Some(1)));
    }
}

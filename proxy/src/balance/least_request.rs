//! The member with the fewest requests in flight for its weight.
//!
//! Up to `FULL_SCAN` members all are compared, as in nginx's `least_conn`: `in_flight / weight` decides, and members
//! that are equal share by weight (there in turn, here at random, so that idle members need no shared counter).
//! Above that two members are drawn by weight and the less loaded one is taken: nearly as even, and it reads
//! two loads instead of all (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001).

use std::cmp::Ordering;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::{Balance, Load, Member, Usable, Weights};

/// Up to so many members are all compared.
const FULL_SCAN: usize = 8;

pub(super) struct LeastRequest {
    weights: Weights,
    loads: Box<[Arc<Load>]>,
}

impl LeastRequest {
    pub(super) fn new(members: &[Member]) -> Self {
        Self {
            weights: Weights::new(members),
            loads: members.iter().map(|member| member.load.clone()).collect(),
        }
    }

    fn relative_load(&self, place: usize) -> RelativeLoad {
        let in_flight = self.loads[place].in_flight.load(Relaxed);
        RelativeLoad { in_flight, weight: self.weights.of(place) }
    }

    /// The least loaded of the candidates; each load is read once, as it changes meanwhile.
    fn least(&self, candidates: &Usable, random: u64) -> Option<usize> {
        let mut places = candidates.iter();
        let first = places.next()?;
        let mut least = self.relative_load(first);
        let mut equals = Usable::from_iter([first]);
        for place in places {
            let load = self.relative_load(place);
            match load.compare(least) {
                Ordering::Less => (least, equals) = (load, Usable::from_iter([place])),
                Ordering::Equal => equals.insert(place),
                Ordering::Greater => (),
            }
        }
        self.weights.draw(&equals, random)
    }

    fn less_loaded_of_two(&self, candidates: &Usable, random: u64) -> Option<usize> {
        // The halves of `random` serve the two draws: each fills the upper half, which decides.
        let first = self.weights.draw(candidates, random)?;
        let mut others = candidates.clone();
        others.remove(first);
        let Some(second) = self.weights.draw(&others, random << 32) else { return Some(first) };
        let second_is_less = self.relative_load(second).compare(self.relative_load(first)).is_lt();
        Some(if second_is_less { second } else { first }) // equal: the first, whose share is its weight's
    }
}

impl Balance for LeastRequest {
    fn pick(&self, usable: &Usable, random: u64) -> Option<usize> {
        let candidates = self.weights.candidates(usable);
        if self.loads.len() <= FULL_SCAN {
            self.least(&candidates, random)
        } else {
            self.less_loaded_of_two(&candidates, random)
        }
    }
}

/// Requests in flight for a weight.
#[derive(Clone, Copy)]
struct RelativeLoad {
    in_flight: u32,
    weight: u32,
}

impl RelativeLoad {
    /// Compares the quotients, crosswise and so exactly.
    fn compare(self, other: Self) -> Ordering {
        let [ours, theirs] =
            [(self, other), (other, self)].map(|(a, b)| u64::from(a.in_flight) * u64::from(b.weight));
        ours.cmp(&theirs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `n` requests that never end and says how many each member has.
    fn fill(weights: &[u32], n: u32) -> Vec<u32> {
        let members: Vec<_> =
            weights.iter().map(|weight| Member { weight: *weight, load: Arc::default() }).collect();
        let strategy = LeastRequest::new(&members);
        let all = (0..weights.len()).collect();
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..n {
            let place = strategy.pick(&all, random.u64(..)).expect("all are usable");
            members[place].load.in_flight.fetch_add(1, Relaxed);
        }
        members.iter().map(|member| member.load.in_flight.load(Relaxed)).collect()
    }

    #[test]
    fn few_members_fill_by_weight() {
        assert_eq!(fill(&[1, 1, 1], 9), [3, 3, 3]);
        let filled = fill(&[4, 2, 1], 70);
        assert!((38..=42).contains(&filled[0]) && (18..=22).contains(&filled[1]), "{filled:?}");
    }

    #[test]
    fn many_members_fill_nearly_evenly() {
        let filled = fill(&[1; 100], 10_000);
        assert!(filled.iter().all(|in_flight| (90..=110).contains(in_flight)), "{filled:?}");
    }

    #[test]
    fn many_members_fill_by_weight() {
        let weights: Vec<_> = (0..20).map(|place| if place < 10 { 1 } else { 4 }).collect();
        let filled = fill(&weights, 5_000);
        assert!(filled[..10].iter().all(|in_flight| (80..=120).contains(in_flight)), "{filled:?}");
        assert!(filled[10..].iter().all(|in_flight| (370..=430).contains(in_flight)), "{filled:?}");
    }

    #[test]
    fn the_busy_member_waits() {
        let members = [1, 1].map(|weight| Member { weight, load: Arc::<Load>::default() });
        members[0].load.in_flight.store(1, Relaxed);
        let strategy = LeastRequest::new(&members);
        assert!((0..64).all(|bit| strategy.pick(&(0..2).collect(), 1 << bit) == Some(1)));
    }
}

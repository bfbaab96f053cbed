//! Each member in turn, as often as its weight says, its turns spread evenly.
//!
//! The order of turns is nginx's smooth weighted round robin (nginx commit 52327e0627f4, 2012): weights 5, 1, 1
//! give `a a b a c a a`, not `a a a a a b c`. It repeats after as many turns as the weights add up to, so it is
//! computed once, and a request costs a look at the sequence and one exchange of a counter.
//!
//! A turn of a member that is not usable is skipped and used up. Its successor in the sequence therefore does not
//! inherit it: the turns of a member that is down spread over all others, by weight.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::shared::Shared;
use super::weights::{WeightsNow, chance};
use super::{Balance, Choice, Usable, Weights, mix};

pub(super) struct RoundRobin {
    weights: Weights,
    /// Whose turn each is. A place is below `MAX_MEMBERS` and fits a byte.
    turns: Arc<Box<[u8]>>,
    /// Turns used up, those of unusable members too.
    used: AtomicUsize,
}

/// The members' whole weights, and whose turn each is by them.
type Full = Box<[u32]>;
type Turns = Box<[u8]>;

impl RoundRobin {
    pub(super) fn new(weights: Weights) -> Self {
        static TURNS: Shared<Full, Turns> = Shared::new();
        let turns = TURNS.get(weights.full().into(), |weights| smooth(weights));
        Self { turns, weights, used: AtomicUsize::new(0) }
    }

    /// The first turn of a candidate, counted from `used`: how many turns come before it, and whose it is. A member
    /// that starts slowly takes only a part of its turns, at random.
    fn next_turn(&self, candidates: &Usable, used: usize, slow: &Slow<'_>) -> Option<(usize, usize)> {
        let (before, after) = self.turns.split_at(used % self.turns.len());
        let turns = after.iter().chain(before).map(|place| usize::from(*place));
        let mut turns = turns.enumerate().filter(|(_, place)| candidates.contains(*place));
        if slow.weights.are_full() {
            return turns.next();
        }
        let first = turns.clone().next();
        let mut random = slow.random;
        let taken = turns.find(|(_, place)| {
            random = mix(random);
            chance(random) < slow.weights.part(*place)
        });
        taken.or(first)
    }
}

/// Who starts slowly, and what decides how slowly.
struct Slow<'a> {
    weights: WeightsNow<'a>,
    random: u64,
}

impl Balance for RoundRobin {
    fn pick(&self, choice: &Choice<'_>) -> Option<usize> {
        let weights = self.weights.at(choice.now);
        let candidates = weights.candidates(choice.usable);
        if candidates.is_empty() {
            return None; // from here on some turn is a candidate's, and there is a sequence
        }
        let slow = Slow { weights, random: choice.random };
        let mut used = self.used.load(Relaxed);
        loop {
            let (skipped, place) = self.next_turn(&candidates, used, &slow)?;
            // The exchange, where an addition would do for one thread, gives each turn to one request only:
            // shares stay exact however many threads choose. It fails only when another thread went ahead.
            let after = used.wrapping_add(skipped + 1);
            match self.used.compare_exchange_weak(used, after, Relaxed, Relaxed) {
                Ok(_) => return Some(place),
                Err(now) => used = now,
            }
        }
    }
}

/// One round of turns. In each turn every member gains its weight in credit, the richest takes the turn (the first
/// of several) and pays what all gained together.
fn smooth(weights: &[u32]) -> Box<[u8]> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let gains: Vec<i64> = weights.iter().map(|weight| i64::from(weight / divisor)).collect();
    let round: i64 = gains.iter().sum();
    let mut credits = vec![0; gains.len()];
    let turn = |_| {
        let mut richest = 0;
        for place in 0..gains.len() {
            credits[place] += gains[place];
            if credits[richest] < credits[place] {
                richest = place;
            }
        }
        credits[richest] -= round;
        richest as u8
    };
    (0..round).map(turn).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::balance::laws::{choice, members};

    fn strategy(weights: &[u32]) -> RoundRobin {
        RoundRobin::new(Weights::new(&members(weights), None))
    }

    fn picks(strategy: &RoundRobin, usable: &[usize], n: usize) -> Vec<usize> {
        let usable = usable.iter().copied().collect();
        (0..n).map(|_| strategy.pick(&choice(&usable, 0)).expect("some are usable")).collect()
    }

    #[test]
    fn turns_interleave_as_in_nginx() {
        assert_eq!(*smooth(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(*smooth(&[50, 10, 10]), [0, 0, 1, 0, 2, 0, 0], "the divisor changes nothing");
        assert_eq!(*smooth(&[0, 2, 0, 1]), [1, 3, 1]);
        assert!(smooth(&[0, 0]).is_empty());
        assert!(smooth(&[]).is_empty());
    }

    #[test]
    fn turns_of_a_member_that_is_down_do_not_fall_to_its_successor() {
        let strategy = strategy(&[1, 1, 1]);
        assert_eq!(picks(&strategy, &[0, 2], 6), [0, 2, 0, 2, 0, 2]);
    }

    #[test]
    fn threads_share_the_turns_exactly() {
        let strategy = strategy(&[3, 2, 1]);
        let counts = std::thread::scope(|scope| {
            let count = || {
                let all = (0..3).collect();
                let mut counts = [0; 3];
                (0..60_000).for_each(|_| counts[strategy.pick(&choice(&all, 0)).expect("usable")] += 1);
                counts
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
            let counts = threads.into_iter().map(|thread| thread.join().expect("no panic"));
            counts.fold([0; 3], |sum, counts| std::array::from_fn(|i| sum[i] + counts[i]))
        });
        assert_eq!(counts, [120_000, 80_000, 40_000]);
    }

    proptest! {
        /// Of any run of turns each member has its share, but for less than one turn a member.
        #[test]
        fn every_stretch_is_fair(
            weights in prop::collection::vec(0..=100u32, 1..12),
            skip in 0..500usize,
            length in 1..500usize,
        ) {
            prop_assume!(weights.iter().any(|weight| *weight != 0));
            let strategy = strategy(&weights);
            let all: Vec<_> = (0..weights.len()).collect();
            picks(&strategy, &all, skip);
            let picks = picks(&strategy, &all, length);
            let total: u32 = weights.iter().sum();
            for (place, weight) in weights.iter().enumerate() {
                let got = picks.iter().filter(|picked| **picked == place).count() as f64;
                let share = length as f64 * f64::from(*weight) / f64::from(total);
                prop_assert!((got - share).abs() < weights.len() as f64, "{place}: {got} of {share}");
            }
        }

        /// With some down, each of the others has exactly its share of a round.
        #[test]
        fn the_rest_share_by_weight(weights in prop::collection::vec(1..=20u32, 2..8), down in any::<u8>()) {
            let up: Vec<_> = (0..weights.len()).filter(|place| down & (1 << place) == 0).collect();
            prop_assume!(!up.is_empty());
            let strategy = strategy(&weights);
            let divisor = weights.iter().copied().fold(0, gcd);
            let round: u32 = up.iter().map(|place| weights[*place] / divisor).sum();
            let picks = picks(&strategy, &up, round as usize);
            for place in up {
                let got = picks.iter().filter(|picked| **picked == place).count();
                prop_assert_eq!(got as u32, weights[place] / divisor);
            }
        }
    }
}

//! The weights of the members, as every strategy sees them: those of the policy, lessened while a member starts slowly.

use outrigger_policy::effective::SlowStart;
use std::time::Instant;

use super::slow_start::Ramp;
use super::{FEW, Member, Usable, below, mix};

/// How finely a weight can be lessened.
const UNIT: u32 = 1024;
/// How often a drawn member may be thrown away before the draw is done by adding up.
const DRAWS: usize = 16;
/// So often at most some of many are drawn, until an idle one is the best. Where three in four members are busy, both of
/// two are in 56 of 100 draws and all of four in 32; where one in four is, in 6 and in 0.4.
const ROUNDS: u32 = 2;

/// The weights of the members, and who of them takes requests at all.
pub(super) struct Weights {
    weights: Box<[u32]>,
    positive: Usable,
    highest: u32,
    /// `None` where all that have a weight have the same one.
    alias: Option<Alias>,
    ramp: Option<Ramp>,
}

/// The weights at one time.
pub(super) struct WeightsNow<'a> {
    weights: &'a Weights,
    now: Instant,
    /// The members whose weight is less than the policy says.
    warming: Usable,
}

impl Weights {
    pub(super) fn new(members: &[Member], slow_start: Option<SlowStart>) -> Self {
        let weights: Box<[u32]> = members.iter().map(|member| member.weight).collect();
        let positive: Usable = (0..weights.len()).filter(|place| weights[*place] != 0).collect();
        let highest = weights.iter().copied().max().unwrap_or(0);
        let equal = positive.iter().all(|place| weights[place] == highest);
        let alias = (!equal).then(|| Alias::new(&weights));
        Self {
            weights,
            positive,
            highest,
            alias,
            ramp: slow_start.map(|settings| Ramp::new(settings, members)),
        }
    }

    /// How many members there are.
    pub(super) fn len(&self) -> usize {
        self.weights.len()
    }

    /// The weights of the policy.
    pub(super) fn full(&self) -> &[u32] {
        &self.weights
    }

    /// The weights at this time.
    pub(super) fn at(&self, now: Instant) -> WeightsNow<'_> {
        let warming =
            self.ramp.as_ref().map_or_else(Usable::default, |ramp| ramp.warming(&self.positive, now));
        WeightsNow { weights: self, now, warming }
    }
}

impl WeightsNow<'_> {
    /// The usable members that have a weight.
    pub(super) fn candidates(&self, usable: &Usable) -> Usable {
        usable.intersection(&self.weights.positive)
    }

    /// The time of which they are.
    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// Whether nobody starts slowly.
    pub(super) fn are_full(&self) -> bool {
        self.warming.is_empty()
    }

    /// A member's weight, in units that are the same for all.
    pub(super) fn of(&self, place: usize) -> u32 {
        let weight = self.weights.weights[place];
        if self.warming.contains(place) {
            ((weight * UNIT) as f32 * self.part(place)).max(1.0) as u32
        } else {
            weight * UNIT
        }
    }

    /// A member's weight for the highest of all, more than 0 and at most 1.
    pub(super) fn relative(&self, place: usize) -> f32 {
        self.weights.weights[place] as f32 / self.weights.highest as f32 * self.part(place)
    }

    /// What part of its weight a member has, more than 0 and at most 1.
    pub(super) fn part(&self, place: usize) -> f32 {
        match &self.weights.ramp {
            Some(ramp) if self.warming.contains(place) => ramp.part(place, self.now),
            _ => 1.0,
        }
    }

    /// One of the candidates, each as likely as its weight says; `random` covers the whole range of `u64`.
    ///
    /// Of few members the weights are added up. Of many one is drawn from all, and thrown away when it is no
    /// candidate, or, while it starts slowly, as often as it must be: that costs the same for any number.
    pub(super) fn draw(&self, candidates: &Usable, random: u64) -> Option<usize> {
        let equal = self.weights.alias.is_none();
        if equal && self.are_full() {
            let count = candidates.len() as u64;
            return candidates.nth(below(random, count) as usize).filter(|_| count != 0);
        }
        if self.weights.len() <= FEW {
            return self.draw_by_sum(candidates, random);
        }
        let mut random = random;
        for _ in 0..DRAWS {
            let drawn = match &self.weights.alias {
                Some(alias) => alias.draw(random),
                None => candidates.nth(below(random, candidates.len() as u64) as usize)?,
            };
            random = mix(random);
            let kept = !self.warming.contains(drawn) || chance(random) < self.part(drawn);
            if kept && candidates.contains(drawn) {
                return Some(drawn);
            }
            random = mix(random);
        }
        self.draw_by_sum(candidates, random)
    }

    /// Draws candidates by weight, each once: so many and, where the best of them is not idle, as many more. `takes` is
    /// given each, and says whether the best so far is idle.
    pub(super) fn draw_some(
        &self,
        candidates: &Usable,
        random: u64,
        at_once: u32,
        mut takes: impl FnMut(usize) -> bool,
    ) {
        let (mut undrawn, mut random) = (candidates.clone(), random);
        for drawn in 1..=at_once * ROUNDS {
            let Some(place) = self.draw(&undrawn, random) else { break };
            undrawn.remove(place);
            random = mix(random);
            let best_is_idle = takes(place);
            if drawn % at_once == 0 && best_is_idle {
                break;
            }
        }
    }

    fn draw_by_sum(&self, candidates: &Usable, random: u64) -> Option<usize> {
        let total: u64 = candidates.iter().map(|place| u64::from(self.of(place))).sum();
        let mut point = below(random, total);
        candidates.iter().find(|place| {
            let weight = u64::from(self.of(*place));
            let found = point < weight;
            point = point.wrapping_sub(weight);
            found
        })
    }
}

/// A random number as a part of 1.
pub(super) fn chance(random: u64) -> f32 {
    (random >> 40) as f32 / (1u64 << 24) as f32
}

/// Draws one of many by weight in the same short time for any number of them (Walker, "An Efficient Method for
/// Generating Discrete Random Variables with General Distributions", 1977; the table is built as in Vose, 1991).
struct Alias {
    /// Of each column: up to where it is its own member's, and whose it is from there on.
    columns: Box<[(u32, u8)]>,
    total: u64,
}

impl Alias {
    fn new(weights: &[u32]) -> Self {
        let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        let count = weights.len() as u64;
        // Every column is as high as the mean; in units of 1/count that is `total`.
        let mut heights: Vec<u64> = weights.iter().map(|weight| u64::from(*weight) * count).collect();
        let (mut low, mut high): (Vec<_>, Vec<_>) = (0..weights.len()).partition(|i| heights[*i] < total);
        let mut columns = vec![(u32::MAX, 0u8); weights.len()];
        while let (Some(poor), Some(rich)) = (low.pop(), high.pop()) {
            columns[poor] = (u32::try_from(heights[poor]).unwrap_or(u32::MAX), rich as u8);
            heights[rich] -= total - heights[poor];
            if heights[rich] < total { low.push(rich) } else { high.push(rich) }
        }
        Self { columns: columns.into(), total }
    }

    fn draw(&self, random: u64) -> usize {
        let column = below(random, self.columns.len() as u64) as usize;
        let (own, other) = self.columns[column];
        let height = below(mix(random ^ 0xa11a5), self.total);
        if height < u64::from(own) { column } else { usize::from(other) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::laws::members;

    #[test]
    fn the_alias_table_draws_by_weight() {
        let weights: Vec<u32> = (0..40).map(|place| place % 7).collect();
        let total: u32 = weights.iter().sum();
        let alias = Alias::new(&weights);
        let mut counts = vec![0; weights.len()];
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..400_000 {
            counts[alias.draw(random.u64(..))] += 1;
        }
        for (place, weight) in weights.iter().enumerate() {
            let share = 400_000.0 * f64::from(*weight) / f64::from(total);
            assert!(
                (f64::from(counts[place]) - share).abs() < 500.0,
                "{place}: {} of {share}",
                counts[place]
            );
        }
    }

    #[test]
    fn of_many_the_candidates_share_by_weight_however_few_they_are() {
        let weights: Vec<u32> = (0..200).map(|place| 1 + place % 5).collect();
        let weights = Weights::new(&members(&weights), None);
        let now = weights.at(Instant::now());
        for candidates in [vec![3], vec![0, 1, 4], (0..200).step_by(2).collect()] {
            let usable: Usable = candidates.iter().copied().collect();
            let total: u32 = candidates.iter().map(|place| now.of(*place)).sum();
            let mut counts = vec![0u32; 200];
            let mut random = fastrand::Rng::with_seed(9);
            for _ in 0..60_000 {
                counts[now.draw(&usable, random.u64(..)).expect("there are candidates")] += 1;
            }
            for place in candidates {
                let share = 60_000.0 * f64::from(now.of(place)) / f64::from(total);
                let got = f64::from(counts[place]);
                assert!((got - share).abs() < 0.02 * 60_000.0, "{place}: {got} of {share}");
            }
        }
    }
}

//! The cheapest members first, as long as they keep the latency objective; what they cannot take spills over to the next.
//!
//! How much a member can take is found as TCP finds it (Chiu and Jain, "Analysis of the Increase and Decrease Algorithms
//! for Congestion Avoidance in Computer Networks", 1989): its limit of requests in flight rises by one for each round of
//! answers within the objective and falls by a tenth when one is late (`measure::Budget`). A member that fails loses
//! half of it each time, and below one request it is tried again only by and by: failing fast does not make it cheap.
//! Where all are at their limits requests go to the one that is least over.

use std::sync::Arc;

use super::measure::Tick;
use super::weights::WeightsNow;
use super::{Balance, Choice, FEW, Load, Member, Usable, Weights};

pub(super) struct CostAware {
    weights: Weights,
    loads: Box<[Arc<Load>]>,
    /// Members of the same cost, the cheapest first.
    tiers: Box<[Usable]>,
}

impl CostAware {
    pub(super) fn new(weights: Weights, members: &[Member]) -> Self {
        let mut costs: Vec<u32> = members.iter().map(|member| member.cost).collect();
        costs.sort_unstable();
        costs.dedup();
        let of = |cost: &u32| (0..members.len()).filter(|place| members[*place].cost == *cost).collect();
        Self {
            weights,
            loads: members.iter().map(|member| member.load.clone()).collect(),
            tiers: costs.iter().map(of).collect(),
        }
    }

    /// A member's requests in flight for what it can take; below 1 it can take one more.
    fn fullness(&self, weights: &WeightsNow<'_>, place: usize, tick: Tick) -> f32 {
        let load = &self.loads[place];
        let budget = load.budget.at(tick);
        let room = (budget * weights.part(place)).max(budget.min(1.0)); // one at a time it may always be sent
        let requests = load.counts_as(weights.now()) as f32;
        if room < 1.0 { (requests + 1.0) / room } else { requests / room }
    }

    /// Of these the one with the most room, if `below` is not reached; of equals one by weight.
    fn roomiest(&self, look: &Look<'_>, among: &Usable, below: f32) -> Option<usize> {
        let mut lowest = below;
        let mut equals = Usable::default();
        for place in among.iter() {
            // More of two equal members' requests go to the one of more weight.
            let fullness = self.fullness(look.weights, place, look.tick);
            let relative = fullness / look.weights.relative(place);
            if below <= fullness {
                continue;
            }
            if equals.is_empty() || relative < lowest {
                (lowest, equals) = (relative, Usable::from_iter([place]));
            } else if relative == lowest {
                equals.insert(place);
            }
        }
        look.weights.draw(&equals, look.random)
    }

    /// Of many in one tier some are drawn before all are looked at.
    fn in_tier(&self, look: &Look<'_>, candidates: &Usable) -> Option<usize> {
        if FEW < candidates.len()
            && let Some(drawn) = self.roomiest_drawn(look, candidates)
        {
            return Some(drawn);
        }
        self.roomiest(look, candidates, 1.0)
    }

    /// Of two that are drawn, and of two more where the better of them is not idle; `None` where all of them are full.
    fn roomiest_drawn(&self, look: &Look<'_>, candidates: &Usable) -> Option<usize> {
        let mut roomiest = (None, f32::INFINITY);
        look.weights.draw_some(candidates, look.random, 2, |place| {
            let fullness = self.fullness(look.weights, place, look.tick);
            let relative = fullness / look.weights.relative(place);
            if fullness < 1.0 && relative < roomiest.1 {
                roomiest = (Some(place), relative);
            }
            roomiest.0.is_some_and(|place| self.loads[place].is_idle(look.weights.now()))
        });
        roomiest.0
    }
}

/// What a request is chosen by.
struct Look<'a> {
    weights: &'a WeightsNow<'a>,
    tick: Tick,
    random: u64,
}

impl Balance for CostAware {
    fn pick(&self, choice: &Choice<'_>) -> Option<usize> {
        let weights = self.weights.at(choice.now);
        let candidates = weights.candidates(choice.usable);
        let look = Look { weights: &weights, tick: Tick::of(choice.now), random: choice.random };
        let tiers = self.tiers.iter().map(|tier| tier.intersection(&candidates));
        let in_tier = tiers.filter(|tier| !tier.is_empty()).find_map(|tier| self.in_tier(&look, &tier));
        in_tier.or_else(|| self.roomiest(&look, &candidates, f32::INFINITY))
    }
}

#[cfg(test)]
mod tests;

//! The member whose expected time is lowest: what `PeakEwma`, `Predictive` and `BackendUtilization` have in common.
//!
//! A member costs `time * (in_flight / weight + 1)`, which is Finagle's load metric with weights: what is in flight at
//! it waits before the new request, and a weight of 2 makes two waiting requests count as one. Members whose cost
//! is within a band above the lowest are as good as it and share by weight; without the band the one that
//! measured a microsecond less would get everything. Of few members all are compared, of many two that are drawn by
//! weight, and two more where the better of them is not idle (see `least_request`).

use std::sync::Arc;

use super::weights::WeightsNow;
use super::{FEW, Load, Member, Usable, mix};

pub(super) struct LeastCost {
    loads: Box<[Arc<Load>]>,
    /// Up to how many times the lowest cost is as good.
    band: f32,
}

impl LeastCost {
    pub(super) fn new(members: &[Member], band: f32) -> Self {
        Self { loads: members.iter().map(|member| member.load.clone()).collect(), band }
    }

    /// One of the candidates. `time` is what a member with this load takes for a request, infinite for one to be left
    /// alone while there are others.
    pub(super) fn pick(
        &self,
        weights: &WeightsNow<'_>,
        candidates: &Usable,
        random: u64,
        time: impl Fn(&Load) -> f32,
    ) -> Option<usize> {
        let cost = |place: usize| {
            let load = &self.loads[place];
            let waiting = load.counts_as(weights.now()) as f32;
            time(load) * (waiting / weights.relative(place) + 1.0)
        };
        if FEW < self.loads.len()
            && let Some(drawn) = self.cheapest_drawn(weights, candidates, random, cost)
        {
            return Some(drawn);
        }
        self.cheapest(weights, candidates, mix(random), cost)
    }

    /// Of some that are drawn; `None` where all of them are to be left alone.
    fn cheapest_drawn(
        &self,
        weights: &WeightsNow<'_>,
        candidates: &Usable,
        random: u64,
        cost: impl Fn(usize) -> f32,
    ) -> Option<usize> {
        let mut cheapest = (None, f32::INFINITY);
        weights.draw_some(candidates, random, 2, |place| {
            let cost = cost(place);
            if cost * self.band < cheapest.1 {
                cheapest = (Some(place), cost);
            }
            cheapest.0.is_some_and(|place| self.loads[place].is_idle(weights.now()))
        });
        cheapest.0
    }

    fn cheapest(
        &self,
        weights: &WeightsNow<'_>,
        candidates: &Usable,
        random: u64,
        cost: impl Fn(usize) -> f32,
    ) -> Option<usize> {
        let mut costs = [f32::INFINITY; super::MAX_MEMBERS];
        let mut lowest = f32::INFINITY;
        for place in candidates.iter() {
            costs[place] = cost(place);
            lowest = lowest.min(costs[place]);
        }
        let as_good = candidates.iter().filter(|place| costs[*place] <= lowest * self.band).collect();
        weights.draw(&as_good, random)
    }
}

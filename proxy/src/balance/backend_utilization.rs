//! By what workers report of their load in the response header `endpoint-load-metrics` (ORCA, "Open Request Cost
//! Aggregation", as Envoy and gRPC read it).
//!
//! A worker's capacity is its requests a second over its utilization, as in gRPC's weighted round robin (gRFC A58): so
//! many it would take if it were full. Requests that fail add to the utilization, reported or not. The time that a
//! member costs is the inverse of its capacity, and the rest is as in `least_cost`: a member of a tenth of the
//! capacity gets a request once the others have ten in flight, where drawing by capacity would give it a share
//! however much faster the others answer. A member that does not report, not for long enough yet, or no more, counts as
//! the mean of those that do, and one whose capacity was not found for a while counts more and more so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use outrigger_policy::effective;

use super::least_cost::LeastCost;
use super::measure::nanos;
use super::{Balance, Choice, Load, Member, Weights};

/// Reports of equal workers differ by as much.
const BAND: f32 = 1.5;

pub(super) struct BackendUtilization {
    weights: Weights,
    settings: effective::BackendUtilization,
    members: LeastCost,
    loads: Box<[Arc<Load>]>,
    /// The mean capacity of those that report, 0 while none does, and when it is to be computed anew.
    mean: AtomicU32,
    due: AtomicU64,
}

impl BackendUtilization {
    pub(super) fn new(
        weights: Weights,
        settings: &effective::BackendUtilization,
        members: &[Member],
    ) -> Self {
        Self {
            weights,
            settings: settings.clone(),
            loads: members.iter().map(|member| member.load.clone()).collect(),
            members: LeastCost::new(members, BAND),
            mean: AtomicU32::new(0),
            due: AtomicU64::new(0),
        }
    }

    fn mean_capacity(&self, now: u64) -> f32 {
        let (mean, due) = (f32::from_bits(self.mean.load(Relaxed)), self.due.load(Relaxed));
        if now < due {
            return mean;
        }
        let known = self.loads.iter().filter_map(|load| load.utilization.last_capacity(now, &self.settings));
        let (count, sum) = known.fold((0u32, 0.0), |(count, sum), capacity| (count + 1, sum + capacity));
        let mean = if count == 0 { 0.0 } else { sum / count as f32 };
        self.mean.store(mean.to_bits(), Relaxed);
        let period = u64::try_from(self.settings.update_period.as_nanos()).unwrap_or(u64::MAX >> 1);
        self.due.store(now + period, Relaxed);
        mean
    }
}

impl Balance for BackendUtilization {
    fn pick(&self, choice: &Choice<'_>) -> Option<usize> {
        let weights = self.weights.at(choice.now);
        let candidates = weights.candidates(choice.usable);
        let now = nanos(choice.now);
        let mean = match self.mean_capacity(now) {
            0.0 => 1.0, // where nobody is known all are alike but for their failures
            mean => mean,
        };
        self.members.pick(&weights, &candidates, choice.random, |load| {
            1.0 / load.utilization.capacity(now, mean, &self.settings)
        })
    }
}

#[cfg(test)]
mod tests;

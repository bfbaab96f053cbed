//! The member whose response time times its requests in flight is lowest.
//!
//! Response times are moving averages that take a rise whole and a fall by and by (Finagle's `PeakEwma`; Olston and
//! others of Twitter, 2015; its load metric is in `least_cost`). A failure counts as a long response time, so that a
//! worker that fails fast attracts no traffic, and one that answers `Retry-After` is left alone until then. What a
//! member is known for fades while it gets no requests: some time later it is tried again. One that is not known yet is
//! tried with one request at once.

use outrigger_policy::effective;

use super::least_cost::LeastCost;
use super::measure::{Tick, nanos};
use super::{Balance, Choice, Member, Weights};

/// Response times of equal workers differ by as much.
const BAND: f32 = 1.25;

pub(super) struct PeakEwma {
    weights: Weights,
    settings: effective::PeakEwma,
    members: LeastCost,
}

impl PeakEwma {
    pub(super) fn new(weights: Weights, settings: effective::PeakEwma, members: &[Member]) -> Self {
        Self { weights, settings, members: LeastCost::new(members, BAND) }
    }
}

impl Balance for PeakEwma {
    fn pick(&self, choice: &Choice<'_>) -> Option<usize> {
        let weights = self.weights.at(choice.now);
        let candidates = weights.candidates(choice.usable);
        let (tick, now) = (Tick::of(choice.now), nanos(choice.now));
        let decay = self.settings.decay_time.as_secs_f32();
        let unknown = self.settings.default_response_time.as_secs_f32();
        self.members.pick(&weights, &candidates, choice.random, |load| {
            if load.is_to_be_left_alone(now) {
                return f32::INFINITY;
            }
            load.response_time.at(tick, decay).unwrap_or_else(|| load.first_request_costs(unknown))
        })
    }
}

#[cfg(test)]
mod tests;

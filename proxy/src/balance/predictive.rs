//! The member whose response time times its load will be lowest some seconds ahead, if each goes on as now.
//!
//! The mean response time and the mean requests in flight of each interval are smoothed twice, as a level and as its
//! trend, and carried on to the horizon: Holt's linear method (Holt, "Forecasting seasonals and trends by exponentially
//! weighted moving averages", 1957, reprinted in the International Journal of Forecasting 20, 2004), in Wright's form
//! for observations at uneven times (Management Science 32, 1986); `measure::Forecast` computes it. A worker that slows
//! down has a rising trend, and so loses requests before it has become slow; what of a trend may be chance does not count.
//! The load metric is that of `least_cost`, with what the load will have grown by.

use outrigger_policy::effective;

use super::least_cost::LeastCost;
use super::measure::nanos;
use super::{Balance, Choice, Member, Weights};

/// Forecasts of equal workers differ by as much.
const BAND: f32 = 1.25;
/// What a worker that has not answered yet is taken to need while its first requests are under way, in seconds.
const UNKNOWN: f32 = 0.010;

pub(super) struct Predictive {
    weights: Weights,
    settings: effective::Predictive,
    members: LeastCost,
}

impl Predictive {
    pub(super) fn new(weights: Weights, settings: effective::Predictive, members: &[Member]) -> Self {
        Self { weights, settings, members: LeastCost::new(members, BAND) }
    }
}

impl Balance for Predictive {
    fn pick(&self, choice: &Choice<'_>) -> Option<usize> {
        let weights = self.weights.at(choice.now);
        let candidates = weights.candidates(choice.usable);
        let now = nanos(choice.now);
        self.members.pick(&weights, &candidates, choice.random, |load| {
            match load.forecast.ahead(now, &self.settings) {
                Some(ahead) => ahead.response_time * (1.0 + ahead.load_growth),
                None => load.first_request_costs(UNKNOWN),
            }
        })
    }
}

#[cfg(test)]
mod tests;

//! What a data thread remembers of each route's last seconds: how many requests there were and how many of them were
//! sent once more, and how long answers took. Only of routes whose policy asks for it.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use outrigger_policy::effective::{Hedge, HedgeAfter};

use super::budget::Window;
use super::latency::Latency;
use crate::snapshot::Route;

/// The routes of one data thread, by their slot.
pub struct Recent {
    began: Instant,
    routes: RefCell<Vec<OfRoute>>,
}

#[derive(Clone, Debug, Default)]
struct OfRoute {
    retries: Option<Window>,
    hedges: Option<Window>,
    latency: Option<Box<Latency>>,
}

impl Default for Recent {
    fn default() -> Self {
        Self { began: Instant::now(), routes: RefCell::default() }
    }
}

impl Recent {
    /// A request is about to be sent for the first time.
    pub fn request(&self, route: &Route, now: Instant) {
        let retries = route.policy.retry.repeats_sent().then_some(route.policy.retry.budget.interval);
        let hedges = route.policy.hedge.as_ref().map(|hedge| hedge.budget.interval);
        if retries.is_none() && hedges.is_none() {
            return;
        }
        let now = self.time(now);
        self.with(route, |recent| {
            for (window, interval) in [(&mut recent.retries, retries), (&mut recent.hedges, hedges)] {
                if let Some(interval) = interval {
                    current(window, interval).request(now);
                }
            }
        });
    }

    /// Whether a request that was sent may be sent once more: then it counts as sent.
    pub fn may_retry(&self, route: &Route, now: Instant) -> bool {
        let (budget, now) = (&route.policy.retry.budget, self.time(now));
        self.with(route, |recent| {
            current(&mut recent.retries, budget.interval).repeat(budget, &route.allowance.least_retries, now)
        })
    }

    /// Whether a request may be hedged: then it counts as hedged.
    pub fn may_hedge(&self, route: &Route, hedge: &Hedge, now: Instant) -> bool {
        let (budget, now) = (&hedge.budget, self.time(now));
        self.with(route, |recent| {
            current(&mut recent.hedges, budget.interval).repeat(budget, &route.allowance.least_hedges, now)
        })
    }

    /// When an answer is late; `None` while that is not known.
    pub fn late_after(&self, route: &Route, hedge: &Hedge, now: Instant) -> Option<Duration> {
        match hedge.after {
            HedgeAfter::Delay(delay) => Some(delay),
            HedgeAfter::Percentile(percent) => {
                let now = self.time(now);
                self.with(route, |recent| recent.latency.as_mut()?.percentile(percent, now))
            }
        }
    }

    /// The head of an answer came after so long.
    pub fn answered(&self, route: &Route, latency: Duration, now: Instant) {
        let now = self.time(now);
        self.with(route, |recent| recent.latency.get_or_insert_default().record(latency, now));
    }

    fn time(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    fn with<T>(&self, route: &Route, of: impl FnOnce(&mut OfRoute) -> T) -> T {
        let mut routes = self.routes.borrow_mut();
        if routes.len() <= route.slot {
            routes.resize_with(route.slot + 1, OfRoute::default);
        }
        of(&mut routes[route.slot])
    }
}

/// The window of this length: another length begins anew.
fn current(window: &mut Option<Window>, interval: Duration) -> &mut Window {
    if window.as_ref().is_none_or(|window| window.interval() != interval) {
        *window = None;
    }
    window.get_or_insert_with(|| Window::new(interval))
}

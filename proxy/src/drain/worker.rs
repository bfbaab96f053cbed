//! One worker is drained: by the policy, by its pod's annotation, or because an operator asked for it. It gets no new requests but those of its
//! sessions; at the deadline what still runs is told, and then cut.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::availability;
use crate::upgrade::GOODBYE;

/// What a worker may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Serves {
    /// Everything.
    All,
    /// Requests of its sessions; what runs goes on.
    Sessions,
    /// Nothing; tunnels were told to close.
    Goodbye,
    /// Nothing; what still runs is cut.
    Nothing,
}

/// What an operator asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// When it ends by itself.
    pub until: Instant,
    /// Why.
    pub reason: String,
}

/// Whether a worker is drained.
#[derive(Default)]
pub struct Draining {
    serves: AtomicU8,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    order: Option<Order>,
    since: Option<Instant>,
}

impl Draining {
    /// What the worker may be sent: one atomic load.
    pub fn serves(&self) -> Serves {
        match self.serves.load(Relaxed) {
            0 => Serves::All,
            1 => Serves::Sessions,
            2 => Serves::Goodbye,
            _ => Serves::Nothing,
        }
    }

    /// An operator asks for it, or takes it back.
    pub fn order(&self, order: Option<Order>) {
        self.state.lock().order = order;
    }

    /// What an operator asked for, and since when the worker is drained.
    pub fn view(&self, now: Instant) -> (Option<Order>, Option<Instant>) {
        let state = self.state.lock();
        (state.order.clone().filter(|order| now < order.until), state.since)
    }

    /// Goes by what was pushed (`wanted`), the order and the time. Returns what the worker may be sent from now on, when that changes.
    pub fn follow(&self, wanted: bool, timeout: Duration, now: Instant) -> Option<Serves> {
        let mut state = self.state.lock();
        if state.order.as_ref().is_some_and(|order| order.until <= now) {
            state.order = None;
        }
        let serves = if wanted || state.order.is_some() {
            let lasted = now - *state.since.get_or_insert(now);
            if lasted < timeout {
                Serves::Sessions
            } else if lasted < timeout + GOODBYE {
                Serves::Goodbye
            } else {
                Serves::Nothing
            }
        } else {
            state.since = None;
            Serves::All
        };
        let before = self.serves.swap(serves as u8, Relaxed);
        if before == serves as u8 {
            return None;
        }
        availability::changed();
        Some(serves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    #[test]
    fn a_drain_goes_through_its_stages_and_back() {
        let (draining, start) = (Draining::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(draining.follow(false, TIMEOUT, at(0)), None);
        let follow = |policy, seconds| draining.follow(policy, TIMEOUT, at(seconds));
        assert_eq!(follow(true, 10), Some(Serves::Sessions));
        assert_eq!(follow(true, 69), None);
        assert_eq!(follow(true, 70), Some(Serves::Goodbye));
        assert_eq!(follow(true, 71), Some(Serves::Nothing));
        assert_eq!(draining.serves(), Serves::Nothing);
        assert_eq!(follow(false, 80), Some(Serves::All));
        assert_eq!(follow(true, 90), Some(Serves::Sessions), "the deadline counts anew");
    }

    #[test]
    fn an_order_expires_and_the_policy_stays() {
        let (draining, start) = (Draining::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        draining.order(Some(Order { until: at(30), reason: "a new disk".to_owned() }));
        assert_eq!(draining.follow(false, TIMEOUT, at(0)), Some(Serves::Sessions));
        assert_eq!(draining.view(at(1)).0.map(|order| order.reason).as_deref(), Some("a new disk"));
        assert_eq!(draining.view(at(30)).0, None);
        assert_eq!(draining.follow(false, TIMEOUT, at(30)), Some(Serves::All));
        draining.order(Some(Order { until: at(90), reason: String::new() }));
        assert_eq!(draining.follow(true, TIMEOUT, at(31)), Some(Serves::Sessions));
        draining.order(None);
        assert_eq!(draining.follow(true, TIMEOUT, at(32)), None, "the policy asks for it still");
    }
}

//! A strategy put in force for a while, over what the policy says.

use std::time::Instant;

use outrigger_policy::effective::{LoadBalancer, Policy};
use outrigger_policy::spec::LoadBalancerSpec;

/// A switch of the strategy. It ends by itself, or with the next change of the policy.
#[derive(Clone, Debug)]
pub struct Switch {
    /// The route that it is for; `None`: all.
    pub route: Option<String>,
    /// What was asked for.
    pub section: LoadBalancerSpec,
    /// The same, as it is enforced.
    pub load_balancer: LoadBalancer,
    /// Why, in the words of whoever asked.
    pub reason: Option<String>,
    /// When it ends.
    pub until: Instant,
}

impl Switch {
    /// Whether it is for the route of this name.
    pub fn is_for(&self, route: &str) -> bool {
        self.route.as_deref().is_none_or(|own| own == route)
    }

    /// Whether another one leaves nothing of it.
    pub(crate) fn is_replaced_by(&self, other: &Self) -> bool {
        other.route.is_none() || other.route == self.route
    }
}

/// Puts the switches in force: of several for a route the last.
pub(super) fn put_in_force(switches: &[Switch], policy: &mut Policy) {
    for route in &mut policy.routes {
        if let Some(switch) = switches.iter().rev().find(|switch| switch.is_for(&route.name)) {
            route.load_balancer = switch.load_balancer.clone();
        }
    }
}

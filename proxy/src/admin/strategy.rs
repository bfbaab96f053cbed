//! `POST /api/strategy`: another strategy for a while. `DELETE` ends what was put in force so.

use std::time::Instant;

use outrigger_policy::spec::LoadBalancerSpec;
use outrigger_policy::units::DurationText;
use outrigger_policy::{Violation, compile_load_balancer};
use serde::{Deserialize, Serialize};

use super::{Admin, order};
use crate::snapshot::{Snapshot, Switch};

/// What is asked for.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wanted {
    /// As in a policy.
    load_balancer: LoadBalancerSpec,
    /// The route; absent: all.
    route: Option<String>,
    /// How long it lasts.
    expires_in: Option<DurationText>,
    reason: Option<String>,
}

/// A switch in force.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct View {
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    load_balancer: LoadBalancerSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    expires_in_seconds: u64,
}

/// Why nothing was changed.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Refused {
    violations: Vec<Violation>,
}

pub(super) fn views(snapshot: &Snapshot, now: Instant) -> Vec<View> {
    let view = |switch: &Switch| View {
        route: switch.route.clone(),
        load_balancer: switch.section.clone(),
        reason: switch.reason.clone(),
        expires_in_seconds: switch.until.saturating_duration_since(now).as_secs(),
    };
    snapshot.switches.iter().map(view).collect()
}

impl Admin {
    /// Puts in force what the body asks for.
    pub(super) fn switch_strategy(&self, body: &[u8], now: Instant) -> Result<Vec<View>, Refused> {
        let switch =
            read(body, &self.control.snapshot(), now).map_err(|violations| Refused { violations })?;
        let kind = switch.load_balancer.strategy.kind().name();
        tracing::warn!(
            route = switch.route,
            strategy = kind,
            reason = switch.reason,
            "the strategy was switched"
        );
        self.control.switch(switch);
        Ok(views(&self.control.snapshot(), now))
    }

    /// Ends every switch.
    pub(super) fn end_switches(&self, now: Instant) -> Vec<View> {
        let ended = self.control.end_switches(|_| true);
        tracing::info!(ended, "the switch of the strategy was ended");
        views(&self.control.snapshot(), now)
    }
}

/// The switch, or every violation.
fn read(body: &[u8], snapshot: &Snapshot, now: Instant) -> Result<Switch, Vec<Violation>> {
    let violation = |path: &str, reason: String| Violation { path: path.to_owned(), reason };
    let wanted: Wanted =
        serde_json::from_slice(body).map_err(|error| vec![violation("body", error.to_string())])?;
    let mut violations = Vec::new();
    let compiled = compile_load_balancer("loadBalancer", &wanted.load_balancer, &snapshot.policy.workers);
    let load_balancer = compiled.unwrap_or_else(|found| {
        violations.extend(found);
        Default::default()
    });
    if let Some(route) = wanted.route.as_deref().filter(|route| !has_route(snapshot, route)) {
        let names: Vec<_> = snapshot.routes.iter().map(|known| format!("'{}'", known.policy.name)).collect();
        let reason = format!("must be a route of the policy in force ({}), not '{route}'", names.join(", "));
        violations.push(violation("route", reason));
    }
    let lasting = match &wanted.expires_in {
        None => Err(String::from("must be set: a switch ends by itself")),
        Some(text) => order::holds(text),
    };
    if let Some(Err(wrong)) = wanted.reason.as_deref().map(order::check) {
        violations.push(violation("reason", wrong));
    }
    match lasting {
        Ok(lasting) if violations.is_empty() => Ok(Switch {
            route: wanted.route,
            section: wanted.load_balancer,
            load_balancer,
            reason: wanted.reason,
            until: now + lasting,
        }),
        lasting => {
            violations.extend(lasting.err().map(|reason| violation("expiresIn", reason)));
            Err(violations)
        }
    }
}

fn has_route(snapshot: &Snapshot, name: &str) -> bool {
    snapshot.routes.iter().any(|route| route.policy.name == name)
}

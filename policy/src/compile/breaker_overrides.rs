//! The rules of `breakerOverrides`.

use std::collections::HashSet;

use super::Check;
use crate::effective::{BreakerName, BreakerOverride};
use crate::spec::BreakerOverrideSpec;

impl Check {
    pub(super) fn breaker_overrides(&mut self, section: &[BreakerOverrideSpec]) -> Vec<BreakerOverride> {
        let at = "spec.breakerOverrides";
        self.at_most(at, section.len(), 64);
        let mut seen = HashSet::new();
        let mut overrides = Vec::new();
        for (i, one) in section.iter().enumerate() {
            let breaker = BreakerName::parse(&one.breaker);
            match &breaker {
                None => self.violation(
                    &format!("{at}[{i}].breaker"),
                    format!("must be 'worker/NAME', 'route/NAME' or 'service', not '{}'", one.breaker),
                ),
                Some(name) if !seen.insert(name.clone()) => {
                    self.violation(
                        &format!("{at}[{i}].breaker"),
                        format!("must be unique, '{name}' is taken"),
                    );
                }
                Some(_) => (),
            }
            let until = one.until.parse::<jiff::Timestamp>();
            if until.is_err() {
                self.violation(
                    &format!("{at}[{i}].until"),
                    format!("must be a time such as '2030-01-31T18:00:00Z', not '{}'", one.until),
                );
            }
            self.text(&format!("{at}[{i}].reason"), &one.reason, 256);
            if let (Some(breaker), Ok(until)) = (breaker, until) {
                overrides.push(BreakerOverride {
                    breaker,
                    state: one.state,
                    until_unix_millis: until.as_millisecond(),
                    reason: one.reason.clone(),
                });
            }
        }
        overrides
    }
}

//! The rules of `rateLimit`.

use super::{Check, HOUR, MINUTE, SECOND};
use crate::effective;
use crate::spec;

impl Check {
    pub(super) fn limits(
        &mut self,
        at: &str,
        section: Option<&spec::RateLimitSpec>,
    ) -> Vec<effective::Limit> {
        let Some(section) = section else { return Vec::new() };
        self.at_most(&format!("{at}.rules"), section.rules.len(), 16);
        self.unique(&format!("{at}.rules"), section.rules.iter().map(|rule| rule.name.as_str()));
        let rules = section.rules.iter().enumerate();
        rules.map(|(i, rule)| self.limit(&format!("{at}.rules[{i}]"), rule)).collect()
    }

    fn limit(&mut self, at: &str, rule: &spec::RateLimitRuleSpec) -> effective::Limit {
        self.name(&format!("{at}.name"), &rule.name);
        let selector = rule.client_selector.clone().unwrap_or_default();
        let key = match (selector.kind.unwrap_or_default(), selector.header) {
            (spec::ClientSelectorType::SourceAddress, None) => effective::LimitKey::SourceAddress,
            (spec::ClientSelectorType::Header, Some(header)) => {
                self.token(&format!("{at}.clientSelector.header"), &header, 128);
                effective::LimitKey::Header(header.to_ascii_lowercase())
            }
            (spec::ClientSelectorType::Header, None) => {
                self.violation(&format!("{at}.clientSelector.header"), "must be set for the type 'Header'");
                effective::LimitKey::SourceAddress
            }
            (spec::ClientSelectorType::SourceAddress, Some(_)) => {
                self.violation(
                    &format!("{at}.clientSelector.header"),
                    "must not be set for the type 'SourceAddress'",
                );
                effective::LimitKey::SourceAddress
            }
        };
        let requests = self.number(&format!("{at}.limit.requests"), rule.limit.requests, 1..=10_000_000);
        let burst = match rule.limit.burst {
            Some(burst) => self.number(&format!("{at}.limit.burst"), burst, 1..=10_000_000),
            None => requests,
        };
        let period = match rule.limit.unit.unwrap_or_default() {
            spec::LimitUnit::Second => SECOND,
            spec::LimitUnit::Minute => MINUTE,
            spec::LimitUnit::Hour => HOUR,
        };
        effective::Limit { name: rule.name.clone(), key, requests, period, burst }
    }
}

//! Allows or refuses a `ClusterPolicy`, with the validator that proxies use too. Pure.

use outrigger_policy::{Violation, compile, document};
use serde_json::{Value, json};

/// Everything that is wrong with a policy. `object` and `old` are whole resources.
///
/// # Errors
/// All violations.
pub fn validate(object: &Value, old: Option<&Value>) -> Result<(), Vec<Violation>> {
    let metadata = &object["metadata"];
    // Neither somebody who takes off a finalizer or adds a label, nor the end of a policy that a stricter
    // release would refuse, may be held up here.
    if !metadata["deletionTimestamp"].is_null() || old.is_some_and(|old| old["spec"] == object["spec"]) {
        return Ok(());
    }
    let spec = if object["spec"].is_null() { json!({}) } else { object["spec"].clone() };
    let spec = document::read_spec(spec).map_err(|violation| vec![violation])?;
    compile(&spec).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: Value) -> Value {
        json!({"metadata": {"name": "web"}, "spec": spec})
    }

    fn refusal(spec: Value) -> Vec<String> {
        let violations = validate(&policy(spec), None).expect_err("refused");
        violations.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_good_policy_is_allowed() {
        let spec = json!({"loadBalancer": {"type": "LeastRequest"}, "circuitBreaker": {"worker": {}}});
        assert_eq!(validate(&policy(spec), None), Ok(()));
        assert_eq!(validate(&policy(json!({})), None), Ok(()));
        assert_eq!(validate(&json!({"metadata": {"name": "web"}}), None), Ok(()), "all of it is optional");
    }

    #[test]
    fn every_violation_is_named() {
        let spec = json!({
            "priority": 9_999_999,
            "timeout": {"connect": "soon"},
            "rateLimit": {"rules": [{"name": "a", "limit": {"requests": 0}}]},
        });
        let refusal = refusal(spec);
        assert_eq!(refusal.len(), 3, "{refusal:?}");
        assert!(refusal[0].starts_with("spec.priority: must be"), "{refusal:?}");
        assert!(refusal.iter().any(|line| line.starts_with("spec.timeout.connect: ")), "{refusal:?}");
    }

    #[test]
    fn what_does_not_parse_is_refused_with_its_place() {
        let refusal = refusal(json!({"loadBalancer": {"type": "Best"}}));
        let expected =
            "spec.loadBalancer.type: unknown variant `Best`, expected one of `RoundRobin`, `Random`";
        assert!(refusal[0].starts_with(expected) && !refusal[0].contains("line"), "{refusal:?}");
        let refusal = self::refusal(json!({"limits": {}}));
        assert!(refusal[0].contains("unknown field `limits`"), "{refusal:?}");
    }

    #[test]
    fn text_that_would_mean_something_in_yaml_stays_text() {
        let spec = json!({"rateLimit": {"rules": [{"name": "a: &b\n---\n", "limit": {"requests": 1}}]}});
        assert!(refusal(spec)[0].starts_with("spec.rateLimit.rules[0].name: "));
    }

    #[test]
    fn an_old_bad_policy_can_still_be_labelled_and_removed() {
        let bad = policy(json!({"priority": 9_999_999}));
        let mut labelled = bad.clone();
        labelled["metadata"]["labels"] = json!({"a": "b"});
        assert_eq!(validate(&labelled, Some(&bad)), Ok(()));
        let mut leaving = bad.clone();
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(validate(&leaving, None), Ok(()));
        let changed = policy(json!({"priority": 9_999_998}));
        assert!(validate(&changed, Some(&bad)).is_err());
    }
}

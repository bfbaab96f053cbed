//! From the bytes of an `AdmissionReview` to the bytes of the answer. Pure.

use k8s_openapi::api::core::v1::Pod;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use kube::core::response::{StatusCause, StatusDetails, StatusSummary};
use outrigger_policy::Violation;
use outrigger_policy::document::KIND;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::inject::{self, Outcome};
use super::validate;

/// Answers show at most this many violations: the API server passes them on to a terminal.
const SHOWN: usize = 50;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// What came is no `AdmissionReview`.
    #[error("not an AdmissionReview: {0}")]
    NoReview(#[from] serde_json::Error),
    /// It holds no request.
    #[error("the AdmissionReview holds no request")]
    NoRequest,
    /// The patch cannot be written.
    #[error("cannot write the patch: {0}")]
    Patch(#[from] kube::core::admission::SerializePatchError),
}

/// The answer, and how to count it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) body: Vec<u8>,
    pub(super) outcome: &'static str,
}

/// A pod is created.
pub(super) fn injection(
    body: &[u8],
    settings: &inject::Settings,
    trust_bundle: &str,
) -> Result<Answer, Error> {
    let request: AdmissionRequest<Pod> = read(body)?;
    let response = AdmissionResponse::from(&request);
    let Some(pod) = request.object.filter(|_| request.operation == Operation::Create) else {
        return answer(response, "skipped");
    };
    match inject::inject(&pod, settings, trust_bundle) {
        Outcome::Inject(patch) => answer(response.with_patch(patch)?, "injected"),
        Outcome::Skip(None) => answer(response, "skipped"),
        Outcome::Skip(Some(reason)) => {
            tracing::info!(namespace = request.namespace, name = request.name, reason, "no proxy");
            let mut response = response;
            response.warnings = Some(vec![format!("outrigger: {reason}")]);
            answer(response, "skipped")
        }
        Outcome::Refuse(violations) => {
            let name = Some(request.name).filter(|name| !name.is_empty()).or(pod.metadata.generate_name);
            answer(refuse(response, "Pod", name.unwrap_or_default(), &violations), "refused")
        }
    }
}

/// A policy is created or changed.
pub(super) fn validation(body: &[u8]) -> Result<Answer, Error> {
    let request: AdmissionRequest<DynamicObject> = read(body)?;
    let response = AdmissionResponse::from(&request);
    if !matches!(request.operation, Operation::Create | Operation::Update) {
        return answer(response, "allowed");
    }
    let object = json!(request.object);
    let old = request.old_object.map(|old| json!(old));
    match validate::validate(&object, old.as_ref()) {
        Ok(()) => answer(response, "allowed"),
        Err(violations) => answer(refuse(response, KIND, request.name, &violations), "refused"),
    }
}

fn read<T: kube::Resource + DeserializeOwned>(body: &[u8]) -> Result<AdmissionRequest<T>, Error> {
    let review: AdmissionReview<T> = serde_json::from_slice(body)?;
    review.try_into().map_err(|_| Error::NoRequest)
}

fn answer(response: AdmissionResponse, outcome: &'static str) -> Result<Answer, Error> {
    Ok(Answer { body: serde_json::to_vec(&response.into_review())?, outcome })
}

/// Every violation twice: as lines for people, as causes for programs. kubectl makes a list of the causes.
fn refuse(
    response: AdmissionResponse,
    kind: &str,
    name: String,
    violations: &[Violation],
) -> AdmissionResponse {
    let mut lines: Vec<_> = violations.iter().take(SHOWN).map(ToString::to_string).collect();
    if SHOWN < violations.len() {
        lines.push(format!("and {} more", violations.len() - SHOWN));
    }
    let cause = |violation: &Violation| StatusCause {
        reason: "FieldValueInvalid".to_owned(),
        message: violation.reason.clone(),
        field: violation.path.clone(),
    };
    let causes = violations.iter().take(SHOWN).map(cause).collect();
    let mut response = response.deny(lines.join("\n"));
    response.result.status = Some(StatusSummary::Failure);
    response.result.reason = "Invalid".to_owned();
    response.result.code = 422;
    response.result.details = Some(StatusDetails {
        causes,
        name,
        group: String::new(),
        kind: kind.to_owned(),
        uid: String::new(),
        retry_after_seconds: 0,
    });
    response
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::Value;

    use super::*;

    pub(crate) fn review(operation: &str, object: &Value) -> Vec<u8> {
        let kind = json!({"group": "", "version": "v1", "kind": "Pod"});
        let resource = json!({"group": "", "version": "v1", "resource": "pods"});
        json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "1-2-3", "kind": kind, "resource": resource, "name": "web", "namespace": "shop",
                "operation": operation, "userInfo": {}, "object": object, "dryRun": false,
            },
        })
        .to_string()
        .into_bytes()
    }

    fn response(answer: &Answer) -> Value {
        let review: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(review["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(review["response"]["uid"], "1-2-3");
        review["response"].clone()
    }

    fn settings() -> inject::Settings {
        crate::webhook::tests::settings()
    }

    #[test]
    fn a_refusal_lists_every_violation_for_people_and_programs() {
        let policy = json!({"apiVersion": "outrigger.dev/v1alpha1", "kind": "ClusterPolicy",
            "metadata": {"name": "web"}, "spec": {"priority": 9_999_999, "timeout": {"connect": "soon"}}});
        let answer = validation(&review("CREATE", &policy)).expect("answered");
        assert_eq!(answer.outcome, "refused");
        let response = response(&answer);
        assert_eq!(response["allowed"], false);
        let message = response["status"]["message"].as_str().expect("text");
        let lines: Vec<_> = message.lines().collect();
        assert_eq!(lines.len(), 2, "{message}");
        assert!(lines[0].starts_with("spec.priority: ") && lines[1].starts_with("spec.timeout.connect: "));
        let causes = response["status"]["details"]["causes"].as_array().expect("list");
        assert_eq!(causes[1]["field"], "spec.timeout.connect");
        assert_eq!(response["status"]["details"]["kind"], "ClusterPolicy");
    }

    #[test]
    fn a_policy_that_goes_is_never_held_up() {
        let answer = validation(&review("DELETE", &Value::Null)).expect("answered");
        assert_eq!(response(&answer)["allowed"], true);
    }

    #[test]
    fn a_pod_is_patched_or_told_why_not() {
        let mut pod = json!({"metadata": {"name": "web"}, "spec": {"containers": [
            {"name": "app", "ports": [{"name": "worker-a", "containerPort": 8081}]}]}});
        let answer = injection(&review("CREATE", &pod), &settings(), "PEM").expect("answered");
        assert_eq!((answer.outcome, &response(&answer)["patchType"]), ("injected", &json!("JSONPatch")));
        pod["spec"]["containers"][0]["ports"] = json!([]);
        let answer = injection(&review("CREATE", &pod), &settings(), "PEM").expect("answered");
        let response = response(&answer);
        assert_eq!((answer.outcome, &response["allowed"]), ("skipped", &json!(true)));
        let warning = response["warnings"][0].as_str().expect("text");
        assert!(warning.starts_with("outrigger: no proxy was injected") && warning.len() <= 256);
    }

    #[test]
    fn what_is_no_review_is_an_error() {
        for body in
            ["", "{}", "[]", "{\"kind\": \"AdmissionReview\", \"apiVersion\": \"admission.k8s.io/v1\"}"]
        {
            assert!(validation(body.as_bytes()).is_err(), "{body}");
            assert!(injection(body.as_bytes(), &settings(), "PEM").is_err(), "{body}");
        }
        let deep = "[".repeat(100_000);
        assert!(validation(deep.as_bytes()).is_err(), "nesting is bounded");
    }
}

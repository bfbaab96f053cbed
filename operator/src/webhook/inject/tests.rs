//! Golden tests: `tests/golden/inject/*.input.yaml` is a pod, `*.golden.yaml` what becomes of it. `UPDATE=1`
//! rewrites the latter.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::*;
use crate::webhook::tests::settings;

const BUNDLE: &str = "-----BEGIN CERTIFICATE-----\nbundle\n-----END CERTIFICATE-----\n";

fn patched(pod: &Value, patch: &Patch) -> Value {
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, patch).expect("the patch applies");
    pod
}

fn typed(pod: &Value) -> Pod {
    serde_json::from_value(pod.clone()).expect("a pod")
}

/// What a reader of the golden file is to see.
fn shown(pod: &Value) -> Value {
    match inject(&typed(pod), &settings(), BUNDLE) {
        Outcome::Inject(patch) => patched(pod, &patch),
        Outcome::Skip(None) => json!({"skipped": true}),
        Outcome::Skip(Some(reason)) => json!({"skipped": reason}),
        Outcome::Refuse(violations) => {
            json!({"refused": violations.iter().map(ToString::to_string).collect::<Vec<_>>()})
        }
    }
}

fn inputs() -> Vec<(String, Value)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/inject");
    let mut inputs: Vec<_> = fs::read_dir(directory)
        .expect("the golden files")
        .map(|entry| entry.expect("readable").path().to_string_lossy().into_owned())
        .filter(|path| path.ends_with(".input.yaml"))
        .map(|path| {
            let pod = serde_yaml::from_str(&fs::read_to_string(&path).expect("readable")).expect("YAML");
            (path, pod)
        })
        .collect();
    inputs.sort_by(|a, b| a.0.cmp(&b.0));
    inputs
}

#[test]
fn pods_become_what_the_golden_files_say() {
    let inputs = inputs();
    assert!(8 <= inputs.len());
    for (path, pod) in inputs {
        let golden = path.replace(".input.yaml", ".golden.yaml");
        let found = serde_yaml::to_string(&shown(&pod)).expect("YAML");
        let found = found.replace(env!("CARGO_PKG_VERSION"), "VERSION");
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&golden, found).expect("written");
            continue;
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(found, expected, "{golden}: UPDATE=1 rewrites it");
    }
}

#[test]
fn asked_again_nothing_changes() {
    let mut injected = 0;
    for (path, pod) in inputs() {
        if let Outcome::Inject(patch) = inject(&typed(&pod), &settings(), BUNDLE) {
            injected += 1;
            let again = inject(&typed(&patched(&pod, &patch)), &settings(), BUNDLE);
            assert_eq!(again, Outcome::Skip(None), "{path}");
        }
    }
    assert!(0 < injected);
}

#[test]
fn a_patch_only_adds() {
    for (path, pod) in inputs() {
        if let Outcome::Inject(patch) = inject(&typed(&pod), &settings(), BUNDLE) {
            assert!(patch.0.iter().all(|one| matches!(one, PatchOperation::Add(_))), "{path}");
            let after = patched(&pod, &patch);
            for part in ["containers", "securityContext", "serviceAccountName"] {
                assert_eq!(pod["spec"][part], after["spec"][part], "{path}");
            }
        }
    }
}

/// The parts of the Pod Security Standard `restricted` that concern a container and its volumes.
#[test]
fn the_sidecar_is_restricted() {
    let container = json!(sidecar::container(&settings(), &[], BUNDLE));
    let context = &container["securityContext"];
    assert_eq!(context["runAsNonRoot"], true);
    assert_ne!(context["runAsUser"], 0);
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(context["readOnlyRootFilesystem"], true);
    assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(context["seccompProfile"], json!({"type": "RuntimeDefault"}));
    assert!(context["privileged"].is_null());
    assert!(container["ports"].as_array().expect("list").iter().all(|port| port["hostPort"].is_null()));
    for volume in sidecar::volumes() {
        assert!(volume.empty_dir.is_some() || volume.projected.is_some(), "{}", volume.name);
    }
}

#[test]
fn an_empty_amount_is_no_amount() {
    let settings =
        Settings { proxy_cpu_limit: String::new(), proxy_memory_limit: String::new(), ..settings() };
    let container = json!(sidecar::container(&settings, &[], BUNDLE));
    assert!(container["resources"]["limits"].is_null());
    assert_eq!(container["resources"]["requests"]["cpu"], "100m");
}

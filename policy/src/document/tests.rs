use super::*;

const HEAD: &str = "apiVersion: outrigger.dev/v1alpha1\nkind: ClusterPolicy\nmetadata: {name: web}\n";

fn with(rest: &str) -> String {
    format!("{HEAD}{rest}")
}

fn spec(text: &str) -> Spec {
    let mut documents = read(text).unwrap_or_else(|violations| panic!("{text}\n{violations:#?}"));
    assert_eq!(documents.len(), 1, "{text}");
    documents.remove(0).spec
}

/// What is said of it, one line for each thing.
fn said(text: &str) -> Vec<String> {
    let violations = read(text).expect_err(text);
    violations.iter().map(ToString::to_string).collect()
}

fn retries(text: &str) -> Option<u32> {
    spec(text).retry.and_then(|retry| retry.num_retries)
}

#[test]
fn several_documents_are_read() {
    let policy = with("spec: {retry: {numRetries: 1}}");
    for text in [
        format!("{policy}\n---\n---\n{policy}\n"),
        format!("---\n{policy}\n--- # the next\n{policy}\n...\n"),
        format!("{policy}\n...\n{policy}\n...\n# nothing\n---\n").replace('\n', "\r\n"),
        format!("\u{feff}# nothing\n%YAML 1.1\n---\n{policy}\n---\n{policy}\n--- ~"),
    ] {
        let names: Vec<_> = read(&text).expect("valid").into_iter().map(|document| document.name).collect();
        assert_eq!(names, ["web", "web"], "{text}");
    }
}

#[test]
fn it_is_the_yaml_that_kubectl_takes() {
    for (rest, retries) in [
        ("spec: {retry: {numRetries: 3}}", Some(3)),
        ("spec:\r\n  retry:\r\n    numRetries: 3\r\n", Some(3)),
        ("spec: {retry: {numRetries: 010}}", Some(8)),
        (r#""spec": {"retry": {"numRetries": 3}}, "#, None),
        ("spec: {retry: &r {numRetries: 3}, routes: [{name: a, match: {}, retry: *r}]}", Some(3)),
        ("spec: {retry: {<<: &r {numRetries: 3}, retryOn: {}}}", Some(3)),
        (
            "spec: {routes: [{name: a, match: {}, retry: &r {numRetries: 3}}], retry: {<<: *r, numRetries: 4}}",
            Some(4),
        ),
        ("spec: {retry: {numRetries: 3}}\nstatus: {anything: [1, ~]}", Some(3)),
        ("spec: {}", None),
    ] {
        if let Some(json) = rest.strip_suffix(", ") {
            let text = format!(
                r#"{{"apiVersion": "{API_VERSION}", "kind": "{KIND}", "metadata": {{"name": "a", "labels": {{"b": "c"}}}}, {json}}}"#
            );
            assert_eq!(self::retries(&text), Some(3), "JSON is YAML");
            continue;
        }
        assert_eq!(self::retries(&with(rest)), retries, "{rest}");
    }
    let booleans = spec(&with("spec: {workers: [{name: a, drain: yes}, {name: b, drain: false}]}"));
    assert_eq!(booleans.workers.map(|workers| workers[0].drain), Some(Some(true)));
}

#[test]
fn nothing_is_no_policy() {
    for text in ["", "\n", "# spec: {}\n", "---\n", "---\n---\n", "null", "\u{feff}", "...\n"] {
        let said = said(text);
        assert_eq!(
            said,
            ["there is no ClusterPolicy in it; a policy without rules has 'spec: {}'"],
            "{text:?}"
        );
    }
    assert_eq!(spec(&with("spec: {}")), Spec::default());
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    for (rest, expected) in [
        ("", "spec: is missing; a policy without rules has 'spec: {}'"),
        ("spec:", "spec: has no content; a policy without rules has 'spec: {}'"),
        ("spec: null", "spec: has no content"),
        ("spec: []", "spec: must be a mapping (line 4, column 7)"),
        (
            "spce: {}",
            "spce: unknown field, expected one of 'apiVersion', 'kind', 'metadata', 'spec', 'status'",
        ),
        ("spec: {}\nrules: {}", "rules: unknown field"),
        ("spec:\n  retry:\n  numRetries: 3", "spec.retry: has no content: give it some, or remove the field"),
        ("spec: {routes: [~]}", "spec.routes[0]: has no content"),
        ("spec: {limit: 1}", "spec.limit: unknown field `limit`, expected one of"),
        ("spec: {retry: {numRetrys: 1}}", "spec.retry.numRetrys: unknown field `numRetrys`"),
        ("spec: {workers: [{name: a, wieght: 1}]}", "spec.workers[0].wieght: unknown field `wieght`"),
        (
            "spec: {loadBalancer: {type: Best}}",
            "spec.loadBalancer.type: unknown variant `Best`, expected one of",
        ),
        (
            "spec: {retry: {numRetries: x}}",
            "spec.retry.numRetries: must be a whole number, and not negative (line 4,",
        ),
        ("spec: {retry: {numRetries: -1}}", "spec.retry.numRetries: must be a whole number"),
        ("spec: {retry: {numRetries: 1}, retry: {}}", "spec: 'retry' is there twice (line 4, column 32)"),
        ("spec: {}\nspec: {}", "line 5, column 1: 'spec' is there twice"),
        (
            "spec: {workers: [{name: on}]}",
            "spec.workers[0].name: 'on' would be a number or a boolean to other tools",
        ),
        ("spec: {retry: !secret {}}", "spec: unsupported tag `!secret`"),
        ("spec: *w", "line 4, column 7: alias references unknown anchor"),
        ("spec: {retry: &a {<<: *a}}", "spec.retry: recursive references"),
        ("spec: {retry: {<<: 3}}", "spec.retry: YAML merge value must be mapping"),
        ("spec: {", "spec: unclosed bracket '{' (line 4, column 7)"),
        ("spec:\n\tretry: {}", "line 5, column 2: tabs disallowed"),
        ("spec: {}\n}", "line 5, column 1: misplaced bracket"),
        ("spec: {}\n---\n- a\n", "it must be a ClusterPolicy, with the fields 'apiVersion'"),
        (
            "spec: {}\n---\nspec: {retry: [}\n",
            "spec.retry: mismatched bracket '[' closed by '}' (line 6, column 15)",
        ),
    ] {
        let said = said(&with(rest));
        assert!(said.iter().any(|line| line.starts_with(expected)), "{rest:?}\n{said:#?}\n{expected}");
    }
    for (from, to, expected) in [
        ("ClusterPolicy", "Pod", "kind: must be 'ClusterPolicy', not \"Pod\""),
        ("v1alpha1", "v2", "apiVersion: must be 'outrigger.dev/v1alpha1', not \"outrigger.dev/v2\""),
        ("kind: ClusterPolicy\n", "", "kind: is missing; must be 'ClusterPolicy'"),
        ("metadata: {name: web}\n", "", "metadata: is missing; must have a 'name'"),
        ("{name: web}", "{name: ''}", "metadata.name: is missing"),
        ("{name: web}", "{nmae: web}", "metadata.nmae: unknown field"),
    ] {
        let said = said(&with("spec: {}").replace(from, to));
        assert!(said.iter().any(|line| line.starts_with(expected)), "{said:#?}\n{expected}");
    }
    let both = said(&format!("{}\n---\n{}", with("spec: {limit: 1}"), with("spec: {retry: ~}")));
    assert_eq!(both.len(), 2, "every document is read: {both:?}");
}

#[test]
fn a_spec_that_is_no_text_is_read_alike() {
    assert_eq!(read_spec(serde_json::json!({})), Ok(Spec::default()));
    let wrong = read_spec(serde_json::json!({"retry": {"numRetries": "x"}})).expect_err("no number");
    assert_eq!(wrong.path, "spec.retry.numRetries");
    assert_eq!(read_spec(serde_json::json!([1])).expect_err("no spec").path, "spec");
}

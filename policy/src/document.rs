//! Policies in files: the same YAML that `kubectl apply` takes, one or several documents.

use serde::Deserialize;

use crate::compile::Violation;
use crate::spec::Spec;

/// The API group and version of `ClusterPolicy`.
pub const API_VERSION: &str = "outrigger.dev/v1alpha1";
/// The kind of a policy.
pub const KIND: &str = "ClusterPolicy";

/// A named policy out of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// `metadata.name`.
    pub name: String,
    /// `spec`.
    pub spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    api_version: String,
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

/// Reads every `ClusterPolicy` of a YAML text.
///
/// # Errors
/// What is no policy, with the place: the path of the field, and line and column where YAML has them.
pub fn read(text: &str) -> Result<Vec<Document>, Vec<Violation>> {
    let mut documents = Vec::new();
    let mut violations = Vec::new();
    for (i, yaml) in serde_yaml::Deserializer::from_str(text).enumerate() {
        match read_one(yaml) {
            Ok(None) => {}
            Ok(Some(document)) => documents.push(document),
            Err(mut violation) => {
                if 0 < i {
                    violation.reason = format!("{} (document {})", violation.reason, i + 1);
                }
                let unreadable = violation.path == ".";
                violations.push(violation);
                if unreadable {
                    break; // after a syntax error the rest has no meaning, and may not end
                }
            }
        }
    }
    if violations.is_empty() { Ok(documents) } else { Err(violations) }
}

fn read_one(yaml: serde_yaml::Deserializer<'_>) -> Result<Option<Document>, Violation> {
    let envelope: Option<Envelope> = serde_path_to_error::deserialize(yaml)
        .map_err(|error| Violation { path: error.path().to_string(), reason: error.inner().to_string() })?;
    let Some(envelope) = envelope else { return Ok(None) };
    let expect = |path: &str, found: &str, expected: &str| {
        if found == expected {
            return Ok(());
        }
        Err(Violation { path: path.to_owned(), reason: format!("must be '{expected}', not '{found}'") })
    };
    expect("apiVersion", &envelope.api_version, API_VERSION)?;
    expect("kind", &envelope.kind, KIND)?;
    Ok(Some(Document { name: envelope.metadata.name, spec: envelope.spec }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "apiVersion: outrigger.dev/v1alpha1\nkind: ClusterPolicy\nmetadata: {name: web}\n";

    #[test]
    fn several_documents_are_read() {
        let text = format!("{POLICY}spec: {{retry: {{numRetries: 1}}}}\n---\n---\n{POLICY}");
        let names: Vec<_> = read(&text).expect("valid").into_iter().map(|d| d.name).collect();
        assert_eq!(names, ["web", "web"]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let violations =
            read(&format!("{POLICY}spec: {{loadBalancer: {{type: Best}}}}")).expect_err("invalid");
        assert_eq!(violations[0].path, "spec.loadBalancer.type");
        assert!(violations[0].reason.contains("unknown variant `Best`"), "{violations:?}");
        let violations = read(&format!("{POLICY}spec: {{limit: 1}}")).expect_err("invalid");
        assert!(violations[0].reason.contains("unknown field `limit`"), "{violations:?}");
        assert!(read("a: [").is_err());
        assert_eq!(read(&POLICY.replace("ClusterPolicy", "Pod")).expect_err("invalid")[0].path, "kind");
    }

    #[test]
    fn an_empty_text_has_no_policies() {
        assert_eq!(read("# nothing\n"), Ok(vec![]));
    }
}

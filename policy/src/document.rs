//! Policies in files: the same YAML that `kubectl apply` takes, one or several documents.
//!
//! Nothing does not count as a policy: a text without one, a policy without `spec` and a section without content are
//! errors. `spec: {}` alone is a policy without rules.

mod yaml;

use serde::Deserialize;
use serde_json::{Map, Value};

use self::yaml::Part;
use crate::compile::Violation;
use crate::spec::Spec;

/// The API group and version of `ClusterPolicy`.
pub const API_VERSION: &str = "outrigger.dev/v1alpha1";
/// The kind of a policy.
pub const KIND: &str = "ClusterPolicy";

/// What a policy has. `status` is the operator's, in a file that came out of a cluster.
const FIELDS: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];
/// What Kubernetes knows of an object without a namespace. A file needs the name alone.
const METADATA: [&str; 14] = [
    "name",
    "labels",
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];
const WITHOUT_RULES: &str = "a policy without rules has 'spec: {}'";

/// A named policy out of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// `metadata.name`.
    pub name: String,
    /// `spec`.
    pub spec: Spec,
}

#[derive(Deserialize)]
struct Content {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

/// Reads every `ClusterPolicy` of a YAML text.
///
/// # Errors
/// Everything that is no policy, with its place: the path of the field, and line and column. That there is no policy at all.
pub fn read(text: &str) -> Result<Vec<Document>, Vec<Violation>> {
    let mut documents = Vec::new();
    let mut violations = Vec::new();
    for part in yaml::parts(text) {
        match read_part(&part) {
            Ok(document) => documents.extend(document),
            Err(wrong) => violations.extend(wrong),
        }
    }
    if documents.is_empty() && violations.is_empty() {
        let reason = format!("there is no {KIND} in it; {WITHOUT_RULES}");
        violations.push(Violation { path: String::new(), reason });
    }
    if violations.is_empty() { Ok(documents) } else { Err(violations) }
}

/// Reads a spec that is no text any more.
///
/// # Errors
/// The first thing that is no spec, with the path of the field.
pub fn read_spec(value: Value) -> Result<Spec, Violation> {
    if !value.is_object() {
        return Err(Violation { path: String::from("spec"), reason: String::from("must be a mapping") });
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = match error.path().to_string().as_str() {
            "." => String::from("spec"),
            within => format!("spec.{within}"),
        };
        Violation { path, reason: error.inner().to_string() }
    })
}

/// Reads one document; `None` where it is empty.
fn read_part(part: &Part<'_>) -> Result<Option<Document>, Vec<Violation>> {
    // First without a type, because types know nothing of what is there and says nothing.
    let value: Value = part.read().map_err(|violation| vec![violation])?;
    if value.is_null() {
        return Ok(None);
    }
    let mut violations = wrong_around_the_spec(&value);
    if violations.is_empty() {
        without_content(&value["spec"], "spec", &mut violations);
    }
    if !violations.is_empty() {
        return Err(violations);
    }
    let Content { metadata, spec } = part.read().map_err(|violation| vec![violation])?;
    Ok(Some(Document { name: metadata.name, spec }))
}

fn wrong_around_the_spec(value: &Value) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut wrong = |path: &str, reason: String| violations.push(Violation { path: path.to_owned(), reason });
    let Value::Object(fields) = value else {
        wrong("", format!("it must be a {KIND}, with the fields {}", listed(&FIELDS)));
        return violations;
    };
    for (path, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        match fields.get(path) {
            Some(Value::String(found)) if found == expected => {}
            Some(found) => wrong(path, format!("must be '{expected}', not {found}")),
            None => wrong(path, format!("is missing; must be '{expected}'")),
        }
    }
    match fields.get("metadata") {
        Some(Value::Object(metadata)) => {
            unknown(metadata, "metadata.", &METADATA, &mut wrong);
            if metadata.get("name").is_none_or(|name| name.as_str() == Some("")) {
                wrong("metadata.name", String::from("is missing"));
            }
        }
        _ => wrong("metadata", String::from("is missing; must have a 'name'")),
    }
    unknown(fields, "", &FIELDS, &mut wrong);
    if !fields.contains_key("spec") {
        wrong("spec", format!("is missing; {WITHOUT_RULES}"));
    }
    violations
}

fn unknown(fields: &Map<String, Value>, at: &str, known: &[&str], wrong: &mut impl FnMut(&str, String)) {
    for field in fields.keys().filter(|field| !known.contains(&field.as_str())) {
        wrong(&format!("{at}{field}"), format!("unknown field, expected one of {}", listed(known)));
    }
}

fn listed(fields: &[&str]) -> String {
    fields.iter().map(|field| format!("'{field}'")).collect::<Vec<_>>().join(", ")
}

/// What is there and says nothing: most often what it said was taken out, or stands a level too high.
fn without_content(value: &Value, path: &str, violations: &mut Vec<Violation>) {
    match value {
        Value::Null => {
            let reason = match path {
                "spec" => format!("has no content; {WITHOUT_RULES}"),
                _ => String::from("has no content: give it some, or remove the field"),
            };
            violations.push(Violation { path: path.to_owned(), reason });
        }
        Value::Array(values) => {
            for (i, value) in values.iter().enumerate() {
                without_content(value, &format!("{path}[{i}]"), violations);
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                without_content(value, &format!("{path}.{name}"), violations);
            }
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests;

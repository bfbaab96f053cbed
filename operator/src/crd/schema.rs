//! The CustomResourceDefinition: the schema derived from the types, made into what Kubernetes accepts.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use super::ClusterPolicy;

/// Lists whose entries have a key of their own, so that two appliers can own different entries.
const KEYED: [(&str, &str); 4] =
    [("workers", "name"), ("routes", "name"), ("rules", "name"), ("conditions", "type")];

/// The definition in YAML, as the chart ships it. The same bytes every time.
///
/// # Errors
/// Never in practice: the definition is made of plain data.
pub fn definition() -> Result<String, serde_yaml::Error> {
    let derived: CustomResourceDefinition = ClusterPolicy::crd();
    let mut definition = serde_yaml::to_value(derived).and_then(serde_yaml::from_value::<Value>)?;
    for version in definition["spec"]["versions"].as_array_mut().into_iter().flatten() {
        structural(&mut version["schema"]["openAPIV3Schema"]);
    }
    serde_yaml::to_string(&definition)
}

/// Makes a schema structural, and free of what only Rust needed.
fn structural(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    if fields.contains_key("properties") && fields.get("additionalProperties") == Some(&Value::Bool(false)) {
        fields.remove("additionalProperties"); // Kubernetes prunes unknown fields; the two exclude each other
    }
    if fields.get("nullable") == Some(&Value::Bool(true)) {
        fields.remove("nullable"); // an absent field is left out, never null
    }
    if let Some(Value::Array(values)) = fields.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    integers(fields);
    one_line(fields);
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        for (name, property) in properties {
            keyed_list(name, property);
            structural(property);
        }
    }
    for nested in ["items", "additionalProperties"] {
        if let Some(nested) = fields.get_mut(nested) {
            structural(nested);
        }
    }
}

/// Kubernetes knows the formats int32 and int64 only; JSON Schema has no unsigned numbers.
fn integers(fields: &mut Map<String, Value>) {
    let format = fields.get("format").and_then(Value::as_str).map(ToOwned::to_owned);
    match format.as_deref() {
        Some("uint8" | "uint16" | "int8" | "int16") => fields.insert("format".into(), json!("int32")),
        Some("uint32" | "uint64" | "uint") => fields.insert("format".into(), json!("int64")),
        _ => None,
    };
}

/// Doc comments are wrapped where the source ends a line; descriptions are not.
fn one_line(fields: &mut Map<String, Value>) {
    if let Some(Value::String(description)) = fields.get_mut("description") {
        let paragraphs = description.split("\n\n").map(|paragraph| paragraph.replace('\n', " "));
        *description = paragraphs.collect::<Vec<_>>().join("\n\n");
    }
}

fn keyed_list(name: &str, property: &mut Value) {
    let Some((_, key)) = KEYED.iter().find(|(list, _)| *list == name) else { return };
    if property["type"] == "array" && !property["items"]["properties"][key].is_null() {
        property["x-kubernetes-list-type"] = json!("map");
        property["x-kubernetes-list-map-keys"] = json!([key]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Value {
        let definition: Value = serde_yaml::from_str(&definition().expect("serializes")).expect("is YAML");
        definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
    }

    type Check<'a> = &'a mut dyn FnMut(&str, &Map<String, Value>);

    fn walk(schema: &Value, path: &str, check: Check<'_>) {
        let Value::Object(fields) = schema else { return };
        check(path, fields);
        for (name, property) in fields.get("properties").and_then(Value::as_object).into_iter().flatten() {
            walk(property, &format!("{path}.{name}"), check);
        }
        for nested in ["items", "additionalProperties"] {
            walk(fields.get(nested).unwrap_or(&Value::Null), &format!("{path}[]"), check);
        }
    }

    #[test]
    fn the_schema_is_structural_and_described() {
        let mut seen = 0;
        walk(&schema(), "", &mut |path, fields| {
            seen += 1;
            let either = fields.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true));
            assert!(either || fields.contains_key("type"), "{path} has no type: {fields:?}");
            assert!(!fields.contains_key("nullable"), "{path}");
            for forbidden in ["anyOf", "oneOf", "allOf", "$ref", "const"] {
                assert!(!fields.contains_key(forbidden), "{path} has {forbidden}: {fields:?}");
            }
            if fields.contains_key("properties") {
                assert!(!fields.contains_key("additionalProperties"), "{path}");
            }
            let format = fields.get("format").and_then(Value::as_str).unwrap_or("int32");
            assert!(["int32", "int64", "date-time"].contains(&format), "{path} has the format {format}");
            let described = fields.contains_key("description")
                || path.is_empty()
                || path.ends_with("[]")
                || path.ends_with(".metadata");
            assert!(described, "{path} has no description");
        });
        assert!(seen > 60, "only {seen} schemas were seen");
    }

    #[test]
    fn the_body_is_the_policys_spec() {
        let schema = schema();
        let spec = &schema["properties"]["spec"]["properties"];
        assert_eq!(spec["loadBalancer"]["properties"]["type"]["enum"][0], "RoundRobin");
        assert_eq!(spec["workers"]["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(spec["rateLimit"]["properties"]["rules"]["x-kubernetes-list-type"], "map");
        assert_eq!(spec["routes"]["items"]["properties"]["match"]["type"], "object");
        assert_eq!(
            schema["properties"]["status"]["properties"]["conditions"]["x-kubernetes-list-map-keys"],
            json!(["type"])
        );
    }

    #[test]
    fn the_bytes_are_stable() {
        assert_eq!(definition().expect("serializes"), definition().expect("serializes"));
    }
}

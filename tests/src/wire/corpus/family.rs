//! A family of cases: one text with places (`${name}`), and what may stand there.

use anyhow::{Context, Result};
use serde_yaml::{Mapping, Value};

/// The cases of a family, or the one case that it is. An id names what stands in each place, in the order in which
/// the places are written: `id/this/that`.
pub(super) fn members(mut family: Value) -> Result<Vec<Value>> {
    let varied = family.as_mapping_mut().and_then(|case| case.remove("vary"));
    let Some(varied) = varied else { return Ok(vec![family]) };
    let mut members = vec![family];
    for (place, texts) in varied.as_mapping().context("`vary` is no mapping")? {
        let place = format!("${{{}}}", place.as_str().context("a place without a name")?);
        let texts = texts.as_mapping().with_context(|| format!("{place} has no texts"))?;
        let before = std::mem::take(&mut members);
        for member in &before {
            for (label, text) in texts {
                let number = label.as_i64().map(|number| number.to_string());
                let label = number.as_deref().or(label.as_str());
                let label = label.with_context(|| format!("a label of {place} is no text"))?;
                let text = text.as_str().with_context(|| format!("{place}, {label} is no text"))?;
                let mut member = filled(member, &place, text);
                name(&mut member, label)?;
                members.push(member);
            }
        }
    }
    Ok(members)
}

fn name(member: &mut Value, label: &str) -> Result<()> {
    let id = member.get_mut("id").context("a case without id")?;
    *id = Value::from(format!("{}/{label}", id.as_str().context("an id that is no text")?));
    Ok(())
}

/// The case with this text in this place, wherever it stands.
fn filled(case: &Value, place: &str, text: &str) -> Value {
    match case {
        Value::String(whole) => Value::from(whole.replace(place, text)),
        Value::Sequence(items) => items.iter().map(|item| filled(item, place, text)).collect(),
        Value::Mapping(entries) => {
            let filled = entries.iter().map(|(key, value)| (key.clone(), filled(value, place, text)));
            Value::Mapping(filled.collect::<Mapping>())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_is_a_case() {
        let family = "{id: a, raw: 'x${one}${two}', sees: [{target: '${two}'}],
            vary: {one: {b: '1', c: '2'}, two: {d: \"\\r\\n\", e: '4'}}}";
        let members = members(serde_yaml::from_str(family).unwrap()).unwrap();
        let told: Vec<_> = members
            .iter()
            .map(|case| {
                (case["id"].as_str().unwrap(), case["raw"].as_str().unwrap(), &case["sees"][0]["target"])
            })
            .collect();
        let target = |text: &str| Value::from(text);
        assert_eq!(
            told,
            [
                ("a/b/d", "x1\r\n", &target("\r\n")),
                ("a/b/e", "x14", &target("4")),
                ("a/c/d", "x2\r\n", &target("\r\n")),
                ("a/c/e", "x24", &target("4")),
            ]
        );
    }

    #[test]
    fn a_case_alone_stays_as_it_is() {
        let case: Value = serde_yaml::from_str("{id: a, raw: '${one}'}").unwrap();
        assert_eq!(members(case.clone()).unwrap(), [case]);
    }
}

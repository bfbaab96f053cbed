//! The response header `endpoint-load-metrics`: `JSON {"cpu_utilization": 0.3}` or `TEXT cpu=0.3,named_metrics.lag=0.1`.
//!
//! The field names are those of the message `xds.data.orca.v3.OrcaLoadReport`, the two forms those that Envoy reads
//! besides the binary one. In the text form `cpu`, `mem` and `application` are short for their utilization.

use std::borrow::Cow;
use std::collections::HashMap;

use http::HeaderName;
use serde::Deserialize;

/// The header.
pub const HEADER: HeaderName = HeaderName::from_static("endpoint-load-metrics");
/// A report longer than that is none.
const LONGEST: usize = 4096;

/// The header is no report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 'JSON' and an object, or 'TEXT' and name=number pairs, each number finite and not negative")]
pub struct Garbage;

/// The utilization that a report says: the highest of these metrics, or without any the application's, else the
/// CPU's. `None` when it has none of them.
///
/// # Errors
/// That it is no report.
pub fn utilization(report: &[u8], metrics: &[String]) -> Result<Option<f64>, Garbage> {
    let text = std::str::from_utf8(report).map_err(|_| Garbage)?.trim();
    if LONGEST < text.len() {
        return Err(Garbage);
    }
    let (form, rest) = text.split_once(' ').ok_or(Garbage)?;
    let mut found = Found { metrics, highest: None, application: None, cpu: None };
    match form {
        "JSON" => serde_json::from_str::<Report<'_>>(rest).map_err(|_| Garbage)?.give_to(&mut found)?,
        "TEXT" => {
            for pair in rest.split(',') {
                let (name, value) = pair.split_once('=').ok_or(Garbage)?;
                found.take(long(name.trim()), value.trim().parse().map_err(|_| Garbage)?)?;
            }
        }
        _ => return Err(Garbage),
    }
    Ok(found.utilization())
}

fn long(name: &str) -> &str {
    match name {
        "cpu" => "cpu_utilization",
        "mem" => "mem_utilization",
        "application" => "application_utilization",
        name => name,
    }
}

/// What was found so far.
struct Found<'a> {
    metrics: &'a [String],
    highest: Option<f64>,
    application: Option<f64>,
    cpu: Option<f64>,
}

impl Found<'_> {
    fn take(&mut self, name: &str, value: f64) -> Result<(), Garbage> {
        if !value.is_finite() || value < 0.0 {
            return Err(Garbage);
        }
        match name {
            "application_utilization" if 0.0 < value => self.application = Some(value), // 0 is "not set" in protobuf
            "cpu_utilization" => self.cpu = Some(value),
            _ => {}
        }
        if self.metrics.iter().any(|metric| metric == name) {
            self.highest = Some(self.highest.map_or(value, |highest| highest.max(value)));
        }
        Ok(())
    }

    fn utilization(&self) -> Option<f64> {
        if self.metrics.is_empty() { self.application.or(self.cpu) } else { self.highest }
    }
}

#[derive(Deserialize)]
struct Report<'a> {
    cpu_utilization: Option<f64>,
    mem_utilization: Option<f64>,
    application_utilization: Option<f64>,
    #[serde(default, borrow)]
    named_metrics: HashMap<Cow<'a, str>, f64>,
    #[serde(default, borrow)]
    utilization: HashMap<Cow<'a, str>, f64>,
}

impl Report<'_> {
    fn give_to(&self, found: &mut Found<'_>) -> Result<(), Garbage> {
        for (name, value) in [
            ("cpu_utilization", self.cpu_utilization),
            ("mem_utilization", self.mem_utilization),
            ("application_utilization", self.application_utilization),
        ] {
            value.map_or(Ok(()), |value| found.take(name, value))?;
        }
        for (group, values) in [("named_metrics", &self.named_metrics), ("utilization", &self.utilization)] {
            for (name, value) in values {
                found.take(&format!("{group}.{name}"), *value)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(report: &str, metrics: &[&str]) -> Result<Option<f64>, Garbage> {
        let metrics: Vec<_> = metrics.iter().map(|&metric| String::from(metric)).collect();
        utilization(report.as_bytes(), &metrics)
    }

    #[test]
    fn both_forms_are_read() {
        for report in [
            r#"JSON {"cpu_utilization": 0.3, "mem_utilization": 0.8, "named_metrics": {"lag": 1.5}, "rps_fractional": 9}"#,
            "TEXT cpu=0.3,mem=0.8,named_metrics.lag=1.5,rps_fractional=9",
            "TEXT cpu_utilization=0.3, mem_utilization=0.8, named_metrics.lag=1.5",
        ] {
            assert_eq!(read(report, &[]), Ok(Some(0.3)), "{report}");
            assert_eq!(read(report, &["mem_utilization", "cpu_utilization"]), Ok(Some(0.8)), "{report}");
            assert_eq!(read(report, &["named_metrics.lag"]), Ok(Some(1.5)), "{report}");
            assert_eq!(read(report, &["named_metrics.other"]), Ok(None), "{report}");
        }
    }

    #[test]
    fn the_applications_own_word_comes_first() {
        assert_eq!(read("TEXT cpu=0.9,application=0.2", &[]), Ok(Some(0.2)));
        assert_eq!(read("TEXT cpu=0.9,application=0", &[]), Ok(Some(0.9)));
        assert_eq!(read(r#"JSON {"utilization": {"loop": 0.4}}"#, &["utilization.loop"]), Ok(Some(0.4)));
    }

    #[test]
    fn garbage_is_no_report() {
        for report in [
            "",
            "JSON",
            "TEXT",
            "TEXT ",
            "cpu=0.3",
            "BIN CPY=",
            "JSON [1]",
            "JSON {\"cpu_utilization\": \"high\"}",
            "JSON {\"cpu_utilization\": -1}",
            "TEXT cpu",
            "TEXT cpu=NaN",
            "TEXT cpu=inf",
            "TEXT cpu=-0.1",
            "TEXT cpu=0.3,,mem=1",
        ] {
            assert_eq!(read(report, &[]), Err(Garbage), "{report:?}");
        }
        assert_eq!(utilization(&[b'J', 0xff], &[]), Err(Garbage));
        assert_eq!(read(&format!("TEXT cpu=0.3{}", ",a=1".repeat(2000)), &[]), Err(Garbage), "too long");
    }
}

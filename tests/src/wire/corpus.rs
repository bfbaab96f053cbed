//! The corpus: cases as data, so that one file drives the test, the comparison with peers and the fuzz seeds.
//!
//! A string stands for bytes: each character is the byte of its number (`\xff` is one byte), and `{{TEXT*N}}` is
//! TEXT repeated N times. A case with `vary` is a family: one case for every combination of its texts.

mod family;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_yaml::Value;

/// Bytes written as text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text(pub Vec<u8>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        expand(&text).map(Self).map_err(D::Error::custom)
    }
}

fn expand(text: &str) -> Result<Vec<u8>> {
    let Some((before, rest)) = text.split_once("{{") else { return latin1(text) };
    let (macro_text, after) = rest.split_once("}}").context("`{{` without `}}`")?;
    let (unit, count) = macro_text.rsplit_once('*').context("`{{` without `*`")?;
    let mut bytes = latin1(before)?;
    bytes.extend(latin1(unit)?.repeat(count.parse()?));
    bytes.extend(expand(after)?);
    Ok(bytes)
}

fn latin1(text: &str) -> Result<Vec<u8>> {
    text.chars().map(|char| u8::try_from(u32::from(char)).context("a character above \\xff")).collect()
}

/// A field of HTTP/2: name and value, and how many times in a row.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Line {
    Once(Text, Text),
    Times(Text, Text, usize),
}

/// These fields, each as often as it says.
pub fn lines(lines: &[Line]) -> impl Iterator<Item = (&[u8], &[u8])> {
    lines.iter().flat_map(|line| {
        let (name, value, times) = match line {
            Line::Once(name, value) => (name, value, 1),
            Line::Times(name, value, times) => (name, value, *times),
        };
        std::iter::repeat_n((name.0.as_slice(), value.0.as_slice()), times)
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// No complete message but those of `sees` reaches the worker; then the client gets one of `status` and no other
    /// answer, or the connection or stream ends.
    Reject,
    /// Refused, or forwarded in a form that a strict reader takes.
    Either,
    /// Forwarded, as `sees` says, and answered.
    Accept,
}

/// A request, by raw bytes (HTTP/1.1) or by fields or frames (HTTP/2).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    pub id: String,
    pub rfc: String,
    pub why: String,
    #[serde(default)]
    pub cve: Option<String>,
    pub expect: Expect,
    /// A rule or a bound of this proxy's own, where the RFCs leave a choice: a peer that does otherwise breaks none.
    #[serde(default)]
    pub own: bool,
    /// Allowed answers; when empty 400 for a case that is refused, 200 for one that is accepted.
    #[serde(default)]
    pub status: Vec<u16>,
    /// The proxy must close the connection after its answer.
    #[serde(default)]
    pub close: bool,
    /// Bytes that must not reach the worker.
    #[serde(default)]
    pub never: Vec<Text>,
    /// The messages that the worker must receive, in this order.
    #[serde(default)]
    pub sees: Vec<Seen>,
    /// The most messages that the worker may receive of a case that is forwarded or refused: one when absent.
    #[serde(default = "one")]
    pub most: usize,

    #[serde(default)]
    pub raw: Option<Text>,
    /// The client sends FIN after `raw`.
    #[serde(default)]
    pub fin: bool,
    /// One byte for each write.
    #[serde(default)]
    pub drip: bool,
    /// A write ends with each CR and each LF; a test sets it.
    #[serde(skip)]
    pub cut_at_line_ends: bool,
    /// Sent after a 101; the worker echoes it.
    #[serde(default)]
    pub tunnel: Option<Text>,

    #[serde(default)]
    pub headers: Vec<Line>,
    /// In place of `headers`: what follows the pseudo-header fields of a GET for `/x`, or of a POST when there is
    /// content.
    #[serde(default)]
    pub with: Vec<Line>,
    /// One DATA frame each.
    #[serde(default)]
    pub data: Vec<Text>,
    #[serde(default)]
    pub trailers: Vec<Line>,
    /// The last frame does not end the stream.
    #[serde(default)]
    pub open: bool,
    /// Frames in place of the above, after the preface.
    #[serde(default)]
    pub frames: Vec<RawFrame>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawFrame {
    pub kind: u8,
    #[serde(default)]
    pub flags: u8,
    pub stream: u32,
    #[serde(default)]
    pub payload: Text,
    /// Encoded and put in front of `payload`.
    #[serde(default)]
    pub headers: Vec<Line>,
    /// How many of it.
    #[serde(default = "one")]
    pub times: usize,
}

/// What the worker must receive. Absent means not looked at, except `body`: absent means empty.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    pub method: Text,
    pub target: Text,
    #[serde(default)]
    pub body: Text,
    #[serde(default)]
    pub fields: Vec<(String, Text)>,
    #[serde(default)]
    pub absent: Vec<String>,
    #[serde(default)]
    pub trailers: Vec<(String, Text)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// A complete answer of the proxy's own: 502.
    #[serde(rename = "502")]
    BadGateway,
    /// The client sees that the message is cut short.
    Truncated,
    /// A complete, strict message with the worker's status and body.
    Clean,
}

/// What a hostile worker sends, and what the client may then see.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hostile {
    pub id: String,
    pub rfc: String,
    pub why: String,
    #[serde(default)]
    pub cve: Option<String>,
    #[serde(default = "get")]
    pub method: String,
    /// Written one after the other with 50 ms between them.
    pub raw: Vec<Text>,
    #[serde(default)]
    pub then: Then,
    pub expect: Vec<Outcome>,
    /// Of a clean answer.
    #[serde(default)]
    pub status: Option<u16>,
    #[serde(default)]
    pub body: Text,
    /// Field names that the client must not see.
    #[serde(default)]
    pub absent: Vec<String>,
}

fn get() -> String {
    String::from("GET")
}

fn one() -> usize {
    1
}

/// What the worker does after the last byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Then {
    #[default]
    Keep,
    Close,
    Reset,
}

fn read<T: for<'de> Deserialize<'de>>(name: &str) -> Result<Vec<T>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    let written: Vec<Value> = serde_yaml::from_str(&text).with_context(|| format!("{}", path.display()))?;
    ensure!(!written.is_empty(), "{name} is empty");
    let mut cases = Vec::new();
    for case in written {
        for case in family::members(case)? {
            let told = case.get("id").and_then(Value::as_str).unwrap_or("a case without id").to_owned();
            cases.push(serde_yaml::from_value(case).with_context(|| format!("{name}: {told}"))?);
        }
    }
    Ok(cases)
}

pub fn h1_rejects() -> Result<Vec<Case>> {
    read("requests-h1-reject.yaml")
}

pub fn h2_rejects() -> Result<Vec<Case>> {
    read("requests-h2-reject.yaml")
}

pub fn accepts() -> Result<Vec<Case>> {
    read("requests-accept.yaml")
}

/// Families of HTTP/1.1 requests: what must be refused beside its legal neighbours.
pub fn h1_families() -> Result<Vec<Case>> {
    const FILES: [&str; 5] = [
        "h1-framing.yaml",
        "h1-line-ends.yaml",
        "h1-request-line.yaml",
        "h1-fields.yaml",
        "h1-connection.yaml",
    ];
    FILES.iter().map(|name| read(name)).collect::<Result<Vec<_>>>().map(|files| files.concat())
}

/// The same over HTTP/2.
pub fn h2_families() -> Result<Vec<Case>> {
    read("h2-families.yaml")
}

/// Ids of cases that the proxy does not pass yet.
pub fn pending() -> Result<HashSet<String>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus/pending.yaml");
    let reasons: HashMap<String, Vec<String>> = serde_yaml::from_str(&std::fs::read_to_string(path)?)?;
    Ok(reasons.into_values().flatten().collect())
}

pub fn hostile_responses() -> Result<Vec<Hostile>> {
    read("responses-hostile.yaml")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_bytes() {
        assert_eq!(expand("a\u{0}\u{ff}").unwrap(), b"a\x00\xff");
        assert_eq!(expand("<{{ab*3}}|{{c*2}}>").unwrap(), b"<ababab|cc>");
        assert!(expand("\u{100}").is_err() && expand("{{a").is_err() && expand("{{a}}").is_err());
    }

    /// The figures are those that the project promises.
    #[test]
    fn the_corpus_is_well_formed() {
        let (h1, h2, accepts) = (h1_rejects().unwrap(), h2_rejects().unwrap(), accepts().unwrap());
        let (h1_families, h2_families) = (h1_families().unwrap(), h2_families().unwrap());
        let hostile = hostile_responses().unwrap();
        assert!(h1.len() >= 90 && h2.len() >= 30 && accepts.len() >= 40 && hostile.len() >= 30);
        assert!(h1_families.len() >= 500 && h2_families.len() >= 300);
        for case in h1.iter().chain(&h1_families) {
            assert!(case.raw.is_some() && case.headers.is_empty() && case.with.is_empty(), "{}", case.id);
            assert!(
                case.data.is_empty() && case.trailers.is_empty() && case.frames.is_empty(),
                "{}",
                case.id
            );
        }
        for case in h2.iter().chain(&h2_families) {
            let ways = [&case.headers, &case.with].iter().filter(|lines| !lines.is_empty()).count();
            assert!(case.raw.is_none() && ways < 2 && (ways == 0 || case.frames.is_empty()), "{}", case.id);
            assert!(ways == 1 || !case.frames.is_empty() || !case.data.is_empty(), "{}", case.id);
        }
        assert!(h1.iter().chain(&h2).all(|case| case.expect != Expect::Accept && case.sees.is_empty()));
        let all: Vec<_> = [h1, h2, accepts.clone(), h1_families, h2_families].concat();
        assert!(accepts.iter().all(|case| case.expect == Expect::Accept));
        assert!(all.iter().all(|case| case.expect != Expect::Accept || !case.sees.is_empty()));
        assert!(hostile.iter().all(|case| !case.expect.is_empty() && !case.raw.is_empty()));
        let requests = all.iter().map(|case| (&case.id, &case.rfc, &case.why));
        let mut ids = HashSet::new();
        for (id, rfc, why) in requests.chain(hostile.iter().map(|case| (&case.id, &case.rfc, &case.why))) {
            assert!(ids.insert(id), "{id} occurs twice");
            assert!(rfc.contains('§') && !why.is_empty(), "{id}");
        }
    }

    /// No request is there twice under two names.
    #[test]
    fn every_case_is_another() {
        let mut seen = HashMap::new();
        for case in [h1_rejects().unwrap(), accepts().unwrap(), h1_families().unwrap()].concat() {
            let Some(raw) = case.raw else { continue };
            let before = seen.insert((raw.0, case.fin, case.drip), case.id.clone());
            assert_eq!(before, None, "{}", case.id);
        }
    }
}

//! The corpus: cases as data, so that one file drives the test, the comparison with peers and the fuzz seeds.
//!
//! A string stands for bytes: each character is the byte of its number (`\xff` is one byte), and `{{TEXT*N}}` is
//! TEXT repeated N times.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Deserializer, de::Error as _};

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// No complete message reaches the worker; the client gets one of `status`, or the connection or stream ends.
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
    /// Allowed answers; when empty 400 for a case that is refused, 200 for one that is accepted.
    #[serde(default)]
    pub status: Vec<u16>,
    /// The proxy must close the connection after its answer.
    #[serde(default)]
    pub close: bool,
    /// Bytes that must not reach the worker.
    #[serde(default)]
    pub never: Vec<Text>,
    /// The messages that the worker must receive.
    #[serde(default)]
    pub sees: Vec<Seen>,

    #[serde(default)]
    pub raw: Option<Text>,
    /// The client sends FIN after `raw`.
    #[serde(default)]
    pub fin: bool,
    /// One byte for each write.
    #[serde(default)]
    pub drip: bool,
    /// Sent after a 101; the worker echoes it.
    #[serde(default)]
    pub tunnel: Option<Text>,

    #[serde(default)]
    pub headers: Vec<(Text, Text)>,
    /// One DATA frame each.
    #[serde(default)]
    pub data: Vec<Text>,
    #[serde(default)]
    pub trailers: Vec<(Text, Text)>,
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
    pub headers: Vec<(Text, Text)>,
}

/// What the worker must receive. Absent means not looked at, except `body`: absent means empty.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    pub method: String,
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
    let cases: Vec<T> = serde_yaml::from_str(&text).with_context(|| format!("{}", path.display()))?;
    ensure!(!cases.is_empty(), "{name} is empty");
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

pub fn hostile_responses() -> Result<Vec<Hostile>> {
    read("responses-hostile.yaml")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

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
        let hostile = hostile_responses().unwrap();
        assert!(h1.len() >= 90 && h2.len() >= 30 && accepts.len() >= 40 && hostile.len() >= 30);
        assert!(
            h1.iter().all(|case| case.raw.is_some() && case.headers.is_empty() && case.frames.is_empty())
        );
        assert!(
            h2.iter().all(|case| case.raw.is_none() && (case.headers.is_empty() != case.frames.is_empty()))
        );
        assert!(h1.iter().chain(&h2).all(|case| case.expect != Expect::Accept && case.sees.is_empty()));
        assert!(accepts.iter().all(|case| case.expect == Expect::Accept && !case.sees.is_empty()));
        assert!(hostile.iter().all(|case| !case.expect.is_empty() && !case.raw.is_empty()));
        let requests = h1.iter().chain(&h2).chain(&accepts).map(|case| (&case.id, &case.rfc, &case.why));
        let mut ids = HashSet::new();
        for (id, rfc, why) in requests.chain(hostile.iter().map(|case| (&case.id, &case.rfc, &case.why))) {
            assert!(ids.insert(id), "{id} occurs twice");
            assert!(rfc.contains('§') && !why.is_empty(), "{id}");
        }
    }
}

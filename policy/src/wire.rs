//! The messages between operator and proxy, each one line of JSON.
//!
//! The proxy opens `POST /push/v1/stream` with a `Hello`; the response is an endless body of `FromOperator`
//! lines. For each `Update` the proxy sends one `POST /push/v1/ack` with an `Ack`, and whenever there is news of its
//! workers a `POST /push/v1/report` (see `report`). All requests carry the proxy's ServiceAccount token. Versions are hashes of the content, so any replica of the operator can go on
//! where another stopped.

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::compile::Violation;
use crate::drain::PodDrain;
use crate::merge::Merged;
use crate::siblings::SiblingsChange;

/// The version of these messages. A proxy and an operator of different versions refuse each other.
pub const PROTOCOL: u32 = 1;
/// The path of the stream.
pub const STREAM_PATH: &str = "/push/v1/stream";
/// The path that takes an `Ack`.
pub const ACK_PATH: &str = "/push/v1/ack";
/// The audience of the tokens.
pub const AUDIENCE: &str = "outrigger.dev";

/// What a proxy says first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// `PROTOCOL` of the proxy.
    pub protocol: u32,
    /// The proxy's release.
    pub proxy_version: String,
    /// The version in force at the proxy: an operator that has the same sends no update, and counts it as acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holds: Option<String>,
    /// The version of its list of siblings, if it has one: an operator that has the same says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub siblings: Option<String>,
}

/// One line of the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum FromOperator {
    /// First on every stream.
    Welcome {
        /// The replica's name, for logs.
        replica: String,
        /// A line comes at least this often; a proxy that waits three times as long connects anew.
        heartbeat_seconds: u32,
        /// The certificates, in PEM, that a proxy must trust from now on.
        trust_bundle: String,
    },
    /// The policy to put in force. It replaces the last one whole.
    Update(Box<Update>),
    /// What changes in the list of siblings. Only for proxies whose policy reaches them.
    Siblings(SiblingsChange),
    /// Nothing new.
    Heartbeat,
    /// The replica is going away, or this proxy may not stay: connect again after the time given.
    Goaway {
        /// Why.
        reason: String,
        /// How long to wait before connecting again.
        retry_after_millis: u64,
    },
}

/// A policy to enforce, whole. It is also what a proxy keeps on disk as its last good one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Update {
    /// The hash of the rest.
    pub version: String,
    /// The sections in force and where each came from.
    pub policy: Merged,
    /// The keys of session cookies.
    #[serde(default)]
    pub session_keys: KeyRing,
    /// How far the canary is; none before the operator began it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryShare>,
    /// Which workers of this pod its own annotation drains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<PodDrain>,
}

/// What the new version of a canary gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CanaryShare {
    /// In percent.
    pub weight: u32,
    /// What the versions answer is counted for each epoch anew.
    pub epoch: String,
}

/// What a proxy made of an update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ack {
    /// The update's version.
    pub version: String,
    /// Why the proxy keeps its last good policy instead; empty: the update is in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<Violation>,
}

/// The keys of session cookies: the first seals, all open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRing {
    /// Newest first.
    pub keys: Vec<SessionKey>,
}

/// One key of 256 bits.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionKey {
    /// Tells which key sealed a cookie. Unique in the ring.
    pub id: u8,
    /// 32 random bytes.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub secret: [u8; 32],
}

impl Update {
    /// An update whose version is the hash of its content.
    pub fn new(policy: Merged, session_keys: KeyRing) -> Self {
        Self { policy, session_keys, ..Self::default() }.sealed()
    }

    /// The same with this share of the canary.
    #[must_use]
    pub fn with_canary(self, canary: Option<CanaryShare>) -> Self {
        Self { canary, ..self }.sealed()
    }

    /// The same for a pod whose annotation drains these workers.
    #[must_use]
    pub fn with_drain(self, drain: Option<PodDrain>) -> Self {
        Self { drain, ..self }.sealed()
    }

    /// The version that its content has.
    pub fn computed_version(&self) -> String {
        self.clone().sealed().version
    }

    fn sealed(mut self) -> Self {
        self.version.clear();
        let content = serde_json::to_vec(&self).unwrap_or_default();
        let hash = digest::digest(&digest::SHA256, &content);
        self.version = URL_SAFE_NO_PAD.encode(&hash.as_ref()[..16]);
        self
    }
}

// === impl SessionKey ===

impl std::fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SessionKey({}, …)", self.id) // never the secret
    }
}

fn to_base64<S: Serializer>(secret: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(secret))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes = STANDARD.decode(text).map_err(serde::de::Error::custom)?;
    bytes.try_into().map_err(|_| serde::de::Error::custom("a session key has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_content() {
        let key = SessionKey { id: 1, secret: [7; 32] };
        let one = Update::new(Merged::default(), KeyRing { keys: vec![key] });
        let same = Update::new(one.policy.clone(), one.session_keys.clone());
        assert_eq!(one, same);
        assert_ne!(one.version, Update::new(Merged::default(), KeyRing::default()).version);
        let drained = one.clone().with_drain(Some(PodDrain::All));
        assert_ne!(drained.version, one.version);
        assert_eq!(drained.version, drained.computed_version());
        assert_eq!(drained.with_drain(None), one);
    }

    #[test]
    fn messages_are_lines_of_json_that_read_back() {
        let update =
            Update::new(Merged::default(), KeyRing { keys: vec![SessionKey { id: 1, secret: [7; 32] }] })
                .with_drain(PodDrain::parse("a,b"));
        for message in [
            FromOperator::Welcome {
                replica: "a".into(),
                heartbeat_seconds: 10,
                trust_bundle: "PEM\n".into(),
            },
            FromOperator::Update(Box::new(update)),
            FromOperator::Siblings(SiblingsChange { version: "v".into(), ..SiblingsChange::default() }),
            FromOperator::Heartbeat,
            FromOperator::Goaway { reason: "bye".into(), retry_after_millis: 5 },
        ] {
            let line = serde_json::to_string(&message).expect("serializes");
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<FromOperator>(&line).expect("reads back"), message);
        }
    }

    #[test]
    fn a_key_is_not_printed() {
        assert_eq!(format!("{:?}", SessionKey { id: 9, secret: [7; 32] }), "SessionKey(9, …)");
    }
}

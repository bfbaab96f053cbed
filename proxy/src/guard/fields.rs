//! Which of the fields that the guard cares for are there: learned in one pass over the names, so that a usual
//! request costs no look-up for a field that it does not have.

use http::HeaderMap;
use http::header::{self, HeaderName, HeaderValue};

pub(super) static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) static X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(super) static X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(super) static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(super) static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// A set of kinds of fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fields(u32);

impl Fields {
    const NONE: Self = Self(0);
    pub(super) const HOST: Self = Self(1);
    pub(super) const CONTENT_LENGTH: Self = Self(1 << 1);
    pub(super) const TRANSFER_ENCODING: Self = Self(1 << 2);
    pub(super) const CONNECTION: Self = Self(1 << 3);
    pub(super) const UPGRADE: Self = Self(1 << 4);
    pub(super) const TE: Self = Self(1 << 5);
    pub(super) const EXPECT: Self = Self(1 << 6);
    /// `Keep-Alive` and `Proxy-Connection`.
    pub(super) const KEEP_ALIVE: Self = Self(1 << 7);
    /// Other fields that are for this hop only.
    pub(super) const HOP: Self = Self(1 << 8);
    pub(super) const X_FORWARDED_FOR: Self = Self(1 << 9);
    pub(super) const X_FORWARDED_PROTO: Self = Self(1 << 10);
    pub(super) const X_FORWARDED_HOST: Self = Self(1 << 11);
    /// Other fields by which a hop speaks for a client.
    pub(super) const SPOOF: Self = Self(1 << 12);
    /// A name that a worker may take for one of these, because it reads `_` as `-`.
    pub(super) const ALIAS: Self = Self(1 << 13);
    pub(super) const X_REQUEST_ID: Self = Self(1 << 14);
    pub(super) const TRACEPARENT: Self = Self(1 << 15);
    pub(super) const TRACESTATE: Self = Self(1 << 16);
    /// Fields that the proxy leaves alone, but that a client may not make it drop.
    const PROTECTED: Self = Self(1 << 17);
    /// A name with a quote. It is no token (RFC 9110 §5.6.2), but `http` takes it for one when it comes over HTTP/2, and
    /// over HTTP/1.1 it would be written as it is.
    pub(super) const MALFORMED: Self = Self(1 << 18);

    /// What has no place in HTTP/2 (RFC 9113 §8.2.2).
    pub(super) const CONNECTION_SPECIFIC: Self =
        Self(Self::CONNECTION.0 | Self::UPGRADE.0 | Self::KEEP_ALIVE.0 | Self::TRANSFER_ENCODING.0);

    /// The kinds of fields that are there.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        headers.keys().fold(Self::NONE, |fields, name| fields.and(kind(name)))
    }

    /// Whether any of these kinds is there.
    pub(super) fn any(self, kinds: Self) -> bool {
        self.0 & kinds.0 != 0
    }

    /// Both sets.
    pub(super) const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The kind of one field. The first arm only spares the usual fields the slower look at their text.
fn kind(name: &HeaderName) -> Fields {
    match *name {
        header::ACCEPT
        | header::ACCEPT_ENCODING
        | header::ACCEPT_LANGUAGE
        | header::AUTHORIZATION
        | header::CACHE_CONTROL
        | header::CONTENT_TYPE
        | header::COOKIE
        | header::DATE
        | header::ETAG
        | header::LAST_MODIFIED
        | header::ORIGIN
        | header::PRAGMA
        | header::REFERER
        | header::SERVER
        | header::SET_COOKIE
        | header::UPGRADE_INSECURE_REQUESTS
        | header::USER_AGENT
        | header::VARY => Fields::NONE,
        header::HOST => Fields::HOST,
        header::CONTENT_LENGTH => Fields::CONTENT_LENGTH,
        header::TRANSFER_ENCODING => Fields::TRANSFER_ENCODING,
        header::CONNECTION => Fields::CONNECTION,
        header::UPGRADE => Fields::UPGRADE,
        header::TE => Fields::TE,
        header::EXPECT => Fields::EXPECT,
        header::PROXY_AUTHENTICATE | header::PROXY_AUTHORIZATION => Fields::HOP,
        header::FORWARDED => Fields::SPOOF,
        header::VIA => Fields::PROTECTED,
        _ => kind_by_text(name.as_str()),
    }
}

fn kind_by_text(name: &str) -> Fields {
    let found = match name.as_bytes()[..] {
        [b'x' | b't' | b'k' | b'p' | b'h' | b'b', ..] => listed(name),
        _ => Fields::NONE,
    };
    if !found.is_empty() || !name.bytes().any(|byte| matches!(byte, b'_' | b'"')) {
        return found;
    }
    match name.contains('"') {
        true => Fields::MALFORMED,
        false if is_alias(name) => Fields::ALIAS,
        false => Fields::NONE,
    }
}

/// The kind of a field without a constant in `http`.
fn listed(name: &str) -> Fields {
    match name {
        "keep-alive" | "proxy-connection" => Fields::KEEP_ALIVE,
        "http2-settings" | "proxy-authentication-info" => Fields::HOP,
        "x-forwarded-for" => Fields::X_FORWARDED_FOR,
        "x-forwarded-proto" => Fields::X_FORWARDED_PROTO,
        "x-forwarded-host" => Fields::X_FORWARDED_HOST,
        "x-real-ip" | "x-forwarded" => Fields::SPOOF,
        "x-request-id" => Fields::X_REQUEST_ID,
        "traceparent" => Fields::TRACEPARENT,
        "tracestate" => Fields::TRACESTATE,
        "baggage" => Fields::PROTECTED,
        // an underscore behind the prefix is an alias, for trusted hops too
        _ if name.starts_with("x-forwarded-") && !name.contains('_') => Fields::SPOOF,
        _ => Fields::NONE,
    }
}

/// Whether a name with underscores stands for a field that the proxy sets or acts on, once they are dashes.
fn is_alias(name: &str) -> bool {
    const ROOM: usize = 64;
    let mut dashed = [0; ROOM];
    let Some(dashed) = dashed.get_mut(..name.len()) else {
        return name.as_bytes()[..ROOM].iter().zip(b"x-forwarded-").all(|(&byte, &with)| dash(byte) == with);
    };
    for (to, from) in dashed.iter_mut().zip(name.bytes()) {
        *to = dash(from);
    }
    HeaderName::from_bytes(dashed).is_ok_and(|name| is_ours(&name))
}

fn dash(byte: u8) -> u8 {
    if byte == b'_' { b'-' } else { byte }
}

/// Whether a field is the proxy's to keep or to drop, so that no client may nominate it away.
pub(super) fn is_ours(name: &HeaderName) -> bool {
    !kind(name).is_empty()
}

/// Removes the fields of these kinds, one by one: for kinds that are rare or have many names.
pub(super) fn remove(headers: &mut HeaderMap, kinds: Fields) {
    let names: Vec<_> = headers.keys().filter(|name| kind(name).any(kinds)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// The value of a field that has exactly one line.
pub(super) fn only<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    let mut lines = headers.get_all(name).iter();
    match (lines.next(), lines.next()) {
        (Some(value), None) => Some(value),
        _ => None,
    }
}

/// The members of a list field, over all its lines, without white space; empty ones too.
pub fn members<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h [u8]> {
    let lines = headers.get_all(name).into_iter();
    lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quote_in_a_name_is_seen() {
        for name in [&b"x\"a"[..], b"\"", b"accept\"", b"x_\"a"] {
            let name = HeaderName::from_lowercase(name).unwrap(); // once it refuses this, the kind can go
            assert_eq!(kind(&name), Fields::MALFORMED, "{name:?}");
        }
    }

    fn kind_of(name: &'static str) -> Fields {
        kind(&HeaderName::from_static(name))
    }

    #[test]
    fn kinds() {
        for (name, expected) in [
            ("host", Fields::HOST),
            ("accept", Fields::NONE),
            ("x-powered-by", Fields::NONE),
            ("user_id", Fields::NONE),
            ("keep-alive", Fields::KEEP_ALIVE),
            ("http2-settings", Fields::HOP),
            ("x-forwarded-for", Fields::X_FORWARDED_FOR),
            ("x-forwarded-prefix", Fields::SPOOF),
            ("forwarded", Fields::SPOOF),
            ("x-real-ip", Fields::SPOOF),
            ("baggage", Fields::PROTECTED),
        ] {
            assert_eq!(kind_of(name), expected, "{name}");
        }
    }

    #[test]
    fn aliases() {
        for name in [
            "x_forwarded_for",
            "x-forwarded_for",
            "x_forwarded-prefix",
            "x-forwarded-client_ip",
            "x_real_ip",
            "content_length",
            "transfer_encoding",
            "x_request_id",
            "keep_alive",
            "proxy_authorization",
            "x_forwarded_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        ] {
            assert_eq!(kind_of(name), Fields::ALIAS, "{name}");
        }
        assert_eq!(
            kind_of("a_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
            Fields::NONE
        );
    }
}

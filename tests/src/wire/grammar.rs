//! The grammar of RFC 9110, 9112 and 3986, as predicates on bytes.

use std::fmt;

/// One way in which bytes on the wire are not what a strict sender writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub fn violation(text: impl Into<String>) -> Violation {
    Violation(text.into())
}

/// A field line, name as sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub value: Vec<u8>,
}

impl Field {
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

pub fn values<'f>(fields: &'f [Field], name: &'f str) -> impl Iterator<Item = &'f [u8]> {
    fields.iter().filter(move |field| field.is(name)).map(|field| field.value.as_slice())
}

/// Members of a comma-separated field, lower case, over all its lines.
pub fn members(fields: &[Field], name: &str) -> Vec<String> {
    values(fields, name)
        .flat_map(|value| value.split(|&byte| byte == b','))
        .map(|member| String::from_utf8_lossy(member).trim().to_ascii_lowercase())
        .filter(|member| !member.is_empty())
        .collect()
}

pub fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty()
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte))
}

/// Field content: visible bytes, obs-text, space and tab.
pub fn is_field_value(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f))
}

pub fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// `uri-host [ ":" port ]` of RFC 3986, without user information and not empty.
pub fn is_host(host: &[u8]) -> bool {
    let (name, port) = if host.starts_with(b"[") {
        let Some(end) = host.iter().position(|&byte| byte == b']') else { return false };
        let literal = &host[1..end];
        let known = std::str::from_utf8(literal).is_ok_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok());
        if !known {
            return false;
        }
        (&host[..=end], &host[end + 1..])
    } else {
        let end = host.iter().position(|&byte| byte == b':').unwrap_or(host.len());
        if !is_reg_name(&host[..end]) {
            return false;
        }
        (&host[..end], &host[end..])
    };
    !name.is_empty() && is_port(port)
}

fn is_reg_name(name: &[u8]) -> bool {
    percent_encoding_is_valid(name)
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(byte))
        && !name.contains(&b',')
}

fn is_port(port: &[u8]) -> bool {
    let [b':', digits @ ..] = port else { return port.is_empty() };
    !digits.is_empty()
        && digits.iter().all(u8::is_ascii_digit)
        && std::str::from_utf8(digits).is_ok_and(|text| text.parse::<u16>().is_ok())
}

fn percent_encoding_is_valid(bytes: &[u8]) -> bool {
    bytes.iter().enumerate().filter(|&(_, &byte)| byte == b'%').all(|(at, _)| {
        bytes.get(at + 1).is_some_and(u8::is_ascii_hexdigit)
            && bytes.get(at + 2).is_some_and(u8::is_ascii_hexdigit)
    })
}

/// What is wrong with a request target for whoever reads a request line; `None` when nothing is.
///
/// RFC 3986 forbids `[ ] { } | ^`, quotes, angle brackets, the backslash and the backquote, but browsers and clients send
/// them raw and no reader of a request line splits there, so they pass. A fragment is never sent (RFC 9112 §3.2).
pub fn target_fault(target: &[u8]) -> Option<Violation> {
    let found = target.iter().find(|byte| !byte.is_ascii_graphic() || **byte == b'#');
    found.map(|byte| violation(format!("byte {byte:#04x} in the target")))
}

/// What in a request target a worker and the proxy could route in two ways; `None` when nothing is. A query is the
/// worker's alone to read.
pub fn target_leak(method: &str, target: &[u8]) -> Option<Violation> {
    if target == b"*" {
        return (method != "OPTIONS").then(|| violation("target `*` with a method other than OPTIONS"));
    }
    if !target.starts_with(b"/") {
        return Some(violation("target is not in origin form"));
    }
    let path = target.split(|&byte| byte == b'?').next().unwrap_or_default();
    if let Some(byte) = path.iter().find(|byte| b"\"<>\\".contains(byte)) {
        return Some(violation(format!("byte {byte:#04x} in the path")));
    }
    if !percent_encoding_is_valid(path) {
        return Some(violation("malformed percent-encoding in the path"));
    }
    path_leak(&String::from_utf8_lossy(path).to_ascii_lowercase())
}

fn path_leak(path: &str) -> Option<Violation> {
    for hidden in ["%00", "%5c"] {
        if path.contains(hidden) {
            return Some(violation(format!("`{hidden}` in the path")));
        }
    }
    path.split('/')
        .any(|segment| matches!(segment.replace("%2e", ".").as_str(), "." | ".."))
        .then(|| violation("dot segment in the path"))
}

/// Fields a trailer section may not carry: framing, routing, authentication, content, response control.
pub fn forbidden_in_trailers(name: &str) -> bool {
    const NAMES: [&str; 22] = [
        "transfer-encoding",
        "content-length",
        "host",
        "connection",
        "keep-alive",
        "proxy-connection",
        "upgrade",
        "te",
        "trailer",
        "expect",
        "range",
        "max-forwards",
        "cache-control",
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "content-encoding",
        "content-type",
        "content-range",
        "forwarded",
        "x-real-ip",
    ];
    let name = name.to_ascii_lowercase();
    NAMES.contains(&name.as_str()) || name.starts_with("x-forwarded-")
}

/// Names that a server which turns dashes into underscores (CGI, WSGI, PHP) would take for a field that the proxy
/// sets or acts on.
pub fn imitates_own_field(name: &str) -> bool {
    let dashed = name.to_ascii_lowercase().replace('_', "-");
    name.contains('_')
        && (dashed.starts_with("x-forwarded-")
            || matches!(dashed.as_str(), "x-real-ip" | "content-length" | "transfer-encoding"))
}

/// Bytes as a person reads them in a report.
pub fn show(bytes: &[u8]) -> String {
    const LONGEST: usize = 600;
    let text = bytes[..bytes.len().min(LONGEST)].escape_ascii().to_string();
    if bytes.len() > LONGEST { format!("{text}… ({} bytes)", bytes.len()) } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for good in ["a", "a.test:80", "127.0.0.1", "[::1]:8080", "a_b", "xn--n-ala", "a%41", "a:0"] {
            assert!(is_host(good.as_bytes()), "{good}");
        }
        for bad in [
            "", "a b", "a,b", "u@a", "a/x", "a:99999", "a:", "a:x", "[::1", "[zz]", ":80", "a%4", "\u{e9}",
            "a\\b",
        ] {
            assert!(!is_host(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn targets() {
        let told = |method: &str, target: &str| {
            target_fault(target.as_bytes()).or_else(|| target_leak(method, target.as_bytes()))
        };
        for good in
            ["/", "/a//b;c=1?x=%2e%2e/..", "/%2Fa", "/a..b/...", "/?q=[1]|{2}", "/?%&%u20ac=\"<>\\%00"]
        {
            assert_eq!(told("GET", good), None, "{good}");
        }
        for bad in [
            "*",
            "a",
            "http://a/",
            "/a/../b",
            "/%2E%2e/b",
            "/a/.",
            "/%",
            "/%0g",
            "/%00",
            "/%5c",
            "/\\",
            "/\"",
            "/#",
            "/?#",
            "/a b",
            "/?\t",
            "/\u{e9}",
        ] {
            assert!(told("GET", bad).is_some(), "{bad}");
        }
        assert_eq!(told("OPTIONS", "*"), None);
    }

    #[test]
    fn imitations() {
        assert!(imitates_own_field("X_Forwarded-For") && imitates_own_field("content_length"));
        assert!(!imitates_own_field("X-Forwarded-For") && !imitates_own_field("user_id"));
    }
}

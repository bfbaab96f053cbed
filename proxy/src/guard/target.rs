//! What a request asks for: a target in origin form whose path has one spelling (RFC 9112 §3.2, RFC 3986 §6.2.2).

use bytes::Bytes;
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{Method, Uri, Version};

use crate::rejection::Rejection;

/// Leaves path and query only, the path canonical: what is routed is what is forwarded.
///
/// Canonical means: no dot segment, encoded or not, and no percent-encoding of a character that needs none, so that
/// `/%61dmin` does not pass by a rule for `/admin`. `//` and `%2F` are data, and kept.
pub(super) fn settle(head: &mut Parts) -> Result<(), Rejection> {
    let bad = Rejection::BadRequest;
    let absolute = head.uri.scheme().is_some() || head.uri.authority().is_some();
    if head.uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
        return Err(bad("the target's scheme is neither http nor https"));
    }
    let target = head.uri.path_and_query().ok_or(bad("the target has no path"))?.as_str();
    if target == "*" {
        if head.method != Method::OPTIONS {
            return Err(bad("the target '*' is for OPTIONS only"));
        }
        head.uri = Uri::from_static("*");
        return Ok(());
    }
    if !target.starts_with('/') && (!absolute || head.version == Version::HTTP_2) {
        return Err(bad("the target does not begin with a slash"));
    }
    if let Some(rewritten) = canonical(target)? {
        let target = PathAndQuery::from_maybe_shared(Bytes::from(rewritten));
        head.uri = Uri::from(target.map_err(|_| bad("the target is too long"))?);
    } else if absolute {
        let target = std::mem::take(&mut head.uri).into_parts().path_and_query;
        head.uri = target.map(Uri::from).filter(|target| !target.path().is_empty()).unwrap_or_default();
    }
    Ok(())
}

/// The query of a target, from its question mark on, as the client wrote it, where an URI must write it in another way. Nothing
/// is routed by it, and the worker gets it as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawQuery(pub Bytes);

impl RawQuery {
    /// The query of a target, and the target with that encoded; `None` where a URI writes it in the same way.
    pub fn of(target: &Bytes) -> Option<(Bytes, Self)> {
        let at = memchr::memchr(b'?', target)?;
        if !target[at..].iter().any(|byte| matches!(byte, b'"' | b'<' | b'>')) {
            return None;
        }
        let mut encoded = Vec::with_capacity(target.len() + 16);
        encoded.extend_from_slice(&target[..at]);
        encode_raw(&target[at..], &mut encoded);
        Some((encoded.into(), Self(target.slice(at..))))
    }
}

/// Adds a part of a target with the bytes encoded that an URI must not have and that some clients leave raw.
fn encode_raw(part: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in part {
        if matches!(byte, b'"' | b'<' | b'>') {
            out.extend([b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        } else {
            out.push(byte);
        }
    }
}

/// The canonical form of a target, `None` if it is in that form already. The query passes untouched: nobody routes by it.
fn canonical(target: &str) -> Result<Option<Vec<u8>>, Rejection> {
    let target = target.as_bytes();
    let seen = target.iter().fold(0, |seen, &byte| seen | CLASS[usize::from(byte)]);
    if seen & NEVER != 0 {
        return Err(Rejection::BadRequest("the target has bytes that must be encoded"));
    }
    if seen == 0 && target.starts_with(b"/") {
        return Ok(None);
    }
    let end = target.iter().position(|&byte| byte == b'?').unwrap_or(target.len());
    let (path, query) = target.split_at(end);
    let encoded = seen & PERCENT != 0 && has_needless_encoding(path)?;
    let raw = seen & RAW != 0 && path.contains(&b'"');
    if seen & RAW != 0 && path.contains(&b'\\') {
        return Err(Rejection::BadRequest("the path has a backslash"));
    }
    let dotted = seen & DOT != 0 && path.windows(2).any(|pair| pair == b"/.");
    if !encoded && !dotted && !raw && !path.is_empty() {
        return Ok(None);
    }
    let mut rewritten = Vec::with_capacity(target.len() + 16);
    encode_raw(&without_dot_segments(&decoded(path))?, &mut rewritten);
    rewritten.extend_from_slice(query);
    Ok((rewritten != target).then_some(rewritten))
}

/// Refuses percent-encoding in a path that is malformed, or of NUL or a backslash: readers written in C end there, readers
/// on Windows take it for a slash. Says whether the path encodes what needs no encoding.
fn has_needless_encoding(path: &[u8]) -> Result<bool, Rejection> {
    let mut needless = false;
    let mut rest = path;
    while let Some(at) = rest.iter().position(|&byte| byte == b'%') {
        rest = &rest[at..];
        match encoded_byte(rest).ok_or(Rejection::BadRequest("malformed percent-encoding in the path"))? {
            0 => return Err(Rejection::BadRequest("the path encodes NUL")),
            b'\\' => return Err(Rejection::BadRequest("the path encodes a backslash")),
            byte => needless |= is_unreserved(byte),
        }
        rest = &rest[3..];
    }
    Ok(needless)
}

fn encoded_byte(text: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    match *text {
        [b'%', high, low, ..] => Some(digit(high)? << 4 | digit(low)?),
        _ => None,
    }
}

/// RFC 3986 §2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// The path with every unreserved character plain (RFC 3986 §6.2.2.2).
fn decoded(path: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [byte, after @ ..] = rest {
        match encoded_byte(rest) {
            Some(unreserved) if is_unreserved(unreserved) => {
                plain.push(unreserved);
                rest = &rest[3..];
            }
            _ => {
                plain.push(*byte);
                rest = after;
            }
        }
    }
    plain
}

/// RFC 3986 §5.2.4. A dot segment with parameters (`..;a`) is refused: some workers cut the parameters off first.
fn without_dot_segments(path: &[u8]) -> Result<Vec<u8>, Rejection> {
    let mut out = Vec::with_capacity(path.len() + 1);
    let mut segments = path.strip_prefix(b"/").unwrap_or(path).split(|&byte| byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        match segment {
            b"." => {}
            b".." => out.truncate(out.iter().rposition(|&byte| byte == b'/').unwrap_or(0)),
            [b'.', b';', ..] | [b'.', b'.', b';', ..] => {
                return Err(Rejection::BadRequest("a dot segment has parameters"));
            }
            _ => {
                out.push(b'/');
                out.extend_from_slice(segment);
                continue;
            }
        }
        if segments.peek().is_none() {
            out.push(b'/');
        }
    }
    Ok(out)
}

/// Never in a target that is an URI: control bytes, space, bytes above 7f, and `#`, `<`, `>`.
const NEVER: u8 = 1;
const PERCENT: u8 = 2;
const DOT: u8 = 4;
/// Not in RFC 3986, and in a path dangerous: the quote, which is encoded, and the backslash, which is refused. Brackets,
/// braces, bars, carets and backquotes are not in it either; no reader splits on them, and they pass as they are.
const RAW: u8 = 8;

const CLASS: [u8; 256] = {
    let mut table = [NEVER; 256];
    let mut byte = b'!';
    while byte <= b'~' {
        table[byte as usize] = match byte {
            b'#' | b'<' | b'>' => NEVER,
            b'%' => PERCENT,
            b'.' => DOT,
            b'"' | b'\\' => RAW,
            _ => 0,
        };
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settled(method: Method, version: Version, target: &str) -> Result<String, Rejection> {
        let request = http::Request::builder().method(method).version(version).uri(target).body(()).unwrap();
        let mut head = request.into_parts().0;
        settle(&mut head)?;
        assert!(head.uri.scheme().is_none() && head.uri.authority().is_none());
        let (shown, seen) = (head.uri.to_string(), head.uri.path_and_query().unwrap().as_str().to_owned());
        assert_eq!(shown, seen, "what is written is what is read");
        Ok(shown)
    }

    fn get(target: &str) -> Result<String, Rejection> {
        settled(Method::GET, Version::HTTP_11, target)
    }

    #[test]
    fn canonical_targets_stay() {
        for target in [
            "/",
            "/a",
            "/a!$&'()*+,;=:@-._~b",
            "/a%2Fb/%2f",
            "/caf%C3%A9?q=%E2%82%AC",
            "/a//b///",
            "//b.test/x",
            "/a?",
            "/?x",
            "/a?b=/../?c=./%2e%2e/",
            "/.../a..b/.well-known/..c",
            "/a;v=1/b;x",
            "/a?b[]=1|2",
            "/a?b=%5C",
            "/a%20b",
            "/a.js?v=1.2",
            "/a%252e",
            "/a?{}^`",
            "/a?b\\c",
            "/t?%00",
            "/t?%",
            "/t?q=100%",
            "/t?u=%u20AC",
        ] {
            assert_eq!(get(target).unwrap(), target);
        }
    }

    #[test]
    fn targets_are_rewritten() {
        for (target, expected) in [
            ("/t/../admin", "/admin"),
            ("/t/%2e%2e/%2E/admin", "/admin"),
            ("/../../etc/passwd", "/etc/passwd"),
            ("/t/.%2e/admin/%2e./x", "/x"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/a/.?x=..", "/a/?x=.."),
            ("/..", "/"),
            ("/.", "/"),
            ("/a//../b", "/a/b"),
            ("/a/..//b", "//b"),
            ("/%61dm%69n", "/admin"),
            ("/{\"a\"}?b\\", "/{%22a%22}?b\\"),
            ("http://b.test:8080/x?y", "/x?y"),
            ("http://b.test", "/"),
            ("http://b.test?x=1", "/?x=1"),
            ("http://b.test/?x=1", "/?x=1"),
            ("https://b.test/./x", "/x"),
            ("HTTP://a.test/x", "/x"),
        ] {
            assert_eq!(get(target).unwrap(), expected, "{target}");
        }
    }

    #[test]
    fn targets_are_refused() {
        for target in [
            "*",
            "a.test",
            "a.test:80",
            "t",
            "ftp://a.test/t",
            "/t%",
            "/t%4",
            "/t%zz",
            "/t%u002e",
            "/t%00",
            "/t%5c",
            "/t%5C..%5Cadmin",
            "/t\\x",
            "/é",
            "/t?é",
            "/a/..;/b",
            "/a/.;x/b",
            "/a/%2e%2e;x/b",
        ] {
            assert!(matches!(get(target), Err(Rejection::BadRequest(_))), "{target}");
        }
        let h2 = settled(Method::GET, Version::HTTP_2, "http://a.test?x");
        assert!(h2.is_err());
    }

    #[test]
    fn star_is_for_options() {
        assert_eq!(settled(Method::OPTIONS, Version::HTTP_11, "*").unwrap(), "*");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn canonical_is_a_fixed_point(path in "(/([.]|%2[eE]|%2[fF]|%61|%25|[a;?]|%41%5[a-f])*){1,6}") {
            if let Ok(once) = get(&path) {
                prop_assert_eq!(&get(&once).unwrap(), &once);
                let path = once.split('?').next().unwrap();
                let dots = |segment: &str| matches!(segment.to_lowercase().replace("%2e", ".").as_str(), "." | "..");
                prop_assert!(path.starts_with('/'));
                prop_assert!(!path.split('/').any(dots), "{}", path);
            }
        }

        #[test]
        fn any_text_is_refused_or_canonical(target in "/[ -~é\\x01\\x7f]{0,24}") {
            if let Ok(uri) = target.parse::<Uri>()
                && let Ok(once) = get(&uri.to_string())
            {
                prop_assert_eq!(&get(&once).unwrap(), &once);
                prop_assert!(once.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"#<>".contains(&byte)));
                prop_assert!(!once.split('?').next().unwrap().contains('\\'));
            }
        }
    }
}

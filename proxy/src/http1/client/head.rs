//! The head of an answer, read from its bytes (RFC 9112 §6.3).

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Response, StatusCode, Version, header, response};
use hyper::ext::ReasonPhrase;

use super::Error;
use crate::guard;
use crate::http1::chunked::Chunked;
use crate::http1::fields::{self, Malformed, Noted};
use crate::http1::framing::Framing;

/// A head.
pub(super) struct Head {
    pub(super) parts: response::Parts,
    /// What follows it; `None` after an interim answer, which the final one follows.
    pub(super) framing: Option<Framing>,
    /// Whether the worker takes another request afterwards.
    pub(super) keeps_alive: bool,
    /// For how long the connection may rest, where the worker says so.
    pub(super) timeout: Option<Duration>,
    /// How long it is.
    pub(super) bytes: usize,
}

/// Reads the head with which `bytes` begin, into empty `fields`; `None` when its end has not come. `to_head` says that the
/// request's method was HEAD.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(
    bytes: &Bytes,
    to_head: bool,
    fields: impl FnOnce() -> HeaderMap,
) -> Result<Option<Head>, Error> {
    let Some(end) = fields::line_end(bytes, 0)? else {
        return if speaks_http(bytes) { Ok(None) } else { Err(OTHER_PROTOCOL) };
    };
    let mut parts = Response::new(()).into_parts().0;
    status_line(&mut parts, &bytes.slice(..end))?;
    parts.headers = fields();
    let mut noted = Noted::default();
    let Some(length) = fields::read(bytes, end + 2, &mut parts.headers, &mut noted)? else { return Ok(None) };
    let framing = framing(&parts, to_head)?;
    let empty = framing.as_ref().is_none_or(|framing| matches!(framing, Framing::None));
    let timeout = if noted.connection { timeout(&parts.headers) } else { None };
    let keeps_alive = keeps_alive(&parts)
        && !(empty && announces_content(&parts.headers))
        && timeout.is_none_or(|timeout| !timeout.is_zero());
    Ok(Some(Head { parts, framing, keeps_alive, timeout, bytes: length }))
}

/// How the body ends that follows this head.
fn framing(head: &response::Parts, to_head: bool) -> Result<Option<Framing>, Error> {
    match head.status.as_u16() {
        101 | 204 | 304 => return Ok(Some(Framing::None)),
        100..200 => return Ok(None),
        _ if to_head => return Ok(Some(Framing::None)),
        _ => {}
    }
    let headers = &head.headers;
    if let Some(last) = guard::members(headers, &header::TRANSFER_ENCODING).last() {
        if head.version != Version::HTTP_11 {
            return Err(Error::Head("the worker sent Transfer-Encoding, which is for HTTP/1.1 only"));
        }
        let chunked = last.eq_ignore_ascii_case(b"chunked");
        return Ok(Some(if chunked { Framing::Chunked(Chunked::default()) } else { Framing::Close }));
    }
    if !headers.contains_key(header::CONTENT_LENGTH) {
        return Ok(Some(Framing::Close));
    }
    let length =
        guard::content_length(headers).ok_or(Error::Head("the worker's Content-Length is not one number"))?;
    Ok(Some(Framing::Length(length)))
}

/// Whether another request may follow (RFC 9112 §9.3). Not after an answer that two readers could end at different bytes.
fn keeps_alive(head: &response::Parts) -> bool {
    let headers = &head.headers;
    let ambiguous =
        headers.contains_key(header::TRANSFER_ENCODING) && headers.contains_key(header::CONTENT_LENGTH);
    if ambiguous || head.status == StatusCode::SWITCHING_PROTOCOLS {
        return false;
    }
    if !headers.contains_key(header::CONNECTION) {
        return head.version == Version::HTTP_11;
    }
    let says = |option: &[u8]| {
        guard::members(headers, &header::CONNECTION).any(|member| member.eq_ignore_ascii_case(option))
    };
    !says(b"close") && (head.version == Version::HTTP_11 || says(b"keep-alive"))
}

/// For how long a connection rests whose worker closes it after the time of `Keep-Alive: timeout=…` (RFC 2068 §19.7.1.1, in whole
/// seconds): a second less, so that no request meets it half closed.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    const LONGEST: Duration = Duration::from_secs(60);
    let seconds = guard::members(headers, &KEEP_ALIVE).find_map(|member| {
        let (name, value) = member.split_at_checked(b"timeout=".len())?;
        let value = name.eq_ignore_ascii_case(b"timeout=").then_some(value)?;
        std::str::from_utf8(value).ok()?.trim_matches('"').parse::<u16>().ok()
    })?;
    let timeout = Duration::from_secs(seconds.into());
    Some(timeout.saturating_sub(Duration::from_secs(1)).max(timeout / 2).min(LONGEST))
}

/// Whether the fields promise content. Where there can be none, a worker that breaks the rules sends it all the same, and perhaps
/// late: on a connection that is used again it would be the next request's answer.
fn announces_content(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TRANSFER_ENCODING)
        || headers.contains_key(header::CONTENT_LENGTH) && guard::content_length(headers) != Some(0)
}

const OTHER_PROTOCOL: Error = Error::Head("the worker does not speak HTTP/1.1");

/// Whether these may be the first bytes of an answer.
fn speaks_http(bytes: &[u8]) -> bool {
    bytes.iter().zip(b"HTTP/1.").all(|(byte, expected)| byte == expected)
}

/// Reads `version SP status SP reason`; many workers leave the last space out where there is no reason.
fn status_line(parts: &mut response::Parts, line: &Bytes) -> Result<(), Error> {
    parts.version = match line.get(..8) {
        Some(b"HTTP/1.1") => Version::HTTP_11,
        Some(b"HTTP/1.0") => Version::HTTP_10,
        _ => return Err(OTHER_PROTOCOL),
    };
    const MALFORMED: Error = Error::Head("the worker's answer has a malformed status");
    let (status, reason) = match &line[8..] {
        [b' ', status @ ..] if status.len() == 3 => (status, 12),
        [b' ', status @ .., _] if status.len() == 3 && line[12] == b' ' => (status, 13),
        [b' ', a, b, c, b' ', ..] => (&[*a, *b, *c][..], 13),
        _ => return Err(MALFORMED),
    };
    parts.status = StatusCode::from_bytes(status).map_err(|_| MALFORMED)?;
    let phrase = line.slice(reason..);
    if phrase.is_empty() || parts.status.canonical_reason().is_some_and(|usual| usual.as_bytes() == phrase) {
        return Ok(());
    }
    let phrase = ReasonPhrase::try_from(phrase).map_err(|_| MALFORMED)?;
    parts.extensions.insert(phrase);
    Ok(())
}

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Self {
        Self::Head(match malformed {
            Malformed::Line => "a line of the worker's answer does not end with CR LF",
            Malformed::Name => "the worker's answer has a malformed field name",
            Malformed::Value => "the worker's answer has a malformed field value",
            Malformed::TooMany => "the worker sent too many fields",
        })
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Option<Head>, Error> {
        parse(&Bytes::copy_from_slice(text.as_bytes()), false, HeaderMap::new)
    }

    fn told(framing: Option<Framing>) -> String {
        match framing {
            None => "interim".into(),
            Some(Framing::None) => "none".into(),
            Some(Framing::Length(length)) => length.to_string(),
            Some(Framing::Chunked(_)) => "chunked".into(),
            Some(Framing::Close) => "close".into(),
        }
    }

    #[test]
    fn how_a_body_ends() {
        for (head, framing, keeps_alive) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n", "5", true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\nContent-Length: 5\r\n", "5", true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n", "chunked", true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\ntransfer-encoding: Chunked\r\n", "chunked", true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n", "chunked", true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, gzip\r\n", "close", true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n", "chunked", false),
            ("HTTP/1.1 200 OK\r\n", "close", true),
            ("HTTP/1.1 204 No Content\r\n", "none", true),
            ("HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n", "none", true),
            ("HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n", "none", false),
            ("HTTP/1.1 204 No Content\r\ncontent-length: a\r\n", "none", false),
            ("HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n", "none", false),
            ("HTTP/1.1 304 Not Modified\r\n", "none", true),
            ("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n", "none", false),
            ("HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n", "none", false),
            ("HTTP/1.1 100 Continue\r\n", "interim", true),
            ("HTTP/1.1 103 Early Hints\r\nlink: a\r\n", "interim", true),
            ("HTTP/1.1 103 Early Hints\r\ncontent-length: 5\r\n", "interim", false),
            ("HTTP/1.1 100 Continue\r\ntransfer-encoding: chunked\r\n", "interim", false),
            ("HTTP/1.1 101 Switching Protocols\r\nupgrade: a\r\n", "none", false),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: a, Close\r\n", "5", false),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\nconnection: keep-alive\r\n",
                "5",
                false,
            ),
            ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n", "5", false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: Keep-Alive\r\n", "5", true),
        ] {
            let read = read(&format!("{head}\r\nbody")).expect(head).expect(head);
            assert_eq!((told(read.framing).as_str(), read.keeps_alive), (framing, keeps_alive), "{head}");
            assert_eq!(read.bytes, head.len() + 2);
        }
    }

    #[test]
    fn a_worker_says_for_how_long_its_connection_may_rest() {
        let second = Duration::from_secs(1);
        for (fields, timeout) in [
            ("connection: keep-alive\r\nkeep-alive: timeout=5\r\n", Some(4 * second)),
            ("connection: keep-alive\r\nkeep-alive: max=100, Timeout=72\r\n", Some(60 * second)),
            ("connection: keep-alive\r\nkeep-alive: timeout=\"2\"\r\n", Some(second)),
            ("connection: keep-alive\r\nkeep-alive: timeout=1\r\n", Some(second / 2)),
            ("connection: keep-alive\r\nkeep-alive: timeout=0\r\n", Some(Duration::ZERO)),
            ("connection: keep-alive\r\nkeep-alive: timeout=-1, timeouts=3, 5\r\n", None),
            ("connection: keep-alive\r\nkeep-alive: timeout=99999999\r\n", None),
            ("connection: keep-alive\r\n", None),
        ] {
            let head =
                read(&format!("HTTP/1.1 204 No Content\r\n{fields}\r\n")).expect(fields).expect(fields);
            assert_eq!(
                (head.timeout, head.keeps_alive),
                (timeout, timeout != Some(Duration::ZERO)),
                "{fields}"
            );
        }
    }

    #[test]
    fn an_answer_to_head_has_no_body() {
        for (fields, keeps_alive) in [
            ("", true),
            ("content-length: 0\r\n", true),
            ("content-length: 5\r\n", false),
            ("transfer-encoding: chunked\r\n", false),
        ] {
            let head = Bytes::from(format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
            let read = parse(&head, true, HeaderMap::new).expect("valid").expect("whole");
            assert_eq!((told(read.framing).as_str(), read.keeps_alive), ("none", keeps_alive), "{fields}");
            assert_eq!(read.parts.headers.is_empty(), fields.is_empty(), "they are for the client");
        }
    }

    #[test]
    fn what_is_no_head() {
        for (head, says) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n", "Content-Length"),
            ("HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n", "Content-Length"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n", "Content-Length"),
            ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", "HTTP/1.1 only"),
            ("HTTP/1.1 200 OK\r\na b: c\r\n\r\n", "name"),
            ("HTTP/1.1 200 OK\r\na: b\r\n c\r\n\r\n", "name"),
            ("HTTP/1.1 200 OK\r\na : b\r\n\r\n", "name"),
            ("HTTP/1.1 200 OK\r\na: b\0\r\n\r\n", "value"),
            ("HTTP/1.1 20 OK\r\n\r\n", "status"),
            ("HTTP/1.1 099 OK\r\n\r\n", "status"),
            ("HTTP/2 200 OK\r\n\r\n", "does not speak"),
            ("hello", "does not speak"),
        ] {
            let error = read(head).err().unwrap_or_else(|| panic!("{head} was taken"));
            assert!(error.to_string().contains(says), "{head}: {error}");
        }
        let fields: String = (0..=guard::MAX_HEADERS).map(|n| format!("x-{n}: a\r\n")).collect();
        let error = read(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).err().expect("too many");
        assert!(error.to_string().contains("too many fields"), "{error}");
    }

    #[test]
    fn a_head_is_read_when_it_is_whole() {
        let text = "HTTP/1.1 200 Fine\r\nx-a: 1\r\nX-A: \r\nset-cookie: a=\u{e9}\r\n\r\n";
        for end in 0..text.len() {
            if text.is_char_boundary(end) {
                assert!(read(&text[..end]).expect("valid").is_none(), "{end}");
            }
        }
        let head = read(text).expect("valid").expect("whole");
        let values: Vec<_> = head.parts.headers.get_all("x-a").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!((values, head.parts.headers.len()), (vec![&b"1"[..], b""], 3));
        assert_eq!(
            head.parts.extensions.get::<ReasonPhrase>().map(ReasonPhrase::as_bytes),
            Some(&b"Fine"[..])
        );
        let plain = read("HTTP/1.1 200 OK\r\n\r\n").expect("valid").expect("whole");
        assert!(plain.parts.extensions.get::<ReasonPhrase>().is_none());
    }

    proptest! {
        #[test]
        fn garbage_is_no_panic(
            start in prop::sample::select(&["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length:"][..]),
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = Bytes::from([start.as_bytes(), &bytes, b"\r\n\r\n"].concat());
            if let Ok(Some(head)) = parse(&bytes, false, HeaderMap::new) {
                prop_assert!(head.bytes <= bytes.len());
            }
        }
    }
}

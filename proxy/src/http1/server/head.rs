//! The head of a request, read from its bytes (RFC 9112 §3).

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Uri, Version, header, request};

use crate::connection::Holding;
use crate::guard::{self, Content, RawQuery};
use crate::http1::chunked::Chunked;
use crate::http1::fields::{self, Malformed, Noted};
use crate::http1::framing::Framing;
use crate::rejection::Rejection;

/// A method may have this many bytes; the longest that is registered has 17. Without a bound a line that does not end would be
/// looked at anew with each of its bytes.
const MAX_METHOD_BYTES: usize = 64;

/// A head.
pub(super) struct Head {
    pub(super) parts: request::Parts,
    /// How its content ends.
    pub(super) framing: Framing,
    /// Whether the client means to send another request on its connection.
    pub(super) keep_alive: bool,
    /// Whether the client takes trailers.
    pub(super) trailers: bool,
    /// How long it is.
    pub(super) bytes: usize,
    /// What it takes of memory, where that is more than a little.
    pub(super) holding: Option<Holding>,
}

/// Reads the head with which `bytes` begin; `None` when its end has not come. The fields go into `fields`, which must be
/// empty.
///
/// # Errors
/// Why it is refused. Where its content would end is not known then, nor where another request would begin.
pub(super) fn parse(bytes: &Bytes, fields: &mut HeaderMap) -> Result<Option<Head>, Rejection> {
    let Some(end) = fields::line_end(bytes, 0)? else {
        return begins_well(bytes).map(|()| None);
    };
    let line = RequestLine::of(bytes, end)?;
    let mut noted = Noted::default();
    let Some(length) = fields::read(bytes, end + 2, fields, &mut noted)? else { return Ok(None) };
    let mut parts = Request::new(()).into_parts().0;
    parts.method = line.method;
    parts.version = line.version;
    let target = Target::of(&parts.method, line.target)?;
    parts.uri = target.uri;
    if let Some(query) = target.query {
        parts.extensions.insert(query);
    }
    parts.headers = std::mem::take(fields);
    let framing = framing(&parts.headers, line.version, noted)?;
    let keep_alive = keep_alive(&parts.headers, line.version, noted);
    let trailers =
        noted.te && guard::members(&parts.headers, &header::TE).any(|member| member == b"trailers");
    Ok(Some(Head { parts, framing, keep_alive, trailers, bytes: length, holding: None }))
}

/// `method SP target SP version`.
struct RequestLine {
    method: Method,
    target: Bytes,
    version: Version,
}

impl RequestLine {
    fn of(bytes: &Bytes, end: usize) -> Result<Self, Rejection> {
        const MALFORMED: Rejection = Rejection::BadRequest("the request line is malformed");
        let line = &bytes[..end];
        let space =
            memchr::memchr(b' ', line).filter(|length| *length <= MAX_METHOD_BYTES).ok_or(MALFORMED)?;
        let method = Method::from_bytes(&line[..space]).map_err(|_| MALFORMED)?;
        let rest = &line[space + 1..];
        let length = memchr::memchr(b' ', rest).ok_or(MALFORMED)?;
        let version = match &rest[length + 1..] {
            b"HTTP/1.1" => Version::HTTP_11,
            b"HTTP/1.0" => Version::HTTP_10,
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
                if major.is_ascii_digit() && minor.is_ascii_digit() =>
            {
                return Err(Rejection::HttpVersion);
            }
            _ => return Err(MALFORMED),
        };
        if length == 0 {
            return Err(MALFORMED);
        }
        Ok(Self { method, target: bytes.slice(space + 1..space + 1 + length), version })
    }
}

/// Whether these may be the first bytes of a request line. Bytes of another protocol are refused at once: their line may
/// never end.
fn begins_well(bytes: &[u8]) -> Result<(), Rejection> {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let start = &bytes[..bytes.len().min(MAX_METHOD_BYTES + 1)];
    let method = start.split(|byte| *byte == b' ').next().unwrap_or_default();
    if !method.is_empty() && method.len() <= MAX_METHOD_BYTES && method.iter().all(is_token) {
        return Ok(());
    }
    // The CR of a line whose LF has not come, or of an empty one, is neither good nor bad yet.
    match method {
        [b'\r'] => Ok(()),
        _ => Err(Rejection::BadRequest("the request line is malformed")),
    }
}

/// The target. Where its query has bytes that an URI must encode and many clients do not, they are encoded in `uri`, and
/// `query` is as it came: nothing is routed by it, and the worker gets it untouched.
struct Target {
    uri: Uri,
    query: Option<RawQuery>,
}

impl Target {
    fn of(method: &Method, text: Bytes) -> Result<Self, Rejection> {
        if *method == Method::CONNECT {
            return Ok(Self { uri: Uri::default(), query: None }); // refused, whatever it names
        }
        if text.iter().any(|byte| !byte.is_ascii_graphic() || *byte == b'#') {
            return Err(Rejection::BadRequest("the target has bytes that must be encoded"));
        }
        let malformed = |_| Rejection::BadRequest("the target is malformed");
        let (text, query) = match RawQuery::of(&text) {
            None => (text, None),
            Some((encoded, query)) => (encoded, Some(query)),
        };
        Ok(Self { uri: Uri::from_maybe_shared(text).map_err(malformed)?, query })
    }
}

/// How the content ends.
fn framing(fields: &HeaderMap, version: Version, noted: Noted) -> Result<Framing, Rejection> {
    if !noted.coding && !noted.length {
        return Ok(Framing::None);
    }
    Ok(match guard::content(fields, version)? {
        Content::None => Framing::None,
        Content::Length(length) => Framing::Length(length),
        Content::Chunked => Framing::Chunked(Chunked::default()),
    })
}

/// Whether another request may follow (RFC 9112 §9.3).
fn keep_alive(fields: &HeaderMap, version: Version, noted: Noted) -> bool {
    if !noted.connection {
        return version == Version::HTTP_11;
    }
    let says = |option: &[u8]| {
        guard::members(fields, &header::CONNECTION).any(|member| member.eq_ignore_ascii_case(option))
    };
    !says(b"close") && (version == Version::HTTP_11 || says(b"keep-alive"))
}

impl From<Malformed> for Rejection {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::Line => Self::BadRequest("a line of the request's head does not end with CR LF"),
            Malformed::Name => Self::BadRequest("the name of a field is malformed"),
            Malformed::Value => Self::BadRequest("the value of a field has a byte that it must not have"),
            Malformed::TooMany => Self::HeadersTooLarge,
        }
    }
}

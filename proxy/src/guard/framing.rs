//! Where a message ends: `Content-Length` and `Transfer-Encoding` (RFC 9112 §6).

use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Version};

use super::fields::{self, Fields};
use crate::rejection::Rejection;

/// How the end of a request's content is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// There is none.
    None,
    /// By the number of bytes.
    Length(u64),
    /// By the last chunk.
    Chunked,
}

/// How the content of a request over HTTP/1.1 is framed, where that can be read in one way only.
///
/// # Errors
/// Why the end of the message is not known.
pub fn content(headers: &HeaderMap, version: Version) -> Result<Content, Rejection> {
    let coded = headers.contains_key(header::TRANSFER_ENCODING);
    let told = headers.contains_key(header::CONTENT_LENGTH);
    if coded {
        coding(headers, version)?;
    }
    match (coded, told) {
        (true, true) => Err(TWICE),
        (true, false) => Ok(Content::Chunked),
        (false, false) => Ok(Content::None),
        (false, true) => {
            let length = fields::only(headers, &header::CONTENT_LENGTH).and_then(length);
            length.map(|length| Content::Length(length.value)).ok_or(NO_NUMBER)
        }
    }
}

const TWICE: Rejection = Rejection::BadRequest("Content-Length beside Transfer-Encoding");
const NO_NUMBER: Rejection = Rejection::BadRequest("Content-Length is not one number");

/// Settles how a request's content is framed: by one length, or as whoever sends it sees fit.
pub(super) fn request(head: &mut Parts, fields: Fields, body_ended: bool) -> Result<(), Rejection> {
    let headers = &mut head.headers;
    let coded = fields.any(Fields::TRANSFER_ENCODING);
    if coded {
        coding(headers, head.version)?;
    }
    if !fields.any(Fields::CONTENT_LENGTH) {
        if coded {
            headers.remove(header::TRANSFER_ENCODING);
        }
        return Ok(());
    }
    if coded {
        return Err(TWICE);
    }
    match fields::only(headers, &header::CONTENT_LENGTH).and_then(length) {
        None => Err(NO_NUMBER),
        Some(Length { value: 1.., .. }) if body_ended => Err(Rejection::BadRequest("content is missing")),
        Some(length) => {
            length.write_anew(headers);
            Ok(())
        }
    }
}

/// Exactly one coding, and that chunked: the only one whose end every reader sees at the same byte (RFC 9112 §6.1).
fn coding(headers: &HeaderMap, version: Version) -> Result<(), Rejection> {
    if version != Version::HTTP_11 {
        return Err(Rejection::BadRequest("Transfer-Encoding is for HTTP/1.1 only"));
    }
    if is_chunked(headers) {
        return Ok(());
    }
    let known = |member: &[u8]| member.is_empty() || member.eq_ignore_ascii_case(b"chunked");
    if fields::members(headers, &header::TRANSFER_ENCODING).all(known) {
        return Err(Rejection::BadRequest("Transfer-Encoding is not one 'chunked'"));
    }
    Err(Rejection::NotImplemented)
}

/// Whether `Transfer-Encoding` is one line that says `chunked`.
pub(super) fn is_chunked(headers: &HeaderMap) -> bool {
    let line = fields::only(headers, &header::TRANSFER_ENCODING);
    line.is_some_and(|line| line.as_bytes().eq_ignore_ascii_case(b"chunked"))
}

/// A length, and whether it is written as anybody would write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Length {
    pub(super) value: u64,
    pub(super) plain: bool,
}

impl Length {
    /// Writes the length anew if it has leading zeros, which some readers take for octal, or several lines.
    pub(super) fn write_anew(self, headers: &mut HeaderMap) {
        if !self.plain {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(self.value));
        }
    }
}

/// Digits only: no sign, no white space, no list (RFC 9110 §8.6).
pub(super) fn length(value: &HeaderValue) -> Option<Length> {
    digits(value.as_bytes())
}

fn digits(text: &[u8]) -> Option<Length> {
    let digit = |value: u64, &byte: &u8| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    };
    let value = text.iter().try_fold(0, digit)?;
    match text {
        [] => None,
        [b'0', _, ..] => Some(Length { value, plain: false }),
        _ => Some(Length { value, plain: true }),
    }
}

/// The length that an answer's head tells, where it tells one and no other.
pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    folded_length(headers).map(|length| length.value)
}

/// The length of an answer: lines and members that are equal are one (RFC 9110 §8.6).
pub(super) fn folded_length(headers: &HeaderMap) -> Option<Length> {
    const NAME: HeaderName = header::CONTENT_LENGTH;
    if let Some(length) = fields::only(headers, &NAME).and_then(length) {
        return Some(length);
    }
    let mut members = fields::members(headers, &NAME).map(digits);
    let first = members.next()??;
    let equal = members.all(|member| member.is_some_and(|member| member.value == first.value));
    equal.then_some(Length { value: first.value, plain: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        for (text, expected) in [
            ("0", Some((0, true))),
            ("5", Some((5, true))),
            ("005", Some((5, false))),
            ("18446744073709551615", Some((u64::MAX, true))),
            ("18446744073709551616", None),
            ("", None),
            ("+5", None),
            ("-0", None),
            ("5a", None),
            ("0x5", None),
            ("1_0", None),
            ("1 0", None),
            ("5, 5", None),
            ("5.0", None),
        ] {
            let found = digits(text.as_bytes()).map(|length| (length.value, length.plain));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn equal_lengths_are_folded() {
        for (lines, expected) in [
            (&["5"][..], Some((5, true))),
            (&["5", "5"], Some((5, false))),
            (&["5, 5"], Some((5, false))),
            (&["5", "05"], Some((5, false))),
            (&["5", "6"], None),
            (&["5, 6"], None),
            (&["5,"], None),
            (&[""], None),
        ] {
            let lines = lines.iter().map(|line| (header::CONTENT_LENGTH, HeaderValue::from_static(line)));
            let mut headers = HeaderMap::new();
            lines.for_each(|(name, value)| _ = headers.append(name, value));
            let found = folded_length(&headers).map(|length| (length.value, length.plain));
            assert_eq!(found, expected, "{headers:?}");
        }
    }
}

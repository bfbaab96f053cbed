//! Lines of a head and of trailers, read from their bytes as strictly as they are defined (RFC 9112 §2.2, §5; RFC 9110 §5.5).
//!
//! One reader serves both directions. A line ends with CR LF and with nothing else: two readers that disagree about the end of
//! a line can be made to disagree about the end of a message.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use memchr::memchr;

use crate::guard::MAX_HEADERS;

/// A rule that the bytes break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// A line ends with a bare LF, or has a CR elsewhere.
    #[error("a line does not end with CR LF")]
    Line,
    /// It is not a token right before a colon. White space before it folds the line onto the one before, which is obsolete.
    #[error("a field's name is malformed")]
    Name,
    /// A control byte.
    #[error("a field's value has a byte that it must not have")]
    Value,
    /// More than `MAX_HEADERS`.
    #[error("too many fields")]
    TooMany,
}

/// Fields that say how the message ends and what becomes of its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Noted {
    /// `Content-Length` is there.
    pub(super) length: bool,
    /// `Transfer-Encoding` is there.
    pub(super) coding: bool,
    /// `Connection` is there.
    pub(super) connection: bool,
    /// `TE` is there.
    pub(super) te: bool,
}

impl Noted {
    fn note(&mut self, name: &HeaderName) {
        match *name {
            header::CONTENT_LENGTH => self.length = true,
            header::TRANSFER_ENCODING => self.coding = true,
            header::CONNECTION => self.connection = true,
            header::TE => self.te = true,
            _ => {}
        }
    }
}

/// The place of the CR LF that ends the line at `start`; `None` when it has not come.
///
/// # Errors
/// The line ends with a bare LF.
pub(super) fn line_end(bytes: &[u8], start: usize) -> Result<Option<usize>, Malformed> {
    let Some(length) = memchr(b'\n', &bytes[start..]) else { return Ok(None) };
    let end = start + length;
    match bytes[start..end].last() {
        Some(b'\r') => Ok(Some(end - 1)),
        _ => Err(Malformed::Line),
    }
}

/// Reads the field lines at `start` up to the empty line behind them, into `fields`. Returns the place behind that line;
/// `None` when it has not come.
///
/// # Errors
/// The rule that a line breaks.
pub(super) fn read(
    bytes: &Bytes,
    start: usize,
    fields: &mut HeaderMap,
    noted: &mut Noted,
) -> Result<Option<usize>, Malformed> {
    let mut at = start;
    loop {
        let Some(end) = line_end(bytes, at)? else { return Ok(None) };
        if end == at {
            return Ok(Some(end + 2));
        }
        if fields.len() == MAX_HEADERS {
            return Err(Malformed::TooMany);
        }
        let colon = bytes[at..end].iter().position(|byte| *byte == b':').ok_or(Malformed::Name)?;
        let name = HeaderName::from_bytes(&bytes[at..at + colon]).map_err(|_| Malformed::Name)?;
        noted.note(&name);
        let (from, to) = trimmed(bytes, at + colon + 1, end);
        // This looks at every byte: a control byte, and so a CR within the line, is an error.
        let value = HeaderValue::from_maybe_shared(bytes.slice(from..to)).map_err(|_| Malformed::Value)?;
        fields.append(name, value);
        at = end + 2;
    }
}

/// Looks for the empty line that ends a head of which the bytes before `scanned` were looked at. `scanned` becomes the
/// start of the first line without an end.
///
/// # Errors
/// A line ends with a bare LF.
pub(super) fn has_end(bytes: &[u8], scanned: &mut usize) -> Result<bool, Malformed> {
    while let Some(end) = line_end(bytes, *scanned)? {
        if end == *scanned {
            return Ok(true);
        }
        *scanned = end + 2;
    }
    Ok(false)
}

/// The value between `from` and `to` without the white space around it.
fn trimmed(bytes: &[u8], mut from: usize, mut to: usize) -> (usize, usize) {
    let is_space = |byte: u8| matches!(byte, b' ' | b'\t');
    while from < to && is_space(bytes[from]) {
        from += 1;
    }
    while from < to && is_space(bytes[to - 1]) {
        to -= 1;
    }
    (from, to)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Whole = Option<(HeaderMap, usize)>;

    fn fields(text: &[u8]) -> Result<Whole, Malformed> {
        let (mut fields, mut noted) = (HeaderMap::new(), Noted::default());
        let end = read(&Bytes::copy_from_slice(text), 0, &mut fields, &mut noted)?;
        Ok(end.map(|end| (fields, end)))
    }

    #[test]
    fn lines_are_fields() {
        let text =
            b"Host: a.test\r\nx-a:1\r\nX-A: \t two words \t\r\nempty:\r\nx-b: caf\xe9\ttab\r\n\r\nbody";
        let (fields, end) = fields(text).expect("valid").expect("whole");
        assert_eq!((fields["host"].as_bytes(), end), (&b"a.test"[..], text.len() - 4));
        let values: Vec<_> = fields.get_all("x-a").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(values, [&b"1"[..], b"two words"]);
        assert_eq!((fields["empty"].as_bytes(), fields["x-b"].as_bytes()), (&b""[..], &b"caf\xe9\ttab"[..]));
    }

    #[test]
    fn whatever_breaks_a_rule_is_refused() {
        for (text, rule) in [
            (&b"a: b\n\r\n"[..], Malformed::Line),
            (b"\n", Malformed::Line),
            (b"a: b\r\n\n", Malformed::Line),
            (b"a: b\rc: d\r\n\r\n", Malformed::Value),
            (b"a: b\r\r\n\r\n", Malformed::Value),
            (b"a: b\0\r\n\r\n", Malformed::Value),
            (b"a: b\x7f\r\n\r\n", Malformed::Value),
            (b"a : b\r\n\r\n", Malformed::Name),
            (b" a: b\r\n\r\n", Malformed::Name),
            (b"a: b\r\n c\r\n\r\n", Malformed::Name),
            (b"a: b\r\n\tc: d\r\n\r\n", Malformed::Name),
            (b": b\r\n\r\n", Malformed::Name),
            (b"a\r\n\r\n", Malformed::Name),
            (b"a(b): c\r\n\r\n", Malformed::Name),
            (b"\xe9: c\r\n\r\n", Malformed::Name),
            (b"\r: c\r\n\r\n", Malformed::Name),
        ] {
            assert_eq!(fields(text).err(), Some(rule), "{}", text.escape_ascii());
        }
        let many = |count: usize| (0..count).map(|n| format!("x-{n}: a\r\n")).collect::<String>() + "\r\n";
        assert_eq!(fields(many(MAX_HEADERS + 1).as_bytes()).err(), Some(Malformed::TooMany));
        assert!(fields(many(MAX_HEADERS).as_bytes()).is_ok());
    }

    #[test]
    fn the_end_is_found_wherever_bytes_are_cut() {
        let text = b"a: b\r\nc: d\r\n\r\n";
        for cut in 0..text.len() {
            assert!(fields(&text[..cut]).expect("valid").is_none(), "{cut}");
            let mut scanned = 0;
            assert_eq!(has_end(&text[..cut], &mut scanned), Ok(false), "{cut}");
            assert_eq!(has_end(text, &mut scanned), Ok(true), "{cut}");
        }
        assert_eq!(has_end(b"a: b\r\nc\n", &mut 0), Err(Malformed::Line));
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_strict(bytes in proptest::collection::vec(
            prop_oneof![Just(b'\r'), Just(b'\n'), Just(b':'), Just(b' '), Just(b'a'), Just(0), any::<u8>()], 0..40)
        ) {
            let text = [&bytes[..], b"\r\n\r\n"].concat();
            if let Ok(Some((fields, end))) = fields(&text) {
                let head = &text[..end];
                prop_assert!(head.windows(2).all(|pair| (pair[0] == b'\r') == (pair[1] == b'\n')), "{}", head.escape_ascii());
                prop_assert_eq!(head.split(|byte| *byte == b'\n').count() - 2, fields.len());
            }
        }
    }
}

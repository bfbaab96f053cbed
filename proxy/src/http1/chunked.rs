//! A chunked body, read from its bytes (RFC 9112 §7.1).

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::fields::{self, Noted};

/// A rule that the bytes break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Malformed(pub(super) &'static str);

/// A size may have this many digits: more than any number of bytes needs.
const MAX_DIGITS: u8 = 16;
/// Extensions of chunks, which nobody uses, may have this many bytes in one body.
const MAX_EXTENSION_BYTES: usize = 16 << 10;
/// The fields at the end may have this many.
const MAX_TRAILER_BYTES: usize = 16 << 10;

/// Where in a chunked body its reader is.
#[derive(Default)]
pub(super) struct Chunked {
    state: State,
    /// Of the chunk that is being read.
    left: u64,
    /// Of the size that is being read.
    digits: u8,
    extension_bytes: usize,
    /// In a box: most bodies have none.
    trailers: Option<Box<BytesMut>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before the first digit of a size.
    #[default]
    Start,
    Size,
    /// Behind a semicolon: a name begins.
    ExtensionStart,
    /// Within the name of an extension.
    Extension,
    /// Behind its equals sign: a value begins.
    ValueStart,
    /// Within a value that is a token.
    Value,
    /// Within the quotes of an extension's value.
    Quoted,
    /// Behind them.
    QuotedEnd,
    /// Behind a backslash there.
    Escaped,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the start of a line behind the last chunk.
    TrailerStart,
    Trailer,
    EndLf,
    Ended,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A part of the content.
    Data(Bytes),
    /// The end, with the fields that stand there.
    Trailers(HeaderMap),
    /// The end.
    End,
    /// More bytes are needed.
    More,
}

impl Chunked {
    /// Takes what comes next from the front of `bytes`; after the end, nothing.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn next(&mut self, bytes: &mut Bytes) -> Result<Next, Malformed> {
        loop {
            match self.state {
                State::Ended => return Ok(Next::End),
                State::Data if !bytes.is_empty() => {
                    let taken = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                    self.left -= taken as u64;
                    if self.left == 0 {
                        self.state = State::DataCr;
                    }
                    return Ok(Next::Data(bytes.split_to(taken)));
                }
                _ => {
                    let Some(byte) = bytes.first().copied() else { return Ok(Next::More) };
                    bytes.advance(1);
                    self.state = self.step(byte)?;
                    if self.state == State::Ended
                        && let Some(trailers) = self.trailers.take()
                    {
                        return fields_of(&trailers.freeze()).map(Next::Trailers);
                    }
                }
            }
        }
    }

    /// The state after one more byte that is no content. White space is nowhere allowed but within quotes: readers differ
    /// about where it may stand.
    fn step(&mut self, byte: u8) -> Result<State, Malformed> {
        match (self.state, byte) {
            (State::Start, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                (self.left, self.digits) = (0, 0);
                self.digit(byte)
            }
            (State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => self.digit(byte),
            (State::Size, b';') => Ok(State::ExtensionStart),
            (State::Size | State::Extension | State::Value | State::QuotedEnd, b'\r') => Ok(State::SizeLf),
            (State::Start | State::Size, _) => Err(Malformed("a chunk's size is no number")),
            (State::ExtensionStart | State::Extension | State::ValueStart | State::Value, _)
            | (State::Quoted | State::Escaped | State::QuotedEnd, _) => self.extension(byte),
            (State::SizeLf, b'\n') if self.left == 0 => Ok(State::TrailerStart),
            (State::SizeLf, b'\n') => Ok(State::Data),
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Start),
            (State::TrailerStart, b'\r') => {
                self.trailer(byte)?;
                Ok(State::EndLf)
            }
            (State::EndLf, b'\n') => {
                self.trailer(byte)?;
                Ok(State::Ended)
            }
            (State::TrailerStart, b'\n') => Err(LINE),
            (State::TrailerStart, _) => {
                self.trailers.get_or_insert_default();
                self.trailer(byte)?;
                Ok(State::Trailer)
            }
            (State::Trailer, _) => {
                self.trailer(byte)?;
                Ok(if byte == b'\n' { State::TrailerStart } else { State::Trailer })
            }
            _ => Err(LINE),
        }
    }

    fn digit(&mut self, byte: u8) -> Result<State, Malformed> {
        let digit = char::from(byte).to_digit(16).unwrap_or_default();
        let left = self.left.checked_mul(16).filter(|_| self.digits < MAX_DIGITS);
        self.left = left.ok_or(Malformed("a chunk's size is too large"))? + u64::from(digit);
        self.digits += 1;
        Ok(State::Size)
    }

    /// One byte of `;name=value`, where the value is a token or quoted.
    fn extension(&mut self, byte: u8) -> Result<State, Malformed> {
        const MALFORMED: Malformed = Malformed("a chunk's extension is malformed");
        self.extension_bytes += 1;
        if MAX_EXTENSION_BYTES < self.extension_bytes {
            return Err(Malformed("the extensions of the chunks are too long"));
        }
        match (self.state, byte) {
            (State::Quoted, b'"') => Ok(State::QuotedEnd),
            (State::Quoted, b'\\') => Ok(State::Escaped),
            (State::Quoted | State::Escaped, b'\t' | b' '..=b'~' | 0x80..) => Ok(State::Quoted),
            (State::Extension | State::Value | State::QuotedEnd, b';') => Ok(State::ExtensionStart),
            (State::Extension, b'=') => Ok(State::ValueStart),
            (State::ValueStart, b'"') => Ok(State::Quoted),
            (State::ExtensionStart | State::Extension, _) if is_token(byte) => Ok(State::Extension),
            (State::ValueStart | State::Value, _) if is_token(byte) => Ok(State::Value),
            _ => Err(MALFORMED),
        }
    }

    fn trailer(&mut self, byte: u8) -> Result<(), Malformed> {
        let Some(trailers) = &mut self.trailers else { return Ok(()) };
        if MAX_TRAILER_BYTES <= trailers.len() {
            return Err(Malformed("the trailer fields are too long"));
        }
        trailers.extend_from_slice(&[byte]);
        Ok(())
    }
}

const LINE: Malformed = Malformed("a line between the chunks does not end with CR LF");

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// The fields that stand in these lines.
fn fields_of(lines: &Bytes) -> Result<HeaderMap, Malformed> {
    const MALFORMED: Malformed = Malformed("a trailer field is malformed");
    let mut trailers = HeaderMap::new();
    let end = fields::read(lines, 0, &mut trailers, &mut Noted::default()).map_err(|_| MALFORMED)?;
    if end == Some(lines.len()) { Ok(trailers) } else { Err(MALFORMED) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MORE: Malformed = Malformed("more must come");

    /// Content, trailers and what was left behind.
    type Read = (Vec<u8>, Option<HeaderMap>, Vec<u8>);

    /// Reads bytes that come in these pieces.
    fn read(pieces: &[&[u8]]) -> Result<Read, Malformed> {
        let (mut chunked, mut content) = (Chunked::default(), Vec::new());
        for (place, piece) in pieces.iter().enumerate() {
            let mut bytes = Bytes::copy_from_slice(piece);
            loop {
                match chunked.next(&mut bytes)? {
                    Next::Data(data) => content.extend_from_slice(&data),
                    Next::More => break,
                    end => {
                        let trailers = if let Next::Trailers(trailers) = end { Some(trailers) } else { None };
                        assert_eq!(chunked.next(&mut bytes)?, Next::End, "nothing is taken behind the end");
                        let rest = pieces[place + 1..]
                            .iter()
                            .fold(bytes.to_vec(), |rest, piece| [&rest, *piece].concat());
                        return Ok((content, trailers, rest));
                    }
                }
            }
        }
        Err(MORE)
    }

    #[test]
    fn content_between_sizes() {
        for (bytes, content, rest) in [
            (&b"0\r\n\r\n"[..], &b""[..], &b""[..]),
            (b"5\r\nhello\r\n0\r\n\r\n", b"hello", b""),
            (b"5\r\nhello\r\n1;a=\"b c\\\"\";d\r\n!\r\n000\r\n\r\nHTTP", b"hello!", b"HTTP"),
            (b"A\r\n0123456789\r\n0a\r\n0123456789\r\n0\r\n\r\n\r\n", b"01234567890123456789", b"\r\n"),
        ] {
            let read = read(&[bytes]).expect("valid");
            assert_eq!(read, (content.to_vec(), None, rest.to_vec()));
        }
    }

    #[test]
    fn fields_at_the_end() {
        let (content, trailers, rest) =
            read(&[b"1\r\na\r\n0\r\nX-Sum: 1\r\nx-b:\r\n\r\nrest"]).expect("valid");
        let trailers = trailers.expect("there are");
        assert_eq!((content, rest), (b"a".to_vec(), b"rest".to_vec()));
        assert_eq!(
            (&trailers["x-sum"], &trailers["x-b"], trailers.len()),
            (&"1".parse().unwrap(), &"".parse().unwrap(), 2)
        );
    }

    #[test]
    fn what_is_not_chunked() {
        for bytes in [
            &b"\r\n"[..],
            b"x\r\n",
            b"-1\r\n",
            b"0x1\r\n",
            b"5\n",
            b"5 5\r\n",
            b"5\r\r",
            b"5;a\nb\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b"5\t;a\r\nhello\r\n0\r\n\r\n",
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"5; a\r\nhello\r\n0\r\n\r\n",
            b"5;\r\nhello\r\n0\r\n\r\n",
            b"5;a=\r\nhello\r\n0\r\n\r\n",
            b"5;a=b=c\r\nhello\r\n0\r\n\r\n",
            b"5;a\"b\"\r\nhello\r\n0\r\n\r\n",
            b"5;a=\"b\"c\r\nhello\r\n0\r\n\r\n",
            b"5;a=b\"c\"\r\nhello\r\n0\r\n\r\n",
            b"5;a\0\r\nhello\r\n0\r\n\r\n",
            b"5\0\r\nhello\r\n0\r\n\r\n",
            b"5;a=\"\r\nhello\r\n0\r\n\r\n",
            b"00000000000000005\r\nhello\r\n0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"0\r\n\n0\n\r\n",
            b"0\r\na: b\n\r\n",
            b"0\n\r\n",
            b"0\r\n\n",
            b"0\r\na: b\r\n\n",
            b"0\r\na: b\r\n c\r\n\r\n",
            b"11111111111111111\r\n",
            b"1\r\nab\r\n",
            b"1\r\na\n",
            b"1\r\na\rx",
            b"0\r\n\rx",
            b"0\r\na b\r\n\r\n",
            b"0\r\na\x00: b\r\n\r\n",
        ] {
            let read = read(&[bytes]);
            assert!(read.is_err_and(|rule| rule != MORE), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn what_is_too_long() {
        let long = "a".repeat(MAX_EXTENSION_BYTES);
        assert!(read(&[format!("0;{long}\r\n\r\n").as_bytes()]).is_ok());
        assert!(read(&[format!("0;{long}a\r\n\r\n").as_bytes()]).is_err());
        assert!(read(&[format!("1;{long}\r\na\r\n1;a\r\n").as_bytes()]).is_err(), "in all chunks");
        assert!(read(&[format!("0\r\na: {long}\r\n\r\n").as_bytes()]).is_err());
        let many: String = (0..=crate::guard::MAX_HEADERS).map(|n| format!("x-{n}: a\r\n")).collect();
        assert!(read(&[format!("0\r\n{many}\r\n").as_bytes()]).is_err());
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_bytes_are_cut(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..5),
            trailers: bool,
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..8),
        ) {
            let mut bytes = Vec::new();
            for chunk in &chunks {
                bytes.extend_from_slice(format!("{:X};x\r\n", chunk.len()).as_bytes());
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(if trailers { b"0\r\na: 1\r\n\r\nnext" } else { b"0\r\n\r\nnext" });
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            let (content, found, rest) = read(&pieces).expect("valid");
            prop_assert_eq!(content, chunks.concat());
            prop_assert_eq!((found.map_or(0, |found| found.len()), rest.as_slice()), (usize::from(trailers), &b"next"[..]));
        }

        #[test]
        fn garbage_is_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&[&bytes]);
        }
    }
}

//! HPACK, read as far as rules about fields need it (RFC 7541).
//!
//! `h2` decodes the same bytes once more and keeps the texts. Here an entry of the table is a few numbers: how long it is
//! and what is wrong with it, so that a field which the client names by its index costs nearly nothing.

mod fixed;

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use self::fixed::STATIC;
use super::huffman;

/// As many bytes the table has, until a client wants less: we announce no other size.
const MAX_TABLE: usize = 4096;
/// What an entry counts besides its texts.
const OVERHEAD: usize = 32;
/// The bytes of a text by which the names and values that matter are known; none of those is longer.
const START: usize = 18;

/// The names that rules are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Method,
    Scheme,
    Authority,
    Path,
    /// Another name that begins with a colon.
    Pseudo,
    Cookie,
    Te,
    /// A field of the connection, which HTTP/2 does not have.
    Connection,
    Other,
}

/// What is wrong with a field, whatever stands beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// White space around the value.
    Space,
    /// The target has a `#`: what follows would be cut off.
    Fragment,
    /// Neither `http` nor `https`.
    Scheme,
    /// A field of the connection.
    Connection,
    /// A `te` other than `trailers`.
    Te,
    /// Bytes in the query that cannot be masked.
    Query,
}

/// A field as far as rules need it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: Name,
    pub(super) flaw: Option<Flaw>,
    name_bytes: u32,
    value_bytes: u32,
}

/// A target as it came, where its query was masked: `h2` has another one.
pub(super) type Target = Bytes;

/// A field, and what it is if it is a target that was masked.
type Entry = (Field, Option<Target>);

/// The bytes are no HPACK.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Why a representation was not read.
enum Stop {
    /// Its end has not come.
    Early,
    Malformed,
}

/// The entries that a client has added, the latest first.
pub(super) struct Table {
    entries: VecDeque<Entry>,
    bytes: usize,
    limit: usize,
}

impl Field {
    const fn new(name: &[u8], value: &[u8]) -> Self {
        let (name_bytes, value_bytes) = (name.len() as u32, value.len() as u32);
        let name = Name::of(name);
        let flaw = if let Name::Connection = name { Some(Flaw::Connection) } else { None };
        Self { name, flaw, name_bytes, value_bytes }
    }

    /// The same name with another value.
    fn with(self, value: &Text<'_>) -> Result<Entry, Stop> {
        let seen = value.look(self.name)?;
        let target = (self.name == Name::Path && seen.raw).then(|| value.all().into());
        Ok((Self { flaw: flaw(self.name, &seen), value_bytes: seen.bytes, ..self }, target))
    }

    /// What it counts, in the table as in a head.
    pub(super) fn bytes(&self) -> usize {
        self.name_bytes as usize + self.value_bytes as usize + OVERHEAD
    }
}

fn flaw(name: Name, value: &Seen) -> Option<Flaw> {
    let is_space = |byte| matches!(byte, b' ' | b'\t');
    match name {
        Name::Connection => Some(Flaw::Connection),
        _ if value.bytes != 0 && (is_space(value.start[0]) || is_space(value.last)) => Some(Flaw::Space),
        Name::Path if value.hash => Some(Flaw::Fragment),
        Name::Scheme if !value.is(b"http") && !value.is(b"https") => Some(Flaw::Scheme),
        Name::Te if !value.is(b"trailers") => Some(Flaw::Te),
        _ => None,
    }
}

impl Name {
    const fn of(name: &[u8]) -> Self {
        match name {
            b":method" => Self::Method,
            b":scheme" => Self::Scheme,
            b":authority" => Self::Authority,
            b":path" => Self::Path,
            [b':', ..] => Self::Pseudo,
            b"cookie" => Self::Cookie,
            b"te" => Self::Te,
            b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" => {
                Self::Connection
            }
            _ => Self::Other,
        }
    }
}

impl Default for Table {
    fn default() -> Self {
        Self { entries: VecDeque::new(), bytes: 0, limit: MAX_TABLE }
    }
}

impl Table {
    /// Reads the fields of as many whole representations as `block` begins with, and says how many bytes those are.
    /// `begun` says whether a field of the same block has been read before: then the table keeps its size.
    ///
    /// A query may have bytes that `http` takes for none of a target. They are masked by others of the same length, so that
    /// `h2` reads on; the field has the target as it came.
    pub(super) fn read(
        &mut self,
        block: &mut [u8],
        begun: &mut bool,
        mut each: impl FnMut(Field, Option<Target>),
    ) -> Result<usize, Malformed> {
        let mut read = 0;
        while let Some(kind) = block.get(read) {
            let mut cursor = Cursor { bytes: block, at: read };
            let found = if kind & 0xe0 == 0x20 {
                if *begun {
                    return Err(Malformed);
                }
                cursor.integer(5).and_then(|limit| self.resize(limit)).map(|()| None)
            } else {
                self.field(&mut cursor, *kind).map(Some)
            };
            read = match (found, cursor.at) {
                (Ok(Some(((field, target), value))), end) => {
                    *begun = true;
                    if let (Some(value), Some(_)) = (value, &target) {
                        value.mask(block);
                    }
                    each(field, target);
                    end
                }
                (Ok(None), end) => end,
                (Err(Stop::Early), _) => break,
                (Err(Stop::Malformed), _) => return Err(Malformed),
            };
        }
        Ok(read)
    }

    /// A field, and where its value is written.
    fn field(&mut self, cursor: &mut Cursor<'_>, kind: u8) -> Result<(Entry, Option<Place>), Stop> {
        if kind & 0x80 != 0 {
            let index = cursor.integer(7)?;
            return Ok((self.get(index)?, None));
        }
        let added = kind & 0x40 != 0;
        let index = cursor.integer(if added { 6 } else { 4 })?;
        let name = if index == 0 { Some(cursor.text()?) } else { None };
        let value = cursor.text()?;
        let named = match name {
            Some(name) => name.name()?,
            None => self.get(index)?.0,
        };
        let entry = named.with(&value)?;
        if added {
            self.add(entry.clone());
        }
        Ok((entry, Some(value.place)))
    }

    fn get(&self, index: usize) -> Result<Entry, Stop> {
        let at = index.checked_sub(1).ok_or(Stop::Malformed)?;
        match STATIC.get(at) {
            Some(field) => Ok((*field, None)),
            None => self.entries.get(at - STATIC.len()).cloned().ok_or(Stop::Malformed),
        }
    }

    fn add(&mut self, entry: Entry) {
        let bytes = entry.0.bytes();
        self.shrink(self.limit.saturating_sub(bytes));
        if bytes <= self.limit {
            self.bytes += bytes;
            self.entries.push_front(entry);
        }
    }

    fn resize(&mut self, limit: usize) -> Result<(), Stop> {
        if MAX_TABLE < limit {
            return Err(Stop::Malformed);
        }
        self.limit = limit;
        self.shrink(limit);
        Ok(())
    }

    fn shrink(&mut self, limit: usize) {
        while limit < self.bytes
            && let Some(oldest) = self.entries.pop_back()
        {
            self.bytes -= oldest.0.bytes();
        }
    }
}

/// Where in a block its reader is.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn next(&mut self) -> Result<u8, Stop> {
        let next = self.bytes.get(self.at).ok_or(Stop::Early)?;
        self.at += 1;
        Ok(*next)
    }

    /// An integer whose first byte has so many bits of it (RFC 7541 §5.1).
    fn integer(&mut self, prefix: u32) -> Result<usize, Stop> {
        /// More than any index or length needs, and less than overflows; `h2` draws the same line.
        const MOST: u32 = 4;
        let mask = (1 << prefix) - 1;
        let mut value = usize::from(self.next()? & mask);
        if value < usize::from(mask) {
            return Ok(value);
        }
        for place in 0..MOST {
            let byte = self.next()?;
            value += usize::from(byte & 0x7f) << (7 * place);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Stop::Malformed)
    }

    fn text(&mut self) -> Result<Text<'a>, Stop> {
        let coded = self.bytes.get(self.at).ok_or(Stop::Early)? & 0x80 != 0;
        let length = self.integer(7)?;
        let range = self.at..self.at + length;
        let bytes = self.bytes.get(range.clone()).ok_or(Stop::Early)?;
        self.at = range.end;
        Ok(Text { bytes, place: Place { coded, range } })
    }
}

/// A text as it is written.
struct Text<'a> {
    bytes: &'a [u8],
    place: Place,
}

/// Where in a block a text is written, and how.
struct Place {
    coded: bool,
    range: Range<usize>,
}

impl Place {
    /// Masks the bytes of a query that `http` does not take: those whose code is as long differ in its last bit.
    fn mask(self, block: &mut [u8]) {
        let text = &mut block[self.range];
        let mut query = false;
        if !self.coded {
            for byte in text {
                query |= *byte == b'?';
                match *byte {
                    b'"' if query => *byte = b'!',
                    b'<' if query => *byte = b'`',
                    b'>' if query => *byte = b'#',
                    _ => {}
                }
            }
            return;
        }
        let mut bits = Vec::new();
        huffman::decode(text, |byte, end| {
            query |= byte == b'?';
            if query && matches!(byte, b'"' | b'<' | b'>') {
                bits.push(end - 1);
            }
        });
        bits.into_iter().for_each(|bit| text[bit / 8] ^= 0x80 >> (bit % 8));
    }
}

/// What matters of a text.
#[derive(Default)]
struct Seen {
    bytes: u32,
    start: [u8; START],
    last: u8,
    /// It has a `?`.
    query: bool,
    /// It has a `#`.
    hash: bool,
    /// Its query has bytes to be masked.
    raw: bool,
}

impl Seen {
    fn mark(&mut self, byte: u8) {
        match byte {
            b'?' => self.query = true,
            b'#' => self.hash = true,
            b'"' | b'<' | b'>' => self.raw |= self.query,
            _ => {}
        }
    }

    fn is(&self, text: &[u8]) -> bool {
        self.bytes as usize == text.len() && self.start.get(..text.len()) == Some(text)
    }
}

impl Text<'_> {
    fn look(&self, name: Name) -> Result<Seen, Stop> {
        let mut seen = Seen::default();
        if self.place.coded {
            huffman::decode(self.bytes, |byte, _| {
                if let Some(place) = seen.start.get_mut(seen.bytes as usize) {
                    *place = byte;
                }
                seen.bytes += 1;
                seen.last = byte;
                seen.mark(byte);
            })
            .ok_or(Stop::Malformed)?;
        } else {
            let known = self.bytes.len().min(START);
            seen.start[..known].copy_from_slice(&self.bytes[..known]);
            seen.bytes = self.bytes.len() as u32;
            seen.last = self.bytes.last().copied().unwrap_or_default();
            if name == Name::Path {
                self.bytes.iter().for_each(|byte| seen.mark(*byte));
            }
        }
        Ok(seen)
    }

    /// All of it.
    fn all(&self) -> Vec<u8> {
        if !self.place.coded {
            return self.bytes.to_vec();
        }
        let mut text = Vec::new();
        huffman::decode(self.bytes, |byte, _| text.push(byte));
        text
    }

    /// A field with this name and no value yet.
    fn name(&self) -> Result<Field, Stop> {
        let seen = self.look(Name::Other)?;
        let known = seen.start.get(..seen.bytes as usize).map_or(Name::Other, Name::of);
        let name = if known == Name::Other && seen.start[0] == b':' { Name::Pseudo } else { known };
        Ok(Field { name, flaw: None, name_bytes: seen.bytes, value_bytes: 0 })
    }
}

#[cfg(test)]
pub(super) mod tests;

use proptest::prelude::*;

use super::*;

/// Writes blocks as clients may, with a table of its own.
#[derive(Default)]
pub(in crate::http2) struct Encoder {
    entries: VecDeque<Entry>,
}

/// A name and a value.
type Entry = (Vec<u8>, Vec<u8>);

/// How a field is written.
#[derive(Clone, Copy, Debug)]
pub(in crate::http2) struct Manner {
    /// By the index of the whole field or of its name, where there is one.
    pub(in crate::http2) by_index: bool,
    /// 0: added to the table; 1: not; 2: never to be.
    pub(in crate::http2) indexing: u8,
    /// Whether texts are Huffman coded.
    pub(in crate::http2) coded: bool,
}

impl Encoder {
    pub(in crate::http2) fn field(&mut self, out: &mut Vec<u8>, (name, value): (&[u8], &[u8]), how: Manner) {
        let mut known =
            STATIC_TEXT.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect::<Vec<_>>();
        known.extend(self.entries.iter().map(|(name, value)| (&name[..], &value[..])));
        let whole = known.iter().rposition(|known| *known == (name, value)).filter(|_| how.by_index);
        if let Some(at) = whole {
            return write_integer(out, at + 1, 7, 0x80);
        }
        let named = known.iter().rposition(|known| known.0 == name).filter(|_| how.by_index);
        let (prefix, kind) = [(6, 0x40), (4, 0), (4, 0x10)][usize::from(how.indexing)];
        write_integer(out, named.map_or(0, |at| at + 1), prefix, kind);
        if named.is_none() {
            write_text(out, name, how.coded);
        }
        write_text(out, value, how.coded);
        if how.indexing == 0 {
            self.entries.push_front((name.to_vec(), value.to_vec()));
            self.shrink(4096);
        }
    }

    pub(in crate::http2) fn resize(&mut self, out: &mut Vec<u8>, limit: usize) {
        write_integer(out, limit, 5, 0x20);
        self.shrink(limit);
    }

    fn shrink(&mut self, limit: usize) {
        let bytes = |(name, value): &(Vec<u8>, Vec<u8>)| name.len() + value.len() + OVERHEAD;
        while limit < self.entries.iter().map(bytes).sum() {
            self.entries.pop_back();
        }
    }
}

fn write_integer(out: &mut Vec<u8>, value: usize, prefix: u32, kind: u8) {
    let mask = (1 << prefix) - 1;
    if value < mask {
        return out.push(kind | value as u8);
    }
    out.push(kind | mask as u8);
    let mut left = value - mask;
    while 0x80 <= left {
        out.push(left as u8 & 0x7f | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

fn write_text(out: &mut Vec<u8>, text: &[u8], coded: bool) {
    if coded {
        let code = huffman::tests::encode(text);
        write_integer(out, code.len(), 7, 0x80);
        out.extend(code);
    } else {
        write_integer(out, text.len(), 7, 0);
        out.extend(text);
    }
}

/// Reads blocks as clients do.
#[derive(Default)]
pub(in crate::http2) struct Decoder {
    entries: VecDeque<(String, String)>,
}

impl Decoder {
    pub(in crate::http2) fn fields(&mut self, block: &[u8]) -> Vec<(String, String)> {
        let (mut fields, mut cursor) = (Vec::new(), Cursor { bytes: block, at: 0 });
        while let Some(kind) = block.get(cursor.at) {
            let (prefix, literal, added) = match kind {
                0x80.. => (7, false, false),
                0x40.. => (6, true, true),
                0x20.. => (5, false, false),
                _ => (4, true, false),
            };
            let index = cursor.integer(prefix).ok().expect("an integer");
            if prefix == 5 {
                continue; // `h2` only ever says that the table has its usual size
            }
            let mut text = || String::from_utf8(cursor.text().ok().expect("a text").all()).expect("ASCII");
            let field = match (index, literal) {
                (0, _) => (text(), text()),
                (_, false) => self.known(index),
                (_, true) => (self.known(index).0, text()),
            };
            if added {
                self.entries.push_front(field.clone());
            }
            fields.push(field);
        }
        fields
    }

    fn known(&self, index: usize) -> (String, String) {
        match STATIC_TEXT.get(index - 1) {
            Some((name, value)) => ((*name).to_owned(), (*value).to_owned()),
            None => self.entries[index - 1 - STATIC_TEXT.len()].clone(),
        }
    }
}

const LITERAL: Manner = Manner { by_index: false, indexing: 1, coded: false };

/// The entry of a field that nothing is known of but its texts.
fn entry(name: &str, value: &str) -> Field {
    let mut block = Vec::new();
    Encoder::default().field(&mut block, (name.as_bytes(), value.as_bytes()), LITERAL);
    let fields = read(&mut Table::default(), &block).expect("valid");
    let [field] = fields[..] else { panic!("{} fields", fields.len()) };
    field
}

fn read(table: &mut Table, block: &[u8]) -> Result<Vec<Field>, Malformed> {
    let mut fields = Vec::new();
    let read = table.read(&mut block.to_vec(), &mut false, |field, _| fields.push(field))?;
    if read == block.len() { Ok(fields) } else { Err(Malformed) }
}

#[test]
fn flaws_of_one_field() {
    for (name, value, flaw) in [
        ("x-a", "b", None),
        ("x-a", "", None),
        ("x-a", "b c\td", None),
        ("x-a", " b", Some(Flaw::Space)),
        ("x-a", "b ", Some(Flaw::Space)),
        ("x-a", "\tb", Some(Flaw::Space)),
        ("x-a", "b\t", Some(Flaw::Space)),
        ("x-a", " ", Some(Flaw::Space)),
        ("cookie", "a=b ", Some(Flaw::Space)),
        (":path", "/a#b", Some(Flaw::Fragment)),
        (":path", "/a?b#", Some(Flaw::Fragment)),
        (":path", "/a%23b", None),
        (":path", "/a ", Some(Flaw::Space)),
        ("x-a", "a#b", None),
        (":scheme", "http", None),
        (":scheme", "https", None),
        (":scheme", "HTTP", Some(Flaw::Scheme)),
        (":scheme", "ftp", Some(Flaw::Scheme)),
        (":scheme", "", Some(Flaw::Scheme)),
        ("te", "trailers", None),
        ("te", "Trailers", Some(Flaw::Te)),
        ("te", "trailers, gzip", Some(Flaw::Te)),
        ("connection", "close", Some(Flaw::Connection)),
        ("connection", "", Some(Flaw::Connection)),
        ("keep-alive", "1", Some(Flaw::Connection)),
        ("proxy-connection", "a", Some(Flaw::Connection)),
        ("transfer-encoding", "chunked", Some(Flaw::Connection)),
        ("upgrade", "h2c", Some(Flaw::Connection)),
        ("upgrade-insecure-requests", "1", None),
        ("proxy-connection-a-long-name", "1", None),
    ] {
        for coded in [false, true] {
            let mut block = Vec::new();
            let texts = (name.as_bytes(), value.as_bytes());
            Encoder::default().field(&mut block, texts, Manner { coded, ..LITERAL });
            let fields = read(&mut Table::default(), &block).expect("valid");
            assert_eq!(fields.iter().map(|field| field.flaw).collect::<Vec<_>>(), [flaw], "{name}: {value}");
            assert_eq!(fields[0].bytes(), name.len() + value.len() + 32);
        }
    }
}

#[test]
fn the_table_all_have() {
    for (at, (name, value)) in STATIC_TEXT.iter().enumerate() {
        let mut field = entry(name, value);
        if field.flaw == Some(Flaw::Te) || field.flaw == Some(Flaw::Scheme) {
            field.flaw = None;
        }
        assert_eq!(STATIC[at], field, "{name}: {value}");
        assert_eq!(read(&mut Table::default(), &[0x80 | (at as u8 + 1)]), Ok(vec![field]), "{name}: {value}");
    }
}

#[test]
fn a_name_of_the_table_all_have_is_judged_with_its_new_value() {
    for (block, flaw) in [
        (&b"\x04\x04/a#b"[..], Some(Flaw::Fragment)),
        (b"\x06\x03ftp", Some(Flaw::Scheme)),
        (b"\x0f\x2a\x00", Some(Flaw::Connection)), // transfer-encoding, 57
        (b"\x0f\x11\x02a ", Some(Flaw::Space)),    // cookie, 32
    ] {
        let fields = read(&mut Table::default(), block).expect("valid");
        assert_eq!(fields.iter().map(|field| field.flaw).collect::<Vec<_>>(), [flaw], "{block:x?}");
    }
}

#[test]
fn what_is_no_hpack() {
    for block in [
        &b"\x80"[..],                // no entry 0
        b"\xbe",                     // 62 in an empty table
        b"\xff\xff\xff\xff\xff\x7f", // an index without end
        b"\x40\x81\xff\x01a",        // a name that is no Huffman code
        b"\x3f\xe2\x1f",             // a table of 4,097 bytes
        b"\x82\x20",                 // a size behind a field
    ] {
        assert_eq!(read(&mut Table::default(), block), Err(Malformed), "{block:x?}");
    }
}

#[test]
fn an_entry_that_is_larger_than_the_table_empties_it() {
    let mut table = Table::default();
    let mut encoder = Encoder::default();
    let added = Manner { indexing: 0, ..LITERAL };
    let mut block = Vec::new();
    encoder.field(&mut block, (b"x-a", b"b"), added);
    encoder.field(&mut block, (b"x-long", &[b'a'; 4096]), added);
    assert_eq!(read(&mut table, &block).expect("valid").len(), 2);
    assert!(table.entries.is_empty() && table.bytes == 0);
}

/// A field and how it is written.
pub(in crate::http2) fn fields() -> impl Strategy<Value = Vec<(String, String, Manner)>> {
    let name = prop_oneof![
        Just("cookie".to_owned()),
        Just("te".to_owned()),
        Just("user-agent".to_owned()),
        Just("accept".to_owned()),
        "x-[a-c]{1,3}",
        "x-[a-z]{20,40}",
    ];
    let value = prop_oneof!["[ -~]{0,8}", "[a-z]{0,60}", "[a-z]{900,1200}", "\\PC{0,6}"];
    let manner = (any::<bool>(), 0..3_u8, any::<bool>());
    let field = (name, value, manner).prop_map(|(name, value, (by_index, indexing, coded))| {
        (name, value, Manner { by_index, indexing, coded })
    });
    proptest::collection::vec(field, 0..24)
}

proptest! {
    /// However fields are written, they are read as what they are; and in however many pieces.
    #[test]
    fn fields_are_read_as_they_were_written(blocks in proptest::collection::vec((fields(), 0..8_usize), 1..6)) {
        let (mut encoder, mut table) = (Encoder::default(), Table::default());
        for (fields, resized) in blocks {
            let mut block = Vec::new();
            if resized == 0 {
                encoder.resize(&mut block, 100);
                encoder.resize(&mut block, 4096);
            }
            for (name, value, how) in &fields {
                encoder.field(&mut block, (name.as_bytes(), value.as_bytes()), *how);
            }
            let mut found = Vec::new();
            let (mut begun, mut read) = (false, 0);
            for end in (0..block.len()).step_by(7).chain([block.len()]) {
                if read < end {
                    read += table.read(&mut block[read..end], &mut begun, |field, _| found.push(field)).expect("valid");
                }
            }
            prop_assert_eq!(read, block.len());
            prop_assert_eq!(found, fields.iter().map(|(name, value, _)| entry(name, value)).collect::<Vec<_>>());
            let bytes: usize = encoder.entries.iter().map(|(name, value)| name.len() + value.len() + OVERHEAD).sum();
            prop_assert_eq!(table.bytes, bytes);
            prop_assert_eq!(table.entries.len(), encoder.entries.len());
        }
    }

    #[test]
    fn no_bytes_do_harm(blocks: Vec<Vec<u8>>) {
        let mut table = Table::default();
        for block in blocks {
            let _ = read(&mut table, &block);
            prop_assert!(table.bytes <= MAX_TABLE);
            prop_assert_eq!(table.bytes, table.entries.iter().map(|entry| entry.0.bytes()).sum::<usize>());
        }
    }
}

#[rustfmt::skip]
const STATIC_TEXT: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

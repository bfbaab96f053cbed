use proptest::prelude::*;

use super::*;
use crate::http2::hpack::Flaw;
use crate::http2::hpack::tests::{Encoder, Manner};

const START: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const END_STREAM: u8 = 1;

pub(in crate::http2) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// `GET /` by indices, and a field that is added to the table.
const GET: &[u8] = b"\x82\x84\x86\x40\x03x-a\x01b";

fn all(frames: &[Vec<u8>]) -> Vec<u8> {
    [START, &frames.concat()].concat()
}

/// What was read of bytes that came in such pieces.
#[derive(Default)]
struct Read {
    messages: Vec<Message>,
    /// What goes on.
    handed: Vec<u8>,
    violation: Option<Reason>,
}

fn read(bytes: &[u8], piece: usize) -> Read {
    let (mut frames, mut read) = (Frames::default(), Read::default());
    for piece in bytes.chunks(piece) {
        let mut rest = piece;
        while !rest.is_empty() && read.violation.is_none() {
            let messages = &mut read.messages;
            let (kept, more) = rest.split_at(frames.missing().min(rest.len()));
            if kept.is_empty() {
                let mut more = more.to_vec();
                let sound = frames.read(&mut more, |message| messages.push(message));
                let sound = sound.unwrap_or_else(|violation| {
                    read.violation = Some(violation.reason);
                    violation.sound
                });
                read.handed.extend(&more[..sound]);
                break;
            }
            match frames.complete(kept, |message| messages.push(message)) {
                Ok(whole) => read.handed.extend(whole.unwrap_or_default()),
                Err(reason) => read.violation = Some(reason),
            }
            rest = more;
        }
    }
    read
}

/// A stream, whether it is about trailers, and what is wrong with them.
type Found = (u32, bool, Option<Fault>);

fn request(stream: u32, fault: Option<Fault>) -> Found {
    (stream, false, fault)
}

fn found(bytes: &[u8]) -> Vec<Found> {
    let mut whole = None;
    for piece in [usize::MAX, 1, 2, 9, 13] {
        let read = read(bytes, piece.min(bytes.len()));
        assert_eq!(read.violation, None);
        assert!(read.handed == bytes, "all goes on");
        let messages: Vec<_> =
            read.messages.into_iter().map(|it| (it.stream, it.trailers, it.fault)).collect();
        assert_eq!(*whole.get_or_insert_with(|| messages.clone()), messages, "in pieces of {piece}");
    }
    whole.expect("read")
}

#[test]
fn heads_and_trailers_are_told_apart() {
    let bytes = all(&[
        frame(4, 0, 0, &[]),
        frame(HEADERS, END_HEADERS, 1, GET),
        frame(0, 0, 1, b"some data"),
        frame(HEADERS, END_HEADERS | END_STREAM, 3, b"\x82\x84\x86\xbe"),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x03x-b\x01c"),
        frame(0xbb, 0xff, 77, b"of a kind that is not known"),
        frame(HEADERS, END_HEADERS | END_STREAM, 9, b"\x82\x84\x86"),
    ]);
    assert_eq!(found(&bytes), [request(1, None), request(3, None), (1, true, None), request(9, None)]);
}

#[test]
fn padding_priority_and_continuation() {
    let padded = [b"\x03".as_slice(), GET, b"\0\0\0"].concat();
    let with_priority = [b"\x80\0\0\0\x10".as_slice(), b"\x82\x84\x86\xbe"].concat();
    let both = [b"\x02\0\0\0\0\x10".as_slice(), b"\x82\x84\x86\xbe\0\0"].concat();
    let bytes = all(&[
        frame(HEADERS, END_HEADERS | PADDED, 1, &padded),
        frame(HEADERS, END_HEADERS | PRIORITY, 3, &with_priority),
        frame(HEADERS, END_HEADERS | PADDED | PRIORITY, 5, &both),
        frame(HEADERS, 0, 7, b"\x82\x84\x86\x40\x03x"),
        frame(CONTINUATION, 0, 7, b"-d\x05a"),
        frame(CONTINUATION, 0, 7, b""),
        frame(CONTINUATION, 0, 7, b"b"),
        frame(CONTINUATION, END_HEADERS, 7, b"cd "),
        frame(HEADERS, 0, 9, b""),
        frame(CONTINUATION, 0, 9, b"\x82\x84\x86\xbf"),
        frame(CONTINUATION, END_HEADERS, 9, b""),
        frame(HEADERS, END_HEADERS, 11, b"\x82\x84\x86\xbe"),
    ]);
    let space = Some(Fault::Field(Flaw::Space));
    let expected = [
        request(1, None),
        request(3, None),
        request(5, None),
        request(7, space),
        request(9, None),
        request(11, space),
    ];
    assert_eq!(found(&bytes), expected);
}

#[test]
fn faults_of_a_message() {
    for (block, fault) in [
        (&b"\x82\x84\x86"[..], None),
        (b"\x82\x84\x86\x82", Some(Fault::Pseudo)), // :method twice
        (b"\x82\x84\x86\x00\x05:path\x01/", Some(Fault::Pseudo)), // :path twice
        (b"\x82\x84\x00\x01a\x01b\x86", Some(Fault::Pseudo)), // behind a field
        (b"\x82\x84\x86\x88\x00\x09:protocol\x01a", Some(Fault::Pseudo)), // two that are of no request
        (b"\x82\x04\x02/#\x86", Some(Fault::Field(Flaw::Fragment))),
        (b"\x82\x84\x86\x00\x0aconnection\x01a", Some(Fault::Field(Flaw::Connection))),
    ] {
        assert_eq!(found(&all(&[frame(HEADERS, END_HEADERS, 1, block)])), [request(1, fault)], "{block:x?}");
    }
}

#[test]
fn no_pseudo_header_field_follows_a_body() {
    for (block, fault) in [
        (&b"\x00\x01a\x01b"[..], None),
        (b"", None),
        (b"\x84\x00\x01a\x01b", Some(Fault::Pseudo)),
        (b"\x00\x01a\x01b\x88", Some(Fault::Pseudo)),
        (b"\xbe", Some(Fault::Pseudo)), // by way of the table
        (b"\x00\x01a\x02b ", Some(Fault::Field(Flaw::Space))),
    ] {
        let head = frame(HEADERS, END_HEADERS, 1, b"\x82\x86\x44\x02/a");
        let bytes = all(&[head, frame(HEADERS, END_HEADERS | END_STREAM, 1, block)]);
        assert_eq!(found(&bytes), [request(1, None), (1, true, fault)], "{block:x?}");
    }
}

fn many(fields: usize, name: &[u8]) -> Vec<u8> {
    let field = [&[0, name.len() as u8], name, &[1, b'b']].concat();
    [b"\x82\x84\x86".as_slice(), &field.repeat(fields)].concat()
}

#[test]
fn what_is_too_much() {
    let long = |bytes: usize| {
        let mut block = b"\x82\x84\x86\x00\x01a\x7f".to_vec();
        let mut left = bytes - 127;
        while 128 <= left {
            block.push(left as u8 | 0x80);
            left >>= 7;
        }
        block.push(left as u8);
        block.resize(block.len() + bytes, b'x');
        block
    };
    let bytes_besides = 42 + 38 + 43 + 33; // method, path, scheme, and `a`
    for (block, fault) in [
        (many(100, b"x-a"), None),
        (many(101, b"x-a"), Some(Fault::TooLarge)),
        (many(400, b"cookie"), None),
        (many(64 * 1024 / 39, b"cookie"), Some(Fault::TooLarge)), // by their bytes
        ([many(100, b"x-a"), many(1, b"cookie")[3..].to_vec()].concat(), Some(Fault::TooLarge)),
        (long(64 * 1024 - bytes_besides), None),
        (long(64 * 1024 - bytes_besides + 1), Some(Fault::TooLarge)),
        (long(200 * 1024), Some(Fault::TooLarge)),
    ] {
        let mut frames: Vec<_> =
            block.chunks(MAX_PAYLOAD).map(|part| frame(CONTINUATION, 0, 1, part)).collect();
        frames[0][3] = HEADERS;
        frames.last_mut().expect("one")[4] |= END_HEADERS;
        assert_eq!(found(&all(&frames)), [request(1, fault)], "{} bytes", block.len());
    }
}

#[test]
fn what_ends_the_connection() {
    let get = || frame(HEADERS, END_HEADERS, 1, GET);
    let part = || frame(HEADERS, 0, 1, GET);
    let unending = |stream: u32| frame(CONTINUATION, 0, stream, &[0xbe; MAX_PAYLOAD]);
    for (frames, reason) in [
        (vec![frame(HEADERS, END_HEADERS, 0, GET)], Reason::PROTOCOL_ERROR),
        (vec![frame(HEADERS, END_HEADERS, 2, GET)], Reason::PROTOCOL_ERROR),
        (vec![get(), frame(CONTINUATION, END_HEADERS, 1, b"")], Reason::PROTOCOL_ERROR),
        (vec![part(), frame(CONTINUATION, END_HEADERS, 3, b"")], Reason::PROTOCOL_ERROR),
        (vec![part(), frame(0, 0, 1, b"data")], Reason::PROTOCOL_ERROR),
        (vec![part(), frame(HEADERS, END_HEADERS, 3, GET)], Reason::PROTOCOL_ERROR),
        (vec![part(), frame(0xbb, 0, 0, b"")], Reason::PROTOCOL_ERROR),
        (vec![frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\x02\x82")], Reason::PROTOCOL_ERROR),
        (vec![frame(HEADERS, END_HEADERS | PADDED, 1, b"\x05\x82\x84\x86")], Reason::PROTOCOL_ERROR),
        (vec![frame(HEADERS, END_HEADERS | PADDED, 1, b"")], Reason::PROTOCOL_ERROR),
        (vec![frame(HEADERS, END_HEADERS | PRIORITY, 1, b"\0\0\0\0")], Reason::PROTOCOL_ERROR),
        (vec![frame(HEADERS, END_HEADERS, 1, b"\x82\xff")], Reason::COMPRESSION_ERROR),
        (vec![frame(HEADERS, END_HEADERS, 1, b"\x82\xbe")], Reason::COMPRESSION_ERROR),
        (vec![part(), frame(CONTINUATION, END_HEADERS, 1, b"\x00\x01")], Reason::COMPRESSION_ERROR),
        (vec![frame(0, 0, 1, &[0; MAX_PAYLOAD + 1])], Reason::FRAME_SIZE_ERROR),
        (vec![part(), unending(1)], Reason::ENHANCE_YOUR_CALM),
    ] {
        for piece in [usize::MAX, 1, 10] {
            let (sound, last) = frames.split_at(frames.len() - 1);
            let bytes = all(&frames);
            let read = read(&bytes, piece.min(bytes.len()));
            assert_eq!(read.violation, Some(reason), "{last:?}");
            // No more than the head of the last frame goes on.
            let before = all(sound).len();
            assert!((before..=before + HEAD_BYTES).contains(&read.handed.len()), "{last:?}");
            assert!(bytes.starts_with(&read.handed));
        }
    }
}

#[test]
fn a_field_without_end_is_not_kept() {
    let mut frames = Frames::default();
    let mut head = all(&[frame(HEADERS, 0, 1, b"\x82\x84\x86\x00\x01a\x7f\xff\xff\x7f")]);
    frames.read(&mut head, |_| {}).expect("begins");
    let mut part = frame(CONTINUATION, 0, 1, &[b'x'; MAX_PAYLOAD]);
    let taken = (0..).find(|_| frames.read(&mut part, |_| {}).is_err()).expect("an end");
    assert_eq!(taken, MOST_BYTES / MAX_PAYLOAD - 1);
    assert!(frames.field.len() <= MOST_BYTES + MAX_PAYLOAD);
}

proptest! {
    #[test]
    fn no_bytes_do_harm(frames in proptest::collection::vec((0..12_u8, any::<u8>(), 0..6_u32, any::<Vec<u8>>()), 0..20), piece in 1..40_usize) {
        let frames: Vec<_> = frames.iter().map(|(kind, flags, stream, payload)| frame(*kind, *flags, *stream, payload)).collect();
        let bytes = all(&frames);
        let (read, whole) = (read(&bytes, piece), read(&bytes, bytes.len().max(1)));
        prop_assert_eq!(read.messages, whole.messages);
        prop_assert_eq!(read.violation, whole.violation);
    }
}

/// A path whose query `http` would not take goes on masked, and is told as it came; the same by an index.
#[test]
fn raw_queries_are_masked() {
    let target = b"/a\"?b=\"<c>&d=%zz";
    for coded in [false, true] {
        for indexing in [0, 1] {
            let manner = Manner { by_index: true, indexing, coded };
            let mut encoder = Encoder::default();
            let mut block = || {
                let mut block = b"\x82\x86".to_vec();
                encoder.field(&mut block, (b":path", target), manner);
                block
            };
            let bytes =
                all(&[frame(HEADERS, END_HEADERS, 1, &block()), frame(HEADERS, END_HEADERS, 3, &block())]);
            for piece in [1, 7, bytes.len()] {
                let read = read(&bytes, piece);
                assert_eq!(read.handed.len(), bytes.len());
                for message in read.messages {
                    assert_eq!(
                        (message.fault, message.target.as_deref()),
                        (None, Some(&target[..])),
                        "{manner:?}"
                    );
                }
                let masked: Vec<_> =
                    read.handed.iter().zip(&bytes).filter(|(handed, came)| handed != came).collect();
                // Once for each time that it is written out.
                assert!(
                    masked.len() <= 3 * if indexing == 0 { 1 } else { 2 } && !masked.is_empty(),
                    "{masked:?}"
                );
            }
        }
    }
    // What is written in two frames cannot be masked.
    let bytes =
        all(&[frame(HEADERS, 0, 1, b"\x82\x86\x04\x05/?"), frame(CONTINUATION, END_HEADERS, 1, b"\"aa")]);
    assert_eq!(found(&bytes), [request(1, Some(Fault::Field(Flaw::Query)))]);
}

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, yield_now};

use super::frames::tests::frame;
use super::hpack::tests::{Decoder, Encoder, Manner};
use super::*;
use crate::client::{Peer, Trust};
use crate::connection::{Bounds, Limits, Transport};
use crate::control::Control;
use crate::metrics::Metrics;
use crate::outbox::Stream;
use crate::outbox::tests::sockets;
use crate::siblings::Arrival;
use crate::thread::TICK;
use crate::worker::Worker;

const LIMITS: Limits =
    Limits { head: Duration::from_secs(10), idle: Duration::from_secs(75), stall: Duration::from_secs(60) };
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a.test")];
const POST: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a.test")];

/// A connection to a proxy over these workers; without any, every request that is not refused for itself gets a 503.
struct Conversation {
    thread: Rc<DataThread>,
    stream: TcpStream,
    encoder: Encoder,
    decoder: Decoder,
    received: Vec<u8>,
    started: Instant,
    ticks: u32,
}

/// What came of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    heads: Vec<BTreeMap<String, String>>,
    content: Vec<u8>,
    ended: bool,
    reset: Option<u32>,
}

impl Answer {
    fn status(&self) -> &str {
        self.heads.first().map_or("none", |head| &head[":status"])
    }

    fn has(&self, field: &str) -> bool {
        self.heads.first().is_some_and(|head| head.contains_key(field))
    }
}

fn thread(workers: Vec<Arc<Worker>>) -> Rc<DataThread> {
    DataThread::new(
        Control::new(workers),
        Metrics::default().shard(),
        Trust::default(),
        Bounds::of_one_thread(LIMITS),
    )
}

/// A connection to the proxy, and nothing said on it.
async fn connect(thread: &Rc<DataThread>) -> TcpStream {
    let (stream, other) = sockets().await;
    let peer = Peer::new(([127, 0, 0, 1], 9).into(), false);
    thread.connections.spawn(peer, Arrival::Client, None, |client| {
        let thread = thread.clone();
        async move {
            let transport = Transport::Plain(Stream::new(other, thread.outbox.clone()));
            let stream = Watched::new(transport, client.activity.clone(), Bytes::new());
            let _ = serve(&thread, &client, stream).await; // some are broken off
        }
    });
    stream
}

impl Conversation {
    async fn start() -> Self {
        Self::over(Vec::new()).await
    }

    async fn over(workers: Vec<Arc<Worker>>) -> Self {
        let thread = thread(workers);
        let mut stream = connect(&thread).await;
        stream.write_all(PREFACE).await.expect("open");
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.expect("open");
        stream.write_all(&frame(SETTINGS, 1, 0, &[])).await.expect("open");
        let (encoder, decoder) = Default::default();
        Self { thread, stream, encoder, decoder, received: Vec::new(), started: Instant::now(), ticks: 0 }
    }

    fn block(&mut self, fields: &[(&str, &str)]) -> Vec<u8> {
        let mut block = Vec::new();
        let manner = Manner { by_index: true, indexing: 0, coded: true };
        for (name, value) in fields {
            self.encoder.field(&mut block, (name.as_bytes(), value.as_bytes()), manner);
        }
        block
    }

    async fn sends(&mut self, frames: &[Vec<u8>]) {
        self.stream.write_all(&frames.concat()).await.expect("open");
    }

    /// Sends the head of a request, which may be all of it.
    async fn asks(&mut self, stream: u32, fields: &[(&str, &str)], ends: bool) {
        let block = self.block(fields);
        let flags = END_HEADERS | if ends { END_STREAM } else { 0 };
        let parts: Vec<_> = block.chunks(16 << 10).collect();
        let mut frames: Vec<_> = parts.iter().map(|part| frame(CONTINUATION, 0, stream, part)).collect();
        frames[0][3] = HEADERS;
        frames[0][4] = flags & END_STREAM;
        frames.last_mut().expect("one")[4] |= END_HEADERS;
        self.sends(&frames).await;
    }

    /// The next frame: kind, flags, stream and payload. `None` at the end.
    async fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        loop {
            if let Some(head) = self.received.get(..9) {
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let (kind, flags) = (head[3], head[4]);
                let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                if 9 + length <= self.received.len() {
                    let payload = self.received[9..9 + length].to_vec();
                    self.received.drain(..9 + length);
                    return Some((kind, flags, stream, payload));
                }
            }
            if self.stream.read_buf(&mut self.received).await.ok()? == 0 {
                return None;
            }
        }
    }

    /// What comes of these streams, until each has ended or was reset. Fails on GOAWAY.
    async fn hears(&mut self, streams: &[u32]) -> BTreeMap<u32, Answer> {
        let mut answers: BTreeMap<u32, Answer> =
            streams.iter().map(|stream| (*stream, Answer::default())).collect();
        while answers.values().any(|answer| !answer.ended && answer.reset.is_none()) {
            let (kind, flags, stream, payload) = self.frame().await.expect("open");
            assert_ne!(kind, GOAWAY, "{payload:x?}");
            if let Some(answer) = answers.get_mut(&stream) {
                match kind {
                    HEADERS => answer.heads.push(self.decoder.fields(&payload).into_iter().collect()),
                    DATA => answer.content.extend(payload),
                    RST_STREAM => answer.reset = Some(u32::from_be_bytes(payload.try_into().expect("four"))),
                    _ => {}
                }
                answer.ended |= matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0;
            }
        }
        answers
    }

    async fn answer(&mut self, stream: u32) -> Answer {
        self.hears(&[stream]).await.remove(&stream).expect("asked for")
    }

    /// The reason with which the proxy ends the connection, until it closes.
    async fn goes_away(&mut self) -> Vec<u32> {
        let mut reasons = Vec::new();
        while let Some((kind, _, _, payload)) = self.frame().await {
            if kind == GOAWAY {
                reasons.push(u32::from_be_bytes(payload[4..8].try_into().expect("four")));
            }
        }
        reasons
    }

    /// How many requests were refused for this reason.
    fn rejected(&self, label: &str) -> u64 {
        self.thread.shard.rejected_as(label)
    }

    /// So much time goes by.
    async fn waits(&mut self, time: Duration) {
        self.ticks += u32::try_from(time.as_millis() / TICK.as_millis()).expect("small") + 1;
        self.thread.connections.tick(self.started + TICK * self.ticks);
        for _ in 0..9 {
            yield_now().await;
        }
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let in_time = async { tokio::time::timeout(Duration::from_secs(30), test).await.expect("in time") };
    LocalSet::new().block_on(&runtime, in_time);
}

/// The same in a time of its own.
fn run_paused(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    LocalSet::new().block_on(&runtime.expect("a runtime"), test);
}

#[test]
fn many_requests_at_a_time() {
    run(async {
        let mut conversation = Conversation::start().await;
        let streams: Vec<u32> = (0..100).map(|n| 2 * n + 1).collect();
        for stream in &streams {
            conversation.asks(*stream, &GET, true).await;
        }
        for answer in conversation.hears(&streams).await.into_values() {
            assert_eq!((answer.status(), answer.reset, answer.ended), ("503", None, true));
            assert!(answer.has("proxy-status") && answer.has("date") && !answer.content.is_empty());
            assert_eq!(answer.heads[0]["content-length"], answer.content.len().to_string());
        }
        let head = [(":method", "HEAD"), GET[1], GET[2], GET[3]];
        conversation.asks(201, &head, true).await;
        let answer = conversation.answer(201).await;
        assert_eq!((answer.status(), answer.content.len(), answer.ended), ("503", 0, true));
    });
}

#[test]
fn what_h2_passes_over_is_refused_by_an_answer() {
    run(async {
        let mut conversation = Conversation::start().await;
        let mut stream = 1;
        for fields in [
            &[GET[0], GET[1], GET[2], GET[3], ("x-a", " b")][..],
            &[GET[0], GET[1], GET[2], GET[3], ("x-a", "b\t")],
            &[GET[0], GET[1], (":path", "/a#b"), GET[3]],
            &[GET[0], GET[1], (":path", "/a?b#"), GET[3]],
            &[GET[0], (":scheme", "ftp"), GET[2], ("host", "a.test")],
        ] {
            for ends in [true, false] {
                conversation.asks(stream, fields, ends).await;
                let answer = conversation.answer(stream).await;
                assert_eq!(answer.status(), "400", "{fields:?}");
                assert!(answer.has("proxy-status") && answer.ended, "{fields:?}");
                stream += 2;
            }
        }
        assert_eq!(conversation.rejected("bad_request"), 10);
        conversation.asks(stream, &GET, true).await;
        assert_eq!(conversation.answer(stream).await.status(), "503", "the connection goes on");
    });
}

/// `h2` forgets what was wrong with a head when the next field begins in one frame and ends in another.
#[test]
fn what_is_wrong_in_one_frame_is_not_forgotten_in_the_next() {
    run(async {
        for wrong in [
            &b"\x00\x0aconnection\x05close"[..],
            b"\x00\x02te\x04gzip",
            b"\x04\x02/b",                  // another path
            b"\x00\x01a\x01b\x07\x05https", // a scheme behind a field
        ] {
            let mut conversation = Conversation::start().await;
            let head = [b"\x82\x86\x84\x01\x06a.test".as_slice(), wrong, b"\x00\x03x-"].concat();
            conversation
                .sends(&[
                    frame(HEADERS, END_STREAM, 1, &head),
                    frame(CONTINUATION, END_HEADERS, 1, b"b\x01c"),
                ])
                .await;
            let answer = conversation.answer(1).await;
            assert!(answer.status() == "400" || answer.reset.is_some(), "{wrong:x?}: {answer:?}");
            assert_eq!(conversation.rejected("bad_request"), 1, "{wrong:x?}");
        }
    });
}

#[test]
fn heads_that_are_too_large() {
    run(async {
        let mut conversation = Conversation::start().await;
        let long = "x".repeat(70 << 10);
        conversation.asks(1, &[&GET[..], &[("x-a", &long)]].concat(), true).await;
        let answer = conversation.answer(1).await;
        assert!(answer.status() == "431" && answer.has("proxy-status"), "{answer:?}");
        let many: Vec<_> = (0..101).map(|n| (format!("x-{n}"), n.to_string())).collect();
        let many: Vec<_> = many.iter().map(|(name, value)| (&**name, &**value)).collect();
        conversation.asks(3, &[&GET[..], &many].concat(), true).await;
        assert_eq!(conversation.answer(3).await.status(), "431");
        let cookies: Vec<_> = (0..120).map(|n| format!("c{n}=1")).collect();
        let cookies: Vec<_> = cookies.iter().map(|value| ("cookie", &**value)).collect();
        conversation.asks(5, &[&GET[..], &cookies].concat(), true).await;
        assert_eq!(conversation.answer(5).await.status(), "503", "the parts of a cookie are one field");
        assert_eq!(conversation.rejected("headers_too_large"), 2);
        let endless = "x".repeat(300 << 10);
        conversation.asks(7, &[&GET[..], &[("x-a", &endless)]].concat(), true).await;
        assert_eq!(conversation.goes_away().await, [u32::from(Reason::ENHANCE_YOUR_CALM)]);
    });
}

#[test]
fn what_h2_resets_is_counted() {
    run(async {
        let mut conversation = Conversation::start().await;
        let mut stream = 1;
        for fields in [
            &[GET[0], GET[1], GET[2], GET[3], ("connection", "close")][..],
            &[GET[0], GET[1], GET[2], GET[3], ("te", "gzip")],
            &[GET[0], GET[1], GET[3]],
            &[GET[0], GET[1], (":path", "/a b"), GET[3]],
            &[GET[0], GET[1], GET[2], GET[3], ("content-length", "5")],
            &[GET[0], GET[1], GET[2], GET[3], ("content-length", "x")],
        ] {
            conversation.asks(stream, fields, true).await;
            let answer = conversation.answer(stream).await;
            assert_eq!(answer.reset, Some(u32::from(Reason::PROTOCOL_ERROR)), "{fields:?}: {answer:?}");
            stream += 2;
        }
        conversation.asks(stream, &GET, true).await;
        conversation.answer(stream).await;
        assert_eq!(conversation.rejected("bad_request"), 6);
        // An upper-case name ends the connection.
        conversation.sends(&[frame(HEADERS, END_HEADERS, 99, b"\x82\x84\x86\x00\x01A\x01b")]).await;
        assert_eq!(conversation.goes_away().await, [u32::from(Reason::PROTOCOL_ERROR)]);
        assert_eq!(conversation.rejected("bad_request"), 7);
    });
}

#[test]
fn what_no_frame_may_be_ends_the_connection() {
    run(async {
        for (frames, reason) in [
            (vec![frame(DATA, 0, 1, &[0; (16 << 10) + 1])], Reason::FRAME_SIZE_ERROR),
            (vec![frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff")], Reason::COMPRESSION_ERROR),
            (vec![frame(CONTINUATION, END_HEADERS, 1, b"")], Reason::PROTOCOL_ERROR),
            (vec![frame(5, END_HEADERS, 1, b"\0\0\0\x02")], Reason::PROTOCOL_ERROR),
        ] {
            let mut conversation = Conversation::start().await;
            conversation.sends(&frames).await;
            assert_eq!(conversation.goes_away().await, [u32::from(reason)]);
            assert_eq!(conversation.rejected("bad_request"), 1);
        }
    });
}

#[test]
fn an_upload_that_is_refused_is_stopped() {
    run(async {
        let mut conversation = Conversation::start().await;
        conversation.asks(1, &POST, false).await;
        conversation.sends(&[frame(DATA, 0, 1, &[b'x'; 1000])]).await;
        let answer = conversation.answer(1).await;
        assert_eq!((answer.status(), answer.ended), ("503", true));
        loop {
            let (kind, _, stream, payload) = conversation.frame().await.expect("open");
            if (kind, stream) == (RST_STREAM, 1) {
                break assert_eq!(payload, [0; 4], "NO_ERROR: the answer counts");
            }
        }
    });
}

#[test]
fn a_connection_that_closes_before_its_first_request() {
    run_paused(async {
        let thread = thread(Vec::new());
        for said in [&b""[..], &PREFACE[..10]] {
            let mut silent = connect(&thread).await;
            silent.write_all(said).await.expect("open");
            let started = tokio::time::Instant::now();
            yield_now().await;
            thread.connections.close_all();
            let mut heard = Vec::new();
            silent.read_to_end(&mut heard).await.expect("closed");
            assert_eq!(started.elapsed(), Duration::ZERO, "at once");
        }
    });
}

#[test]
fn a_connection_at_rest_is_told_twice_and_closed() {
    run_paused(async {
        for answers in [true, false] {
            let mut conversation = Conversation::start().await;
            conversation.asks(1, &GET, true).await;
            conversation.answer(1).await;
            conversation.thread.connections.close_all();
            let started = tokio::time::Instant::now();
            let mut last = Vec::new();
            while let Some((kind, flags, _, payload)) = conversation.frame().await {
                if kind == GOAWAY {
                    last.push(u32::from_be_bytes(payload[..4].try_into().expect("four")));
                } else if kind == PING && flags == 0 && answers {
                    conversation.sends(&[frame(PING, 1, 0, &payload)]).await;
                }
            }
            assert_eq!(last, [0x7fff_ffff, 1], "first no new ones, then which was the last");
            let limit = if answers { Duration::ZERO } else { Duration::from_millis(1100) };
            assert!(started.elapsed() <= limit, "{:?}", started.elapsed());
        }
    });
}

#[test]
fn a_client_that_says_nothing_is_asked_and_given_up() {
    run_paused(async {
        let mut conversation = Conversation::start().await;
        conversation.asks(1, &GET, true).await;
        conversation.answer(1).await;
        let started = tokio::time::Instant::now();
        let mut asked = 0;
        while let Some((kind, flags, _, payload)) = conversation.frame().await {
            if kind == PING && flags == 0 {
                asked += 1;
                if asked < 4 {
                    conversation.sends(&[frame(PING, 1, 0, &payload)]).await;
                }
            }
        }
        assert_eq!(asked, 4);
        assert!(started.elapsed() < Duration::from_secs(200), "{:?}", started.elapsed());
    });
}

#[test]
fn fields_that_do_not_end_are_given_up() {
    run(async {
        let mut conversation = Conversation::start().await;
        conversation.sends(&[frame(HEADERS, 0, 1, b"\x82\x84")]).await;
        conversation.sends(&[frame(PING, 0, 0, &[0; 8])]).await;
        assert_eq!(conversation.goes_away().await, [u32::from(Reason::PROTOCOL_ERROR)], "fields come first");
        let mut conversation = Conversation::start().await;
        conversation.sends(&[frame(HEADERS, 0, 1, b"\x82\x84")]).await;
        loop {
            let (kind, flags, ..) = conversation.frame().await.expect("open");
            if (kind, flags) == (SETTINGS, 1) {
                break; // what was sent is read
            }
        }
        conversation.waits(LIMITS.head + TICK).await;
        assert!(conversation.frame().await.is_none_or(|(kind, ..)| kind != DATA));
        conversation.waits(Duration::from_secs(1)).await;
        assert!(conversation.thread.connections.is_empty());
    });
}

mod with_worker;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// `h2` and our reader agree about the fields of all requests of a connection, however they are written: were the table
    /// of one of them another one, a request would be refused for a field that it does not have, or served.
    #[test]
    fn both_readers_see_the_same(requests in proptest::collection::vec(super::hpack::tests::fields(), 1..12)) {
        run(async {
            let mut conversation = Conversation::start().await;
            for (place, fields) in requests.iter().enumerate() {
                let stream = 2 * u32::try_from(place).expect("small") + 1;
                let mut block = conversation.block(&GET);
                let (mut well, mut bytes) = (true, 0);
                for (name, value, how) in fields.iter().filter(|(name, ..)| name != "te") {
                    conversation.encoder.field(&mut block, (name.as_bytes(), value.as_bytes()), *how);
                    well &= value.trim_matches(' ') == value;
                    bytes += name.len() + value.len() + 32;
                }
                let parts: Vec<_> = block.chunks(5000).collect();
                let mut frames: Vec<_> =
                    parts.iter().map(|part| frame(CONTINUATION, 0, stream, part)).collect();
                (frames[0][3], frames[0][4]) = (HEADERS, END_STREAM);
                frames.last_mut().expect("one")[4] |= END_HEADERS;
                conversation.sends(&frames).await;
                let answer = conversation.answer(stream).await;
                assert!(bytes < 60 << 10, "the strategy makes no head that is too large");
                assert_eq!(answer.status(), if well { "503" } else { "400" }, "{fields:?}");
            }
        });
    }
}

use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{LocalSet, yield_now};

use super::*;
use crate::client::{Peer, Trust};
use crate::connection::{Bounds, Limits, Transport};
use crate::control::Control;
use crate::metrics::Metrics;
use crate::outbox::Stream;
use crate::outbox::tests::sockets;
use crate::siblings::Arrival;
use crate::thread::TICK;

const LIMITS: Limits =
    Limits { head: Duration::from_secs(10), idle: Duration::from_secs(75), stall: Duration::from_secs(60) };
const REQUEST: &str = "GET / HTTP/1.1\r\nhost: a.test\r\n\r\n";
const ANSWERED: &str = "HTTP/1.1 503 ";

/// A connection to a proxy without workers: every request that is not refused for itself gets a 503.
struct Conversation {
    thread: Rc<DataThread>,
    stream: TcpStream,
    started: Instant,
    ticks: u32,
}

impl Conversation {
    async fn start() -> Self {
        let control = Control::new(Vec::new());
        let thread = DataThread::new(
            control,
            Metrics::default().shard(),
            Trust::default(),
            Bounds::of_one_thread(LIMITS),
        );
        let (stream, other) = sockets().await;
        let peer = Peer::new(([127, 0, 0, 1], 9).into(), false);
        thread.connections.spawn(peer, Arrival::Client, None, |client| {
            let thread = thread.clone();
            async move {
                let transport = Transport::Plain(Stream::new(other, thread.outbox.clone()));
                let stream = Watched::new(transport, client.activity.clone(), Bytes::new());
                let _ = serve(&thread, &client, stream, Bytes::new()).await; // some are broken off
            }
        });
        Self { thread, stream, started: Instant::now(), ticks: 0 }
    }

    async fn says(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("open");
    }

    /// What the proxy answers, until so many answers are whole.
    async fn hears(&mut self, answers: usize) -> String {
        let mut text = String::new();
        while text.matches("\r\n\r\n").count() < answers {
            let mut bytes = vec![0; 64 << 10];
            let read = self.stream.read(&mut bytes).await.expect("open");
            assert_ne!(read, 0, "closed after {text}");
            text.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
        text
    }

    /// What it answers until it closes.
    async fn hears_all(&mut self) -> String {
        let mut text = Vec::new();
        self.stream.read_to_end(&mut text).await.expect("no reset");
        String::from_utf8_lossy(&text).into_owned()
    }

    /// So much time goes by.
    async fn waits(&mut self, time: Duration) {
        self.ticks += u32::try_from(time.as_millis() / TICK.as_millis()).expect("small") + 1;
        self.thread.connections.tick(self.started + TICK * self.ticks);
        for _ in 0..9 {
            yield_now().await;
        }
    }

    async fn is_over(&self) {
        while !self.thread.connections.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let in_time = async { tokio::time::timeout(Duration::from_secs(20), test).await.expect("in time") };
    LocalSet::new().block_on(&runtime, in_time);
}

#[test]
fn requests_follow_each_other_on_a_connection() {
    run(async {
        let mut conversation = Conversation::start().await;
        for _ in 0..3 {
            conversation.says(REQUEST.as_bytes()).await;
            let answer = conversation.hears(1).await;
            assert!(answer.starts_with(ANSWERED) && answer.contains("\r\ndate: "), "{answer}");
            assert!(!answer.contains("connection: "), "{answer}");
        }
        // Cut anywhere, and with the start of the next one behind it.
        for cut in [1, 5, 20, REQUEST.len() - 1] {
            conversation.says(&REQUEST.as_bytes()[..cut]).await;
            yield_now().await;
            conversation.says(&[&REQUEST.as_bytes()[cut..], &b"GET"[..]].concat()).await;
            assert_eq!(conversation.hears(1).await.matches(ANSWERED).count(), 1);
            conversation.says(&REQUEST.as_bytes()[3..]).await;
            assert_eq!(conversation.hears(1).await.matches(ANSWERED).count(), 1);
        }
        conversation.says(REQUEST.repeat(20).as_bytes()).await;
        assert_eq!(conversation.hears(20).await.matches(ANSWERED).count(), 20);
    });
}

#[test]
fn what_is_no_request_is_refused_and_nothing_behind_it_is_served() {
    run(async {
        for (bytes, status) in [
            ("GET / HTTP/1.1\nhost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nhost: a\n\r\n", 400),
            ("GET / HTTP/1.1\r\nhost: a\r\n\n", 400),
            ("GET / HTTP/1.1\r\nhost: a\r\nx-a: b\rc\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nhost: a\r\nx-a: b\r\n c\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nhost : a\r\n\r\n", 400),
            ("GET  / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1 \r\nhost: a\r\n\r\n", 400),
            ("GET /\r\nhost: a\r\n\r\n", 400),
            ("GET /a#b HTTP/1.1\r\nhost: a\r\n\r\n", 400),
            ("GET /\u{e9} HTTP/1.1\r\nhost: a\r\n\r\n", 400),
            ("\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
            (" GET / HTTP/1.1\r\nhost: a\r\n\r\n", 400),
            ("\x16\x03\x01", 400),
            (&"A".repeat(65), 400),
            ("GET / HTTP/1.2\r\nhost: a\r\n\r\n", 505),
            ("GET / HTTP/2.0\r\nhost: a\r\n\r\n", 505),
            ("GET / http/1.1\r\nhost: a\r\n\r\n", 400),
            (
                "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
                400,
            ),
            ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello", 400),
            ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\nhello", 400),
            ("POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 501),
            ("CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n", 405),
            ("TRACE / HTTP/1.1\r\nhost: a\r\n\r\n", 405),
        ] {
            let mut conversation = Conversation::start().await;
            conversation.says(&[bytes, REQUEST].concat().into_bytes()).await;
            conversation.stream.shutdown().await.expect("open");
            let answer = conversation.hears_all().await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{bytes:?}: {answer}");
            assert_eq!(answer.matches("proxy-status").count(), 1, "{bytes:?}: {answer}");
            assert!(
                answer.contains("proxy-status: outrigger; error=") && answer.contains("connection: close")
            );
            conversation.is_over().await;
        }
    });
}

#[test]
fn heads_are_bounded() {
    run(async {
        let fields = |count: usize| (0..count).map(|n| format!("x-{n}: a\r\n")).collect::<String>();
        let padded = |bytes: usize| format!("x-a: {}\r\n", "a".repeat(bytes));
        let with = |fields: &str| format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
        for (head, status) in [
            (with(&fields(99)), 503),
            (with(&fields(100)), 431),
            (with(&padded(65_000)), 503),
            (with(&padded(65_536)), 431),
            (with(&padded(200_000)), 431),
            (with(&format!("{}: a\r\n", "x".repeat(70_000))), 431),
            (format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(70_000)), 431),
            (format!("{}GET / HTTP/1.1\r\nhost: a\r\n\r\n", "\r\n".repeat(50_000)), 400),
        ] {
            let mut conversation = Conversation::start().await;
            let (mut reads, mut writes) = conversation.stream.split();
            let mut answer = Vec::new();
            let heard = async {
                while !answer.ends_with(b"\n") {
                    reads.read_buf(&mut answer).await.expect("no reset");
                }
            };
            let (said, ()) = tokio::join!(writes.write_all(head.as_bytes()), heard);
            said.expect("taken");
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        }
    });
}

#[test]
fn a_refusal_of_a_head_request_has_no_content() {
    run(async {
        let mut conversation = Conversation::start().await;
        conversation.says(b"HEAD / HTTP/1.1\r\nhost: a\r\n b\r\n\r\n").await;
        conversation.stream.shutdown().await.expect("open");
        let answer = conversation.hears_all().await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("\r\n\r\n"), "{answer}");
    });
}

#[test]
fn a_client_that_has_said_all_gets_its_answer() {
    run(async {
        let mut conversation = Conversation::start().await;
        conversation.says(REQUEST.as_bytes()).await;
        conversation.stream.shutdown().await.expect("open");
        assert!(conversation.hears_all().await.starts_with(ANSWERED));
        let mut conversation = Conversation::start().await;
        conversation.stream.shutdown().await.expect("open");
        assert_eq!(conversation.hears_all().await, "");
        let mut conversation = Conversation::start().await;
        conversation.says(b"GET / HT").await;
        conversation.stream.shutdown().await.expect("open");
        assert!(conversation.hears_all().await.starts_with("HTTP/1.1 400 "));
    });
}

#[test]
fn an_upload_that_is_refused_learns_why() {
    run(async {
        for head in ["content-length: 8000000", "transfer-encoding: chunked"] {
            let mut conversation = Conversation::start().await;
            conversation.says(format!("POST / HTTP/1.1\r\nhost: a\r\n{head}\r\n\r\n").as_bytes()).await;
            let chunk = format!("{:x}\r\n{}\r\n", 8000, "x".repeat(8000));
            let content = chunk.repeat(1000);
            conversation.says(content.as_bytes()).await; // all of it is taken, and the answer is there still
            let answer = conversation.hears_all().await;
            assert!(answer.starts_with(ANSWERED) && answer.contains("connection: close"), "{answer}");
        }
        let mut conversation = Conversation::start().await;
        for _ in 0..3 {
            conversation.says(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello").await;
            let answer = conversation.hears(1).await;
            assert!(!answer.contains("connection: close"), "what is here need not be waited for: {answer}");
        }
    });
}

#[test]
fn a_client_that_waits_to_be_asked_is_refused_without_its_content() {
    run(async {
        let mut conversation = Conversation::start().await;
        let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n";
        conversation.says(head.as_bytes()).await;
        let answer = conversation.hears_all().await;
        assert!(answer.starts_with(ANSWERED) && answer.contains("connection: close"), "{answer}");
    });
}

#[test]
fn answers_have_the_form_of_their_requests() {
    run(async {
        for (request, says, content) in [
            ("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n", "", false),
            ("GET / HTTP/1.0\r\n\r\n", "connection: close", true),
            ("GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n", "connection: keep-alive", true),
            ("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "connection: close", true),
            ("GET / HTTP/1.1\r\nhost: a\r\nconnection: x, Close\r\n\r\n", "connection: close", true),
        ] {
            let mut conversation = Conversation::start().await;
            conversation.says(request.as_bytes()).await;
            conversation.stream.shutdown().await.expect("open");
            let answer = conversation.hears_all().await;
            let version = if request.contains("HTTP/1.0") { "HTTP/1.0 503" } else { "HTTP/1.1 503" };
            assert!(answer.starts_with(version), "{answer}");
            let (head, rest) = answer.split_once("\r\n\r\n").expect("a head");
            assert!(head.contains(says) && rest.is_empty() != content, "{request}: {answer}");
        }
    });
}

#[test]
fn a_head_that_comes_too_late_is_refused() {
    run(async {
        let mut conversation = Conversation::start().await;
        conversation.says(b"GET / HT").await;
        conversation.waits(LIMITS.head / 2).await;
        conversation.says(b"TP/1.1\r\n").await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        conversation.waits(LIMITS.head / 2).await;
        let answer = conversation.hears_all().await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        conversation.is_over().await;
    });
}

#[test]
fn a_connection_that_rests_closes_when_it_is_told_to() {
    run(async {
        for asked in [false, true] {
            let mut conversation = Conversation::start().await;
            if asked {
                conversation.says(REQUEST.as_bytes()).await;
                conversation.hears(1).await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
            conversation.thread.connections.close_all();
            assert_eq!(conversation.hears_all().await, "");
            conversation.is_over().await;
        }
        let mut conversation = Conversation::start().await;
        conversation.says(&REQUEST.as_bytes()[..9]).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        conversation.thread.connections.close_all();
        conversation.says(&REQUEST.as_bytes()[9..]).await;
        let answer = conversation.hears_all().await;
        assert!(answer.starts_with(ANSWERED) && answer.contains("connection: close"), "{answer}");
    });
}

/// A panic costs the request that it happens in, and nothing else on its connection.
#[test]
fn a_request_that_panics_is_answered_and_those_after_it_are_served() {
    run(async {
        let mut conversation = Conversation::start().await;
        conversation.says(b"GET / HTTP/1.1\r\nhost: a.test\r\nx-panic: 1\r\n\r\n").await;
        let answer = conversation.hears(1).await;
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
        assert!(answer.contains("proxy-status: outrigger; error=proxy_internal_error\r\n"), "{answer}");
        conversation.says(REQUEST.as_bytes()).await;
        assert!(conversation.hears(1).await.starts_with(ANSWERED));
        assert_eq!(conversation.thread.shard.active.get(), 0, "nothing is counted as being served");
    });
}

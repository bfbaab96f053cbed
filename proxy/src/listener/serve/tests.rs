use std::time::Instant;

use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::task::{LocalSet, yield_now};

use super::*;
use crate::client::{Peer, Trust};
use crate::connection::Limits;
use crate::control::Control;
use crate::metrics::Metrics;
use crate::siblings::Arrival;
use crate::thread::TICK;

const LIMITS: Limits = Limits {
    head: Duration::from_secs(10),
    idle: Duration::from_secs(75),
    stall: Duration::from_secs(60),
    connections: 9,
};
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n";

/// A connection to a proxy without workers: every answer is a 503.
struct Conversation {
    thread: Rc<DataThread>,
    client: Rc<Client>,
    stream: DuplexStream,
    started: Instant,
    ticks: u32,
}

impl Conversation {
    fn start() -> Self {
        let control = Control::new(Vec::new());
        let thread = DataThread::new(control, Metrics::default().shard(), Trust::default(), LIMITS);
        let (stream, other) = tokio::io::duplex(64 * 1024);
        let mut kept = None;
        let peer = Peer::new(([127, 0, 0, 1], 9).into(), false);
        thread.connections.spawn(peer, Arrival::Client, |client| {
            kept = Some(client.clone());
            let thread = thread.clone();
            async move {
                let stream = Watched::new(other, client.activity.clone(), bytes::Bytes::new());
                http1(&thread, &client, stream).await.expect("no error");
            }
        });
        let client = kept.expect("one is made for each connection");
        Self { thread, client, stream, started: Instant::now(), ticks: 0 }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("open");
        for _ in 0..9 {
            yield_now().await;
        }
    }

    /// What the proxy has answered.
    async fn answers(&mut self) -> String {
        let mut text = vec![0; 64 * 1024];
        let n = self.stream.read(&mut text).await.expect("open");
        String::from_utf8_lossy(&text[..n]).into_owned()
    }

    async fn rest(&mut self) {
        for _ in 0..4 {
            self.ticks += 1;
            self.thread.connections.tick(self.started + TICK * self.ticks);
            yield_now().await;
        }
    }

    fn is_parked(&self) -> bool {
        self.client.activity.is_parked()
    }
}

async fn local(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn a_connection_that_rests_is_parked_and_serves_again() {
    local(async {
        let mut conversation = Conversation::start();
        conversation.rest().await;
        assert!(!conversation.is_parked(), "its first request has not come");
        for _ in 0..3 {
            conversation.send(REQUEST).await;
            let answer = conversation.answers().await;
            assert!(answer.starts_with("HTTP/1.1 503 ") && !answer.contains("connection: close"), "{answer}");
            conversation.rest().await;
            assert!(conversation.is_parked());
        }
        conversation.send(&REQUEST[..1]).await;
        assert!(!conversation.is_parked());
        conversation.rest().await;
        assert!(!conversation.is_parked(), "a head has begun");
        conversation.send(&REQUEST[1..]).await;
        assert!(conversation.answers().await.starts_with("HTTP/1.1 503 "));
    })
    .await;
}

/// The part of a request that came with the one before it is not lost.
#[tokio::test]
async fn what_was_read_too_early_is_kept() {
    local(async {
        let mut conversation = Conversation::start();
        let pipelined = [REQUEST, &REQUEST[..20]].concat();
        conversation.send(&pipelined).await;
        assert_eq!(conversation.answers().await.matches("HTTP/1.1 503 ").count(), 1);
        conversation.rest().await;
        conversation.send(&REQUEST[20..]).await;
        assert_eq!(conversation.answers().await.matches("HTTP/1.1 503 ").count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_parked_connection_ends_when_either_side_wants_it_to() {
    local(async {
        for asked in [true, false] {
            let mut conversation = Conversation::start();
            conversation.send(REQUEST).await;
            conversation.answers().await;
            conversation.rest().await;
            assert!(conversation.is_parked());
            if asked {
                conversation.thread.connections.close_all();
            } else {
                conversation.stream.shutdown().await.expect("open");
            }
            assert_eq!(conversation.answers().await, "", "the end of the stream");
            yield_now().await;
            assert!(conversation.thread.connections.is_empty());
        }
    })
    .await;
}

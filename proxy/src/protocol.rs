//! Which protocol a worker speaks: HTTP/1.1, HTTP/2 without TLS by prior knowledge (RFC 9113 §3.3), or both.
//!
//! Where the policy does not say, the proxy asks the worker, on a connection of its own, before it sends the first request
//! and again once the worker was away. Nothing that a client sends decides: a request over a protocol that the worker
//! does not speak would fail by the client's choice, and be held against the worker.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::balance::measure::nanos;
use crate::worker::Worker;

/// A worker that is silent for as long when it is asked is taken for one of HTTP/1.1, until it is asked again.
const SILENCE: Duration = Duration::from_secs(5);
/// A request is refused for what a worker does not speak by an answer that is no older.
const FRESH: Duration = Duration::from_secs(5);

/// The client's connection preface with its first frame, an empty SETTINGS (RFC 9113 §3.4).
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The size of a frame's header (RFC 9113 §4.1).
const FRAME_HEADER: usize = 9;

/// What a worker speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Speaks {
    /// HTTP/1.1 only.
    Http1 = 1,
    /// HTTP/2 only.
    Http2 = 2,
    /// Both. Then HTTP/2 is for what needs it, which is gRPC.
    Both = 3,
}

/// What a request needs of a worker's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Any,
    /// HTTP/1.1: a WebSocket.
    Http1,
    /// HTTP/2: gRPC.
    Http2,
}

impl Needs {
    /// What a request needs that is gRPC, or a WebSocket handshake, or neither.
    pub fn of(grpc: bool, websocket: bool) -> Self {
        match (grpc, websocket) {
            (true, _) => Self::Http2,
            (false, true) => Self::Http1,
            (false, false) => Self::Any,
        }
    }
}

impl Speaks {
    /// Whether a request goes over HTTP/2; `None` when it cannot go at all.
    pub fn over_http2(self, needs: Needs) -> Option<bool> {
        match (self, needs) {
            (Self::Http1, Needs::Http2) | (Self::Http2, Needs::Http1) => None,
            (Self::Http1, _) | (Self::Both, Needs::Any | Needs::Http1) => Some(false),
            (Self::Http2, _) | (Self::Both, Needs::Http2) => Some(true),
        }
    }
}

/// What a worker speaks, as far as is known: one byte, for every request reads it.
#[derive(Default)]
pub struct Spoken(AtomicU8);

impl Spoken {
    /// What is known.
    pub fn known(&self) -> Option<Speaks> {
        [Speaks::Http1, Speaks::Http2, Speaks::Both]
            .into_iter()
            .find(|speaks| *speaks as u8 == self.0.load(Relaxed))
    }

    /// The worker was away, or speaks otherwise than it said: it may be another program now.
    pub fn forget(&self) {
        self.0.store(0, Relaxed);
    }

    pub(crate) fn set(&self, speaks: Speaks) {
        self.0.store(speaks as u8, Relaxed);
    }
}

/// Who asks a worker, and when it was asked last.
#[derive(Default)]
pub struct Asking {
    one_at_a_time: Mutex<()>,
    /// As `nanos` counts.
    at: AtomicU64,
}

impl Asking {
    fn is_fresh(&self, now: Instant) -> bool {
        u128::from(nanos(now).saturating_sub(self.at.load(Relaxed))) < FRESH.as_nanos()
    }
}

/// What the worker speaks. It is asked over connections from `dial` where that is not known, and where a request could not
/// go to it and that was not found out just now. Whoever comes while it is asked waits.
///
/// # Errors
/// Those of `dial`.
pub async fn learn<S, E, F>(worker: &Worker, needs: Needs, dial: impl Fn() -> F) -> Result<Speaks, E>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Result<S, E>>,
{
    let _asking = worker.asking.one_at_a_time.lock().await;
    if let Some(known) = worker.speaks.known()
        && (known.over_http2(needs).is_some() || worker.asking.is_fresh(Instant::now()))
    {
        return Ok(known);
    }
    let speaks = ask(dial).await?;
    worker.speaks.set(speaks);
    worker.asking.at.store(nanos(Instant::now()), Relaxed);
    tracing::debug!(worker = worker.name, ?speaks, "the worker was asked for its protocol");
    Ok(speaks)
}

/// Whether the worker said just now that it does not speak what a request needs.
pub fn refuses(worker: &Worker, needs: Needs, now: Instant) -> bool {
    needs != Needs::Any
        && worker.speaks.known().is_some_and(|speaks| speaks.over_http2(needs).is_none())
        && worker.asking.is_fresh(now)
}

/// Asks whoever listens at the other end of `dial`.
///
/// # Errors
/// Those of `dial`.
pub async fn ask<S, E, F>(dial: impl Fn() -> F) -> Result<Speaks, E>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Result<S, E>>,
{
    if !heard(says_settings(dial().await?)).await {
        return Ok(Speaks::Http1);
    }
    let also_http1 = heard(answers_options(dial().await?)).await;
    Ok(if also_http1 { Speaks::Both } else { Speaks::Http2 })
}

/// Whoever closes the connection or says nothing does not speak the protocol.
async fn heard(said: impl Future<Output = io::Result<bool>>) -> bool {
    matches!(timeout(SILENCE, said).await, Ok(Ok(true)))
}

/// The first that a server of HTTP/2 sends is a SETTINGS frame (RFC 9113 §3.4).
async fn says_settings(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<bool> {
    stream.write_all(HELLO).await?;
    let mut header = [0; FRAME_HEADER];
    stream.read_exact(&mut header).await?;
    Ok(is_settings(header))
}

/// Whether this is the header of the frame with which a server of HTTP/2 begins.
pub fn is_settings(header: [u8; FRAME_HEADER]) -> bool {
    const SETTINGS: u8 = 4;
    const ACK: u8 = 1;
    let [a, b, c, kind, flags, stream @ ..] = header;
    let length = u32::from_be_bytes([0, a, b, c]);
    kind == SETTINGS && flags & ACK == 0 && stream == [0; 4] && length <= 1 << 14 && length.is_multiple_of(6)
}

/// `OPTIONS *` asks whether a server is there and no more (RFC 9110 §9.3.7).
async fn answers_options(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<bool> {
    const QUESTION: &[u8] =
        b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\nuser-agent: outrigger\r\nconnection: close\r\n\r\n";
    stream.write_all(QUESTION).await?;
    let mut start = *b"HTTP/1.1 200";
    stream.read_exact(&mut start).await?;
    Ok(is_http1(start))
}

/// A server of HTTP/2 alone may say in HTTP/1.1 that it does not speak that.
fn is_http1(start: [u8; 12]) -> bool {
    start.starts_with(b"HTTP/1.") && !matches!(&start[9..], b"400" | b"426" | b"505")
}

#[cfg(test)]
mod tests;

//! An HTTP/1.1 client that sends any bytes and reads answers with the strict reader.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, timeout, timeout_at};

use super::grammar::Violation;
use super::response::{Context, Response, response};
use super::strict::Step;

/// How long nothing may come before a case is judged by what there is.
const PATIENCE: Duration = Duration::from_millis(3500);

/// Where the bytes are cut into writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cut {
    #[default]
    Nowhere,
    /// Behind each byte.
    Bytes,
    /// Behind each CR and each LF, where readers change their mind.
    LineEnds,
}

impl Cut {
    fn pieces(self, bytes: &[u8]) -> Vec<&[u8]> {
        match self {
            Self::Nowhere => vec![bytes],
            Self::Bytes => bytes.chunks(1).collect(),
            Self::LineEnds => bytes.split_inclusive(|byte| matches!(byte, b'\r' | b'\n')).collect(),
        }
    }
}

/// What to send and what to wait for.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub bytes: Vec<u8>,
    /// Which of the requests are HEAD; its length is the number of answers to wait for.
    pub heads: Vec<bool>,
    pub cut: Cut,
    pub fin: bool,
    /// Wait for the proxy to close.
    pub until_close: bool,
}

/// What the client saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub bytes: Vec<u8>,
    pub responses: Vec<Response>,
    /// Interim answers (1xx but 101), by status.
    pub interim: Vec<u16>,
    pub violations: Vec<Violation>,
    /// Bytes of an answer whose end has not come.
    pub partial: usize,
    pub closed: bool,
}

/// A connection whose bytes are read in the background of writes.
pub struct Client {
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
    unread: Vec<u8>,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        Ok(Self { read, write, unread: Vec::new() })
    }

    /// Sends and reads until the answers are there (and for a little longer), the peer closes or patience ends.
    pub async fn exchange(&mut self, plan: &Plan) -> Seen {
        let Self { read, write, unread } = self;
        let mut seen = Seen::default();
        let reading = receive(read, unread, plan, &mut seen);
        tokio::join!(send(write, plan), reading);
        seen
    }

    /// Sends bytes and reads as many back.
    pub async fn tunnel(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        self.write.write_all(bytes).await?;
        let mut back = std::mem::take(&mut self.unread);
        let have = back.len().min(bytes.len());
        back.resize(bytes.len(), 0);
        timeout(PATIENCE, self.read.read_exact(&mut back[have..])).await??;
        Ok(back)
    }
}

/// The peer may close at any time: then the rest is not sent.
async fn send(write: &mut OwnedWriteHalf, plan: &Plan) {
    for piece in plan.cut.pieces(&plan.bytes) {
        if write.write_all(piece).await.is_err() {
            return;
        }
        if plan.cut != Cut::Nowhere {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    if plan.fin {
        let _ = write.shutdown().await;
    }
}

async fn receive(read: &mut OwnedReadHalf, unread: &mut Vec<u8>, plan: &Plan, seen: &mut Seen) {
    let quiet = Duration::from_millis(80);
    let (mut end, latest) = (Instant::now() + PATIENCE, Instant::now() + 10 * PATIENCE);
    loop {
        let answered = seen.responses.len() >= plan.heads.len() || !seen.violations.is_empty();
        let until = if answered && !plan.until_close { end.min(Instant::now() + quiet) } else { end };
        let before = unread.len();
        match timeout_at(until, read.read_buf(unread)).await {
            Err(_) => break,
            Ok(Ok(1..)) => {
                seen.bytes.extend_from_slice(&unread[before..]);
                end = latest.min(Instant::now() + PATIENCE);
            }
            Ok(Ok(0)) => {
                seen.closed = true;
                parse(unread, plan, seen);
                break;
            }
            Ok(Err(_)) => {
                // a reset is no orderly end: what is framed by the close stays incomplete
                parse(unread, plan, seen);
                seen.closed = true;
                break;
            }
        }
        parse(unread, plan, seen);
    }
    seen.partial = unread.len();
}

fn parse(unread: &mut Vec<u8>, plan: &Plan, seen: &mut Seen) {
    let switched = |seen: &Seen| seen.responses.last().is_some_and(|last| last.status == 101);
    while !unread.is_empty() && seen.violations.is_empty() && !switched(seen) {
        let to_head = plan.heads.get(seen.responses.len()).copied().unwrap_or_default();
        match response(unread, Context { to_head, closed: seen.closed }) {
            Step::Complete(found, length) => {
                unread.drain(..length);
                if found.status < 200 && found.status != 101 {
                    seen.interim.push(found.status);
                } else {
                    seen.responses.push(found);
                }
            }
            Step::Incomplete => return,
            Step::Broken(violations) => seen.violations = violations,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::recorder::Recorder;

    #[tokio::test]
    async fn reads_pipelined_answers() {
        let recorder = Recorder::start().await.unwrap();
        let mut client = Client::connect(recorder.address).await.unwrap();
        let bytes = b"HEAD /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
        let plan = Plan { bytes, heads: vec![true, false], cut: Cut::Bytes, ..Plan::default() };
        let seen = client.exchange(&plan).await;
        let bodies: Vec<_> = seen.responses.iter().map(|response| response.body.as_slice()).collect();
        assert_eq!(bodies, [&b""[..], b"GET /b 0"]);
        assert_eq!((seen.partial, seen.closed), (0, false));
    }

    #[tokio::test]
    async fn talks_through_a_tunnel() {
        let recorder = Recorder::start().await.unwrap();
        let mut client = Client::connect(recorder.address).await.unwrap();
        let bytes =
            b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n".to_vec();
        let seen = client.exchange(&Plan { bytes, heads: vec![false], ..Plan::default() }).await;
        assert_eq!(seen.responses[0].status, 101);
        assert_eq!(client.tunnel(b"\x81\x00").await.unwrap(), b"\x81\x00");
    }
}

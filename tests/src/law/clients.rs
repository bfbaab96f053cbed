//! Clients that do what they like, at random: the same number is always the same client.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use fastrand::Rng;
use h2::client::SendRequest;
use http::{Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::PATIENCE;

/// Longer than a worker waits for a client.
const LONG: Duration = PATIENCE.saturating_add(Duration::from_millis(500));
const SHORT: Duration = Duration::from_millis(20);

const PATHS: [&str; 6] = ["/", "/strict", "/early", "/big", "/slow", "/echo"];
const UPGRADES: [&str; 5] = ["/ws", "/refuses", "/closes", "/silent", "/ignores"];
const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "QUERY"];
const TYPES: [&str; 6] = [
    "application/grpc",
    "application/grpc+proto",
    "application/grpc-web",
    "application/grpc-web+proto",
    "application/json",
    "application/grpcish",
];
const DEADLINES: [&str; 9] = ["0", "1", "1ms", "20", "500ms", "99999999999999999", "-1", "1e9", "soon"];
const TIMEOUTS: [&str; 7] = ["1n", "1u", "1m", "20m", "1S", "99999999H", "x"];

/// What a client does with what it sends and is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// All as it should be.
    Well,
    /// There is no body, whatever the head says of its content.
    Empty,
    /// The body pauses, and goes on.
    Pauses,
    /// The body stands still for longer than the worker waits, and then the client leaves.
    Stalls,
    /// The client leaves in the middle of the body.
    BreaksOff,
    /// The body breaks its framing.
    Malformed,
    /// The client closes its half of the connection.
    HalfCloses,
    /// The client leaves before the answer.
    Leaves,
    /// The client does not read the answer for longer than the worker waits.
    ReadsLate,
    /// The head is larger than the worker takes.
    LargeHead,
}

const MANNERS: [Manner; 10] = [
    Manner::Well,
    Manner::Empty,
    Manner::Pauses,
    Manner::Stalls,
    Manner::BreaksOff,
    Manner::Malformed,
    Manner::HalfCloses,
    Manner::Leaves,
    Manner::ReadsLate,
    Manner::LargeHead,
];

/// A client.
#[derive(Clone, Debug)]
pub struct Client {
    /// What it does.
    pub manner: Manner,
    http2: bool,
    method: &'static str,
    path: &'static str,
    fields: Vec<(&'static str, String)>,
    upgrades: bool,
}

impl Client {
    /// Any client.
    pub fn any(random: &mut Rng) -> Self {
        let manner = random.choice(MANNERS).unwrap_or(Manner::Well);
        let upgrades = random.u8(..8) == 0;
        let http2 = !upgrades && random.bool();
        let of = |random: &mut Rng, all: &[&'static str]| all[random.usize(..all.len())];
        let mut fields = Vec::new();
        if random.bool() {
            fields.push(("content-type", of(random, &TYPES).to_owned()));
        }
        if random.u8(..3) == 0 {
            fields.push(("x-deadline", of(random, &DEADLINES).to_owned()));
        }
        if random.u8(..3) == 0 {
            fields.push(("grpc-timeout", of(random, &TIMEOUTS).to_owned()));
        }
        if random.bool() {
            fields.push(("te", "trailers".to_owned()));
        }
        if !http2 && random.u8(..6) == 0 {
            fields.push(("expect", "100-continue".to_owned()));
        }
        if manner == Manner::LargeHead {
            let (count, length) = if random.bool() { (90, 10) } else { (12, 4000) };
            fields.extend((0..count).map(|_| ("x-large", "a".repeat(length))));
        }
        let (method, path) = match upgrades {
            true => ("GET", of(random, &UPGRADES)),
            false => (of(random, &METHODS), of(random, &PATHS)),
        };
        let method = if random.u8(..3) == 0 && !upgrades { "POST" } else { method };
        Self { manner, http2, method, path, fields, upgrades }
    }

    /// Does it. How it ends is the client's own affair.
    pub async fn run(self, to: SocketAddr) {
        let _ = timeout(3 * LONG, async {
            if self.http2 { self.over_http2(to).await } else { self.over_http1(to).await }
        })
        .await;
    }

    async fn over_http1(&self, to: SocketAddr) -> Result<()> {
        let mut stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let mut head = format!("{} {} HTTP/1.1\r\nhost: test\r\n", self.method, self.path);
        if self.upgrades {
            head += "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                     sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        }
        for (name, value) in self.fields.iter().filter(|(name, _)| *name != "te") {
            head += &format!("{name}: {value}\r\n");
        }
        let has_body =
            !self.upgrades && self.manner != Manner::Empty && self.method != "GET" && self.method != "HEAD";
        let length = self.path.len().is_multiple_of(2);
        match (has_body, length) {
            (false, _) => {}
            (true, true) => head += "content-length: 20\r\n",
            (true, false) => head += "transfer-encoding: chunked\r\n",
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).await?;
        let half: &[u8] = if length { b"0123456789" } else { b"a\r\n0123456789\r\n" };
        let end: &[u8] = if length { b"0123456789" } else { b"0\r\nx-sum: 1\r\n\r\n" };
        if has_body {
            stream.write_all(half).await?;
            match self.manner {
                Manner::Pauses => sleep(LONG / 2).await,
                Manner::Stalls => {
                    sleep(LONG).await;
                    return Ok(());
                }
                Manner::BreaksOff => {
                    sleep(SHORT).await;
                    return Ok(());
                }
                Manner::Malformed => stream.write_all(b"zz\r\n\0").await?,
                _ => {}
            }
            stream.write_all(end).await?;
        }
        match self.manner {
            Manner::HalfCloses => stream.shutdown().await?,
            Manner::Leaves => return Ok(()),
            Manner::ReadsLate => sleep(LONG).await,
            _ => {}
        }
        let mut answer = vec![0; 64 << 10];
        while let Ok(Ok(1..)) = timeout(LONG, stream.read(&mut answer)).await {}
        Ok(())
    }

    async fn over_http2(&self, to: SocketAddr) -> Result<()> {
        let (mut sender, driver) = open(to).await?;
        let mut request = Request::builder().method(self.method).uri(format!("http://test{}", self.path));
        for (name, value) in &self.fields {
            request = request.header(*name, value);
        }
        let ends = self.manner == Manner::Empty || self.method == "GET";
        if self.manner == Manner::Malformed && !ends {
            request = request.header("content-length", "5");
        }
        let (answer, mut body) = sender.send_request(request.body(())?, ends)?;
        if !ends {
            body.send_data(Bytes::from_static(b"\0\0\0\0\x05hello"), false)?;
            match self.manner {
                Manner::Pauses => sleep(LONG / 2).await,
                Manner::Stalls => sleep(LONG).await,
                Manner::BreaksOff => {
                    sleep(SHORT).await;
                    body.send_reset(h2::Reason::CANCEL);
                }
                _ => {}
            }
            if self.manner != Manner::HalfCloses {
                body.send_data(Bytes::new(), true)?;
            }
        }
        if matches!(self.manner, Manner::Leaves | Manner::Stalls) {
            if self.path == "/" {
                drop((answer, body)); // the stream is reset, the connection stays for a while
                sleep(SHORT).await;
            }
            driver.abort();
            return Ok(());
        }
        let mut answer = answer.await?.into_body();
        if self.manner == Manner::ReadsLate {
            sleep(LONG).await;
        }
        while let Some(part) = answer.data().await {
            answer.flow_control().release_capacity(part?.len())?;
        }
        Ok(())
    }
}

type Http2 = (SendRequest<Bytes>, tokio::task::JoinHandle<()>);

async fn open(to: SocketAddr) -> Result<Http2> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    let driver = tokio::spawn(async move { drop(connection.await) });
    Ok((sender.ready().await?, driver))
}

/// A GET as it should be.
///
/// # Errors
/// There is no whole answer.
pub async fn plain(to: SocketAddr) -> Result<StatusCode> {
    Ok(crate::client::send(to, crate::client::get("/", &[])).await?.status)
}

/// A gRPC call as it should be: the status with which it ended.
///
/// # Errors
/// There is no whole answer.
pub async fn grpc(to: SocketAddr) -> Result<String> {
    let (mut sender, _driver) = open(to).await?;
    let call =
        Request::post("http://test/").header("content-type", "application/grpc").header("te", "trailers");
    let (answer, mut body) = sender.send_request(call.body(())?, false)?;
    body.send_data(Bytes::from_static(b"\0\0\0\0\0"), true)?;
    let (head, mut body) = answer.await?.into_parts();
    while body.data().await.transpose()?.is_some() {}
    let trailers = body.trailers().await?.unwrap_or_default();
    let status = head.headers.get("grpc-status").or_else(|| trailers.get("grpc-status"));
    Ok(status.context("no status")?.to_str()?.to_owned())
}

/// A WebSocket handshake as it should be.
///
/// # Errors
/// There is no answer.
pub async fn websocket(to: SocketAddr, path: &str) -> Result<Response<Vec<u8>>> {
    let mut stream = TcpStream::connect(to).await?;
    let head = format!(
        "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut read = vec![0; 4096];
    let length = stream.read(&mut read).await?;
    read.truncate(length);
    let status = std::str::from_utf8(read.get(9..12).context("too short")?)?.parse::<u16>()?;
    Ok(Response::builder().status(status).body(read)?)
}

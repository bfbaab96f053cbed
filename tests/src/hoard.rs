//! Clients that make the proxy hold as much memory as they can, each in its way.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;

use crate::wire::hpack;

/// What such a client makes the proxy hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A hundred answers over HTTP/2, with open windows, of which nothing is read.
    AnswersOverHttp2,
    /// A hundred requests over HTTP/2 with 55 KB of fields, which wait for their worker.
    HeadsOverHttp2,
    /// An answer over HTTP/1.1 of which nothing is read.
    Answer,
    /// A request over HTTP/1.1 whose body its worker does not read.
    Body,
    /// A request over HTTP/1.1 that its worker has, with a body to be kept for another try.
    KeptBody,
    /// A head of 60 KB over HTTP/1.1 that does not end.
    Head,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::AnswersOverHttp2, Self::HeadsOverHttp2, Self::Answer, Self::Body, Self::KeptBody, Self::Head];

    /// What is sent on a connection.
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::AnswersOverHttp2 => over_http2("/file", 0),
            Self::HeadsOverHttp2 => over_http2("/delay/60000", 55_000),
            Self::Answer => b"GET /file HTTP/1.1\r\nhost: hoard\r\n\r\n".to_vec(),
            Self::Body => {
                let head = b"POST /delay/60000 HTTP/1.1\r\nhost: hoard\r\ncontent-length: 8000000\r\n\r\n";
                [head.as_slice(), &vec![b'x'; 8_000_000]].concat()
            }
            Self::KeptBody => {
                let head = b"PUT /delay/60000 HTTP/1.1\r\nhost: hoard\r\ncontent-length: 60000\r\n\r\n";
                [head.as_slice(), &vec![b'x'; 60_000]].concat()
            }
            Self::Head => {
                let field = format!("x-{}: {}\r\n", "a".repeat(20), "b".repeat(4_000));
                format!("GET / HTTP/1.1\r\nhost: hoard\r\n{}", field.repeat(15)).into_bytes()
            }
        }
    }
}

/// A connection over HTTP/2 with a hundred requests that have so many bytes of fields, and windows as wide as can be.
fn over_http2(path: &str, fields: usize) -> Vec<u8> {
    const WIDEST: u32 = (1 << 31) - 1;
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let initial_window = [&4_u16.to_be_bytes()[..], &WIDEST.to_be_bytes()].concat();
    frame(&mut bytes, [4, 0], 0, &initial_window);
    frame(&mut bytes, [8, 0], 0, &(WIDEST - 65_535).to_be_bytes());
    let long = "c".repeat(fields);
    let fields = [
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "hoard"),
        (":path", path),
        ("x-long", long.as_str()),
    ];
    let block = hpack::encode(fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())));
    for stream in 0..100 {
        let count = block.len().div_ceil(16_000);
        for (i, part) in block.chunks(16_000).enumerate() {
            let kind = if i == 0 { 1 } else { 9 }; // HEADERS, CONTINUATION
            let end = if i + 1 == count { 4 } else { 0 }; // END_HEADERS
            let flags = if i == 0 { end | 1 } else { end }; // END_STREAM
            frame(&mut bytes, [kind, flags], stream * 2 + 1, part);
        }
    }
    bytes
}

fn frame(bytes: &mut Vec<u8>, [kind, flags]: [u8; 2], stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    bytes.extend_from_slice(&length[1..]);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
}

/// Clients that hoard, until this is dropped.
pub struct Hoard(Vec<JoinHandle<()>>);

impl Hoard {
    /// Starts so many, which come again every few seconds or when they are cut off.
    pub async fn start(to: SocketAddr, way: Way, count: usize) -> Self {
        let bytes = bytes::Bytes::from(way.bytes());
        let mut clients = Vec::new();
        for i in 0..count {
            let from = std::net::Ipv4Addr::new(127, 0, 2, 1 + (i % 200) as u8);
            let bytes = bytes.clone();
            clients.push(tokio::spawn(async move {
                loop {
                    let _ = hoard(to, from, &bytes).await; // it was cut off
                    tokio::time::sleep(Duration::from_secs(1).mul_f64(0.5 + fastrand::f64())).await;
                }
            }));
            if i % 32 == 31 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        Self(clients)
    }
}

impl Drop for Hoard {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

async fn hoard(to: SocketAddr, from: std::net::Ipv4Addr, bytes: &[u8]) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    socket.bind(SocketAddr::from((from, 0)))?;
    let mut stream = socket.connect(to).await?;
    let sent = tokio::time::timeout(Duration::from_secs(4), stream.write_all(bytes)).await;
    if let Ok(sent) = sent {
        sent?;
    }
    for _ in 0..16 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if let Some(error) = stream.take_error()? {
            return Err(error.into());
        }
    }
    Ok(())
}

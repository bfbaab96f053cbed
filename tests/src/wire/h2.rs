//! An HTTP/2 client that sends any frames, legal or not, and sees how each stream and the connection end.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::corpus::{Case, Line, RawFrame, lines};
use super::hpack::{RawField, decode, encode};

const PATIENCE: Duration = Duration::from_millis(3500);
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// What the client saw of stream 1.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The request was HEAD.
    pub to_head: bool,
    pub interim: Vec<u16>,
    pub status: Option<u16>,
    pub fields: Vec<RawField>,
    pub body: Vec<u8>,
    pub trailers: Vec<RawField>,
    /// END_STREAM came: the answer is complete.
    pub ended: bool,
    pub reset: Option<u32>,
    pub goaway: Option<u32>,
    pub closed: bool,
    /// What could not be decoded.
    pub garbled: Option<String>,
}

impl Seen {
    /// Nothing more will come on the stream.
    fn over(&self) -> bool {
        self.ended || self.reset.is_some() || self.goaway.is_some_and(|code| code != 0)
    }

    /// The answer began and will not become whole.
    pub fn cut(&self) -> bool {
        self.status.is_some() && !self.complete() && (self.ended || self.refused())
    }

    /// Refused by the protocol rather than by an answer.
    pub fn refused(&self) -> bool {
        self.reset.is_some() || self.goaway.is_some() || self.closed
    }

    /// The whole answer came. One that is shorter than its Content-Length is malformed, and a client sees that.
    pub fn complete(&self) -> bool {
        let stated = self.fields.iter().find(|(name, _)| name == b"content-length");
        let may_differ = self.to_head || self.status == Some(204) || self.status == Some(304);
        let differs = stated.is_some_and(|(_, length)| length != self.body.len().to_string().as_bytes());
        self.ended && self.status.is_some() && (may_differ || !differs)
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

fn block(fields: &[Line]) -> Vec<u8> {
    encode(lines(fields))
}

/// The pseudo-header fields of a plain request.
fn plain(method: &str, authority: &str, path: &str) -> Vec<u8> {
    let fields = [(":method", method), (":scheme", "http"), (":authority", authority), (":path", path)];
    encode(fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
}

/// The fields of a case, encoded.
fn fields_of(case: &Case) -> Vec<u8> {
    if !case.headers.is_empty() {
        return block(&case.headers);
    }
    let method = if case.data.is_empty() { "GET" } else { "POST" };
    [plain(method, "a.test", "/x"), block(&case.with)].concat()
}

/// The connection's start: no dynamic table, so that `hpack::decode` needs none.
fn opening() -> Vec<u8> {
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0]));
    bytes
}

/// The bytes of a case, after the opening.
fn frames_of(case: &Case) -> Vec<u8> {
    if !case.frames.is_empty() {
        return case.frames.iter().flat_map(|frame| raw(frame).repeat(frame.times)).collect();
    }
    let ends = |last: bool| if last && !case.open { END_STREAM } else { 0 };
    let mut bytes = head(&fields_of(case), ends(case.data.is_empty() && case.trailers.is_empty()));
    for (at, data) in case.data.iter().enumerate() {
        let last = at + 1 == case.data.len() && case.trailers.is_empty();
        bytes.extend(frame(DATA, ends(last), 1, &data.0));
    }
    if !case.trailers.is_empty() {
        bytes.extend(head(&block(&case.trailers), ends(true)));
    }
    bytes
}

/// HEADERS, and CONTINUATION for what is above the frame size that every peer allows.
fn head(block: &[u8], flags: u8) -> Vec<u8> {
    let pieces: Vec<_> = block.chunks(16_384).collect();
    let mut bytes = Vec::new();
    for (at, piece) in pieces.iter().enumerate() {
        let (kind, flags) = if at == 0 { (HEADERS, flags) } else { (CONTINUATION, 0) };
        let last = if at + 1 == pieces.len() { END_HEADERS } else { 0 };
        bytes.extend(frame(kind, flags | last, 1, piece));
    }
    bytes
}

fn raw(given: &RawFrame) -> Vec<u8> {
    let mut payload = block(&given.headers);
    payload.extend_from_slice(&given.payload.0);
    frame(given.kind, given.flags, given.stream, &payload)
}

/// Sends a case over a new connection and waits for the end of stream 1.
pub async fn exchange(address: SocketAddr, case: &Case) -> Result<Seen> {
    let mut bytes = opening();
    bytes.extend(frames_of(case));
    let to_head = lines(&case.headers).any(|(_, value)| value == b"HEAD");
    talk(address, &bytes, to_head).await
}

/// A plain request over a new connection.
pub async fn request(address: SocketAddr, method: &str, path: &str) -> Result<Seen> {
    let mut bytes = opening();
    bytes.extend(head(&plain(method, "conformance.test", path), END_STREAM));
    talk(address, &bytes, method == "HEAD").await
}

async fn talk(address: SocketAddr, bytes: &[u8], to_head: bool) -> Result<Seen> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut seen = Seen { to_head, ..Seen::default() };
    // the peer may end the connection while we write, or read no more
    let _ = timeout(PATIENCE, stream.write_all(bytes)).await;
    let mut unread = Vec::new();
    let end = Instant::now() + PATIENCE;
    while !seen.over() {
        match timeout_at(end, stream.read_buf(&mut unread)).await {
            Err(_) => break,
            Ok(Ok(1..)) => {}
            Ok(_) => {
                seen.closed = true;
                break;
            }
        }
        let replies = read_frames(&mut unread, &mut seen);
        let _ = stream.write_all(&replies).await;
    }
    Ok(seen)
}

/// Takes whole frames off the front of `unread`; what must be said in return is the result.
fn read_frames(unread: &mut Vec<u8>, seen: &mut Seen) -> Vec<u8> {
    let mut replies = Vec::new();
    while let Some(header) = unread.first_chunk::<9>() {
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        let (kind, flags) = (header[3], header[4]);
        let stream = u32::from_be_bytes([header[5] & 0x7f, header[6], header[7], header[8]]);
        if unread.len() < 9 + length {
            break;
        }
        let payload: Vec<u8> = unread.drain(..9 + length).skip(9).collect();
        match kind {
            SETTINGS if flags & ACK == 0 => replies.extend(frame(SETTINGS, ACK, 0, &[])),
            PING if flags & ACK == 0 => replies.extend(frame(PING, ACK, 0, &payload)),
            GOAWAY => seen.goaway = error_code(&payload, 4),
            RST_STREAM if stream == 1 => seen.reset = error_code(&payload, 0),
            HEADERS if stream == 1 => note_fields(&payload, flags, seen),
            DATA if stream == 1 => {
                seen.body.extend_from_slice(&payload);
                seen.ended |= flags & END_STREAM != 0;
            }
            _ => {}
        }
    }
    replies
}

fn error_code(payload: &[u8], at: usize) -> Option<u32> {
    payload.get(at..)?.first_chunk().map(|code| u32::from_be_bytes(*code))
}

fn note_fields(payload: &[u8], flags: u8, seen: &mut Seen) {
    let fields = match decode(payload) {
        Ok(fields) if flags & END_HEADERS != 0 => fields,
        Ok(_) => return seen.garbled = Some(String::from("HEADERS without END_HEADERS")),
        Err(error) => return seen.garbled = Some(error.to_string()),
    };
    let status = fields.iter().find(|(name, _)| name == b":status");
    let status = status.and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse().ok());
    match status {
        Some(interim @ 100..200) => seen.interim.push(interim),
        Some(status) => {
            seen.status = Some(status);
            seen.fields = fields;
        }
        None => seen.trailers = fields,
    }
    seen.ended |= flags & END_STREAM != 0;
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http_body_util::Full;
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::net::TcpListener;

    use super::*;

    async fn hello(
        _: hyper::Request<hyper::body::Incoming>,
    ) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
        let mut response = hyper::Response::new(Full::new(Bytes::from_static(b"hello")));
        *response.status_mut() = hyper::StatusCode::IM_A_TEAPOT;
        Ok(response)
    }

    async fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service_fn(hello));
                tokio::spawn(serving);
            }
        });
        address
    }

    #[tokio::test]
    async fn reads_an_answer() {
        let seen = request(server().await, "GET", "/").await.unwrap();
        assert_eq!((seen.status, seen.body.as_slice(), seen.ended), (Some(418), &b"hello"[..], true));
        assert_eq!(seen.garbled, None);
    }

    #[tokio::test]
    async fn sees_a_refusal() {
        let upper = "{id: x, rfc: x, why: x, expect: reject, headers: [['X', 'y']]}";
        let case: Case = serde_yaml::from_str(upper).unwrap();
        assert!(exchange(server().await, &case).await.unwrap().refused());
    }

    /// What the corpus calls legal is so for a server that is not ours.
    #[tokio::test]
    async fn legal_cases_are_answered() {
        let server = server().await;
        for case in crate::wire::corpus::accepts().unwrap().iter().filter(|case| case.raw.is_none()) {
            let seen = exchange(server, case).await.unwrap();
            assert_eq!((seen.status, seen.garbled.as_deref()), (Some(418), None), "{}: {seen:?}", case.id);
        }
    }
}

//! Workers that run in this process and do what a test tells them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What a worker does with each request, unless the path says otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// The status it answers with; 0: 200.
    pub status: u16,
    /// How long it waits first.
    pub delay: Duration,
    /// Whether it speaks HTTP/2 by prior knowledge instead of HTTP/1.1.
    pub http2: bool,
    /// What it reports of its load in `endpoint-load-metrics`: so many percent of its CPU for each request that it has;
    /// 0: nothing.
    pub percent_each: u8,
    /// Whether it reads a request and then breaks off.
    pub breaks_off: bool,
    /// The code with which it ends a gRPC call at once; 0: it answers.
    pub grpc_status: u16,
}

/// A worker: answers with its name, echoes a body sent to `/echo`, waits first for `/delay/MILLISECONDS`.
pub struct Worker {
    /// Where it listens.
    pub address: SocketAddr,
    /// Requests it got.
    pub requests: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Worker {
    /// Requests it got.
    pub fn count(&self) -> u64 {
        self.requests.load(Relaxed)
    }

    /// Stops it at once: connections are closed, new ones refused.
    pub async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await; // its listener is closed now
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts a worker of this name.
pub async fn start(name: &str, manner: Manner) -> Worker {
    start_at(SocketAddr::from(([127, 0, 0, 1], 0)), name, manner).await
}

/// Starts a worker at an address that is known already.
pub async fn start_at(address: SocketAddr, name: &str, manner: Manner) -> Worker {
    let listener = TcpListener::bind(address).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let requests = Arc::new(AtomicU64::new(0));
    let counter = requests.clone();
    let in_flight = Arc::new(AtomicU64::new(0));
    let name = name.to_owned();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new(); // aborted with the worker
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            let (name, counter, in_flight) = (name.clone(), counter.clone(), in_flight.clone());
            connections.spawn(async move {
                let service = service_fn(move |request| {
                    counter.fetch_add(1, Relaxed);
                    in_flight.fetch_add(1, Relaxed);
                    answer(name.clone(), manner, in_flight.clone(), request)
                });
                let io = TokioIo::new(stream);
                let _ = if manner.http2 {
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(io, service)
                        .await
                } else {
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(io, service)
                        .with_upgrades()
                        .await
                };
            });
        }
    });
    Worker { address, requests, task }
}

async fn answer(
    name: String,
    manner: Manner,
    in_flight: Arc<AtomicU64>,
    mut request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, hyper::Error>>, std::io::Error> {
    let asked = request.uri().path().strip_prefix("/delay/").and_then(|millis| millis.parse().ok());
    tokio::time::sleep(manner.delay + asked.map_or(Duration::ZERO, Duration::from_millis)).await;
    if manner.breaks_off {
        let _ = request.into_body().collect().await; // the client may have broken off first
        return Err(std::io::Error::other("told to break off"));
    }
    let status = StatusCode::from_u16(manner.status).unwrap_or(StatusCode::OK);
    let mut builder = Response::builder().status(status).header("x-worker", name.as_str());
    if manner.percent_each != 0 {
        let percent = u64::from(manner.percent_each) * in_flight.fetch_sub(1, Relaxed);
        builder = builder
            .header("endpoint-load-metrics", format!("TEXT cpu={}.{:02}", percent / 100, percent % 100));
    }
    if manner.grpc_status != 0 {
        builder =
            builder.header("content-type", "application/grpc").header("grpc-status", manner.grpc_status);
        return Ok(builder.body(text(String::new())).expect("a valid answer"));
    }
    if request.headers().contains_key("upgrade") {
        return Ok(upgrade(builder, &mut request));
    }
    let body = match request.uri().path() {
        "/echo" => request.into_body().boxed(),
        "/headers" => text(headers_text(request.headers(), request.uri().path())),
        "/file" => return Ok(part_of_file(builder, request.headers())),
        "/trailer" => return Ok(with_trailer(builder)),
        _ => text(name),
    };
    Ok(builder.body(body).expect("a valid answer"))
}

/// What `/file` serves: some MiB in which no two parts are the same.
pub fn file() -> Bytes {
    static FILE: std::sync::LazyLock<Bytes> = std::sync::LazyLock::new(make_file);
    FILE.clone()
}

fn make_file() -> Bytes {
    let words = (0..1_u32 << 20).map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes());
    Bytes::from(words.flatten().collect::<Vec<_>>())
}

/// The file, or the part of it that `Range: bytes=FIRST-LAST` asks for (RFC 9110 §14).
fn part_of_file(
    builder: http::response::Builder,
    headers: &HeaderMap,
) -> Response<BoxBody<Bytes, hyper::Error>> {
    let file = file();
    let range = headers.get("range").and_then(|range| range.to_str().ok()?.strip_prefix("bytes="));
    let ends = range.and_then(|range| range.split_once('-'));
    let ends = ends.and_then(|(first, last)| Some((first.parse().ok()?, last.parse::<usize>().ok()?)));
    let builder = builder.header("accept-ranges", "bytes");
    let (builder, part) = match ends {
        Some((first, last)) => {
            let range = format!("bytes {first}-{last}/{}", file.len());
            (builder.status(206).header("content-range", range), file.slice(first..=last))
        }
        None => (builder, file),
    };
    let body = Full::new(part).map_err(|never| match never {}).boxed();
    builder.body(body).expect("a valid answer")
}

/// A body of unknown length with a field after it.
fn with_trailer(builder: http::response::Builder) -> Response<BoxBody<Bytes, hyper::Error>> {
    let mut fields = HeaderMap::new();
    fields.insert("x-checksum", http::HeaderValue::from_static("6f1e"));
    let frames = [Frame::data(Bytes::from_static(b"checked")), Frame::trailers(fields)];
    let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok)));
    builder.header("trailer", "x-checksum").body(BoxBody::new(body)).expect("a valid answer")
}

fn upgrade(
    builder: http::response::Builder,
    request: &mut Request<Incoming>,
) -> Response<BoxBody<Bytes, hyper::Error>> {
    let upgraded = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    let builder = builder.status(StatusCode::SWITCHING_PROTOCOLS).header("connection", "upgrade");
    builder.header("upgrade", "websocket").body(text(String::new())).expect("a valid answer")
}

fn headers_text(headers: &HeaderMap, path: &str) -> String {
    let lines = headers
        .iter()
        .map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())));
    format!("{path}\n{}", lines.collect::<String>())
}

fn text(text: String) -> BoxBody<Bytes, hyper::Error> {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed()
}

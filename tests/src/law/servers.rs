//! Workers that keep to their protocol, whatever they are sent: they refuse what they do not like, and give up waiting for
//! a client that dawdles, as real servers do.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// How long a worker waits for a client in the middle of a body, in either direction, before it closes the connection
/// without another word.
pub const PATIENCE: Duration = Duration::from_millis(1300);
/// A head may have so many fields and so many bytes.
const FIELDS: usize = 60;
const HEAD: usize = 16 << 10;

/// How long a slow answer takes.
const TAKES: Duration = Duration::from_millis(200);

/// What a worker speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only, and gRPC over it.
    H2c,
    /// Both, on one port.
    Both,
}

/// A worker.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Starts one.
    pub async fn start(kind: Kind) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), kind).await
    }

    /// Starts one at an address that is known.
    pub async fn start_at(address: SocketAddr, kind: Kind) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new(); // ended with the worker
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                connections.spawn(serve(kind, stream));
            }
        });
        Self { address, task }
    }

    /// Stops it at once: connections are closed, new ones refused.
    pub async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await; // its listener is closed now
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(kind: Kind, stream: TcpStream) {
    let http2 = match kind {
        Kind::Http1 => false,
        Kind::H2c => true,
        Kind::Both => {
            let mut start = [0; 4];
            while stream.peek(&mut start).await.is_ok_and(|seen| 0 < seen && seen < start.len()) {
                sleep(Duration::from_millis(1)).await;
            }
            start == *b"PRI "
        }
    };
    let io = TokioIo::new(stream);
    if http2 {
        let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        builder.max_concurrent_streams(10).max_header_list_size(HEAD as u32);
        let _ = builder.serve_connection(io, service_fn(answer)).await;
    } else {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder.max_headers(FIELDS).max_buf_size(HEAD);
        let _ = builder.serve_connection(io, service_fn(answer)).with_upgrades().await;
    }
}

type Body = UnsyncBoxBody<Bytes, h2::Error>;

/// The worker closes the connection or, over HTTP/2, ends the stream.
fn gives_up() -> h2::Error {
    h2::Reason::CANCEL.into()
}

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, h2::Error> {
    let to_head = request.method() == Method::HEAD;
    let answer = whole_answer(request).await?;
    Ok(if to_head { answer.map(|_| text("")) } else { answer })
}

async fn whole_answer(request: Request<Incoming>) -> Result<Response<Body>, h2::Error> {
    let http2 = request.version() == Version::HTTP_2;
    if request.headers().contains_key("upgrade") {
        return upgrade(request).await;
    }
    let grpc = request
        .headers()
        .get("content-type")
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    let path = request.uri().path().to_owned();
    match path.as_str() {
        // A gRPC server that is strict with whoever is no gRPC client.
        "/strict" if http2 && !(grpc && request.method() == Method::POST) => {
            Err(h2::Reason::PROTOCOL_ERROR.into())
        }
        "/early" => Ok(Response::builder().status(413).body(text("no")).expect("valid")),
        "/big" => {
            tokio::spawn(read(request)); // what is left unread when a connection is closed costs the end of the answer
            Ok(Response::new(big()))
        }
        "/slow" => {
            let hurried = is_hurried(request.headers(), grpc && http2);
            read(request).await?;
            if hurried {
                return Ok(over_time(grpc && http2));
            }
            sleep(TAKES).await;
            Ok(good(grpc && http2))
        }
        "/echo" => {
            let body = request.into_body().map_err(|_| gives_up());
            Ok(Response::new(body.boxed_unsync()))
        }
        _ => {
            read(request).await?;
            Ok(good(grpc && http2))
        }
    }
}

/// Reads the body, as long as that does not stand still.
async fn read(request: Request<Incoming>) -> Result<(), h2::Error> {
    let mut body = request.into_body();
    loop {
        match timeout(PATIENCE, body.frame()).await {
            Ok(None) => return Ok(()),
            Ok(Some(Ok(_))) => {}
            Ok(Some(Err(_))) | Err(_) => return Err(gives_up()),
        }
    }
}

/// Whether the client said that it does not wait for as long as a slow answer takes.
fn is_hurried(headers: &HeaderMap, grpc: bool) -> bool {
    let said = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let within = |number: &str, unit: Duration| {
        number.parse().is_ok_and(|number: u32| unit.checked_mul(number).is_some_and(|time| time < TAKES))
    };
    let deadline = said("x-deadline");
    let timeout = said("grpc-timeout");
    within(deadline.trim_end_matches("ms"), Duration::from_millis(1))
        || grpc && timeout.strip_suffix('u').is_some_and(|number| within(number, Duration::from_micros(1)))
        || grpc && timeout.strip_suffix('m').is_some_and(|number| within(number, Duration::from_millis(1)))
}

fn good(grpc: bool) -> Response<Body> {
    if !grpc {
        return Response::new(text("well"));
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Frame::data(Bytes::from_static(b"\0\0\0\0\0")), Frame::trailers(trailers)];
    let body = StreamBody::new(stream::iter(frames.map(Ok))).boxed_unsync();
    Response::builder().header("content-type", "application/grpc").body(body).expect("valid")
}

/// The client is told that its time is over.
fn over_time(grpc: bool) -> Response<Body> {
    let builder = match grpc {
        true => Response::builder().header("content-type", "application/grpc").header("grpc-status", "4"),
        false => Response::builder().status(504),
    };
    builder.body(Empty::new().map_err(|never| match never {}).boxed_unsync()).expect("valid")
}

/// Many bytes, as long as somebody takes them.
fn big() -> Body {
    let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, h2::Error>>(1);
    tokio::spawn(async move {
        for _ in 0..512 {
            let part = Frame::data(Bytes::from_static(&[b'x'; 32 << 10]));
            if timeout(PATIENCE, sender.send(Ok(part))).await.is_err() {
                drop(timeout(PATIENCE, sender.send(Err(gives_up()))).await);
                return;
            }
        }
    });
    let frames = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    StreamBody::new(frames).boxed_unsync()
}

/// What servers do that expect no upgrade at a path: refuse it, close the connection, say nothing, or do as if nothing was.
async fn upgrade(mut request: Request<Incoming>) -> Result<Response<Body>, h2::Error> {
    match request.uri().path() {
        "/refuses" => Ok(Response::builder().status(400).body(text("no")).expect("valid")),
        "/closes" => Err(gives_up()),
        "/silent" => std::future::pending().await,
        "/ignores" => Ok(good(false)),
        _ => {
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let Ok(upgraded) = upgraded.await else { return };
                let (mut from, mut to) = tokio::io::split(TokioIo::new(upgraded));
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
            let builder = Response::builder().status(101).header("connection", "upgrade");
            Ok(builder.header("upgrade", "websocket").body(text("")).expect("valid"))
        }
    }
}

fn text(text: &'static str) -> Body {
    Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {}).boxed_unsync()
}

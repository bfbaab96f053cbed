//! Steady load for as long as a test needs it, and every failure with its time and cause.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// How many clients of each kind, and how often each asks.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Clients that keep their connection.
    pub kept: usize,
    /// Clients that connect anew for every request.
    pub anew: usize,
    /// Time between two requests of a client.
    pub every: Duration,
}

/// What came of the load.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Requests sent.
    pub requests: usize,
    /// Requests that got no 200, and why.
    pub failures: Vec<(Duration, String)>,
    /// Workers that answered.
    pub workers: BTreeSet<String>,
    /// How long it went on.
    pub lasted: Duration,
}

impl Outcome {
    /// Requests a second.
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.lasted.as_secs_f64()
    }
}

/// Load that goes on until it is stopped.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Outcome>>,
    started: Instant,
}

impl Load {
    /// Starts it against this address.
    pub fn start(to: SocketAddr, shape: Shape) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let started = Instant::now();
        let clients = (0..shape.kept + shape.anew).map(|i| {
            let way = if i < shape.kept { Way::Kept(None) } else { Way::Anew };
            tokio::spawn(Client { to, way, started }.run(shape.every, stop.clone()))
        });
        Self { clients: clients.collect(), stop, started }
    }

    /// Starts it over this many HTTP/2 connections without TLS, each shared by as many clients as are asked for.
    pub fn start_http2(to: SocketAddr, [connections, clients]: [usize; 2], every: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let started = Instant::now();
        let shared = (0..connections).flat_map(|_| std::iter::repeat_n(Arc::new(Mutex::new(None)), clients));
        let clients = shared.map(|shared| {
            let client = Client { to, way: Way::Http2(shared), started };
            tokio::spawn(client.run(every, stop.clone()))
        });
        Self { clients: clients.collect(), stop, started }
    }

    /// Stops it and adds up.
    pub async fn stop(self) -> Outcome {
        self.stop.store(true, Relaxed);
        let mut sum = Outcome { lasted: self.started.elapsed(), ..Outcome::default() };
        for client in self.clients {
            let outcome = client.await.expect("a client does not panic");
            sum.requests += outcome.requests;
            sum.failures.extend(outcome.failures);
            sum.workers.extend(outcome.workers);
        }
        sum.failures.sort();
        sum
    }
}

type Body = Full<Bytes>;
type Sender = http1::SendRequest<Body>;
/// An HTTP/2 connection, while there is one.
type Shared = Arc<Mutex<Option<http2::SendRequest<Body>>>>;

struct Client {
    to: SocketAddr,
    way: Way,
    started: Instant,
}

/// How a client connects.
enum Way {
    /// Anew for every request.
    Anew,
    /// Once: the connection, while there is one.
    Kept(Option<Sender>),
    /// With others, over HTTP/2.
    Http2(Shared),
}

impl Client {
    async fn run(mut self, every: Duration, stop: Arc<AtomicBool>) -> Outcome {
        let mut outcome = Outcome::default();
        let mut tick = tokio::time::interval(every);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !stop.load(Relaxed) {
            tick.tick().await;
            outcome.requests += 1;
            let answered = tokio::time::timeout(Duration::from_secs(10), self.request()).await;
            match answered.unwrap_or_else(|_| Err("no answer in ten seconds".to_owned())) {
                Ok(worker) => _ = outcome.workers.insert(worker),
                Err(error) => outcome.failures.push((self.started.elapsed(), error)),
            }
        }
        outcome
    }

    /// One request. A kept connection that the server closed before anything was sent is opened anew, as every
    /// client does; a request that was sent and got no answer has failed.
    async fn request(&mut self) -> Result<String, String> {
        if let Way::Http2(shared) = &self.way {
            return self.over_http2(shared).await;
        }
        let mut request =
            Request::get("/").header("host", "web").body(Full::new(Bytes::new())).map_err(text)?;
        for _ in 0..3 {
            let kept = if let Way::Kept(kept) = &mut self.way { kept.take() } else { None };
            let mut sender = match kept.filter(|sender| !sender.is_closed()) {
                Some(sender) => sender,
                None => self.connect().await?,
            };
            if sender.ready().await.is_err() {
                continue; // closed while it was idle
            }
            match sender.try_send_request(request).await {
                Ok(response) => {
                    let worker = answered(response).await?;
                    if let Way::Kept(kept) = &mut self.way {
                        *kept = Some(sender);
                    }
                    return Ok(worker);
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(format!("no answer: {}", error.into_error())),
                },
            }
        }
        Err(CLOSED.to_owned())
    }

    /// The same over HTTP/2: a connection that says goodbye is followed by another.
    async fn over_http2(&self, shared: &Shared) -> Result<String, String> {
        for _ in 0..3 {
            let mut sender = self.join(shared).await?;
            if sender.ready().await.is_err() {
                continue;
            }
            let request = Request::get("http://web/").body(Full::new(Bytes::new())).map_err(text)?;
            match sender.try_send_request(request).await {
                Ok(response) => return answered(response).await,
                Err(error) if error.message().is_some() || was_not_begun(error.error()) => {
                    *shared.lock().await = None;
                }
                Err(error) => return Err(format!("no answer over HTTP/2: {:?}", error.into_error())),
            }
        }
        Err(CLOSED.to_owned())
    }

    /// The shared connection, opened if there is none that takes requests.
    async fn join(&self, shared: &Shared) -> Result<http2::SendRequest<Body>, String> {
        let mut shared = shared.lock().await;
        if let Some(sender) = shared.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let handshake = http2::handshake(TokioExecutor::new(), self.stream().await?);
        let (sender, connection) = handshake.await.map_err(text)?;
        tokio::spawn(connection);
        *shared = Some(sender.clone());
        Ok(sender)
    }

    async fn connect(&self) -> Result<Sender, String> {
        let (sender, connection) = http1::handshake(self.stream().await?).await.map_err(text)?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn stream(&self) -> Result<TokioIo<TcpStream>, String> {
        let stream = TcpStream::connect(self.to).await.map_err(|error| format!("cannot connect: {error}"))?;
        Ok(TokioIo::new(stream))
    }
}

const CLOSED: &str = "three connections were closed before the request was sent";

/// Whether a request crossed the server's goodbye, which says that it was not begun: any client sends it again
/// (RFC 9113 §6.8).
fn was_not_begun(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| {
        cause.is_remote() && cause.is_go_away() && cause.reason() == Some(h2::Reason::NO_ERROR)
    })
}

/// The worker that answered with 200.
async fn answered(response: http::Response<hyper::body::Incoming>) -> Result<String, String> {
    let status = response.status();
    let body = response.into_body().collect().await.map_err(text)?.to_bytes();
    if status != 200 {
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body)));
    }
    let answer: serde_json::Value = serde_json::from_slice(&body).map_err(text)?;
    Ok(answer["worker"].as_str().unwrap_or_default().to_owned())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

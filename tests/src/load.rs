//! Steady load for as long as a test needs it, and every failure with its time and cause.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
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
            let client = Client { to, kept: (i < shape.kept).then_some(None), started };
            tokio::spawn(client.run(shape.every, stop.clone()))
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

type Sender = SendRequest<Full<Bytes>>;

struct Client {
    to: SocketAddr,
    /// `Some` for a client that keeps its connection: the connection, while there is one.
    kept: Option<Option<Sender>>,
    started: Instant,
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
        let mut request =
            Request::get("/").header("host", "web").body(Full::new(Bytes::new())).map_err(text)?;
        for _ in 0..3 {
            let idle = self.kept.as_mut().and_then(Option::take).filter(|sender| !sender.is_closed());
            let mut sender = match idle {
                Some(sender) => sender,
                None => self.connect().await?,
            };
            if sender.ready().await.is_err() {
                continue; // closed while it was idle
            }
            match sender.try_send_request(request).await {
                Ok(response) => return self.read(response, sender).await,
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(format!("no answer: {}", error.into_error())),
                },
            }
        }
        Err("three connections were closed before the request was sent".to_owned())
    }

    async fn read(
        &mut self,
        response: http::Response<hyper::body::Incoming>,
        sender: Sender,
    ) -> Result<String, String> {
        let status = response.status();
        let body = response.into_body().collect().await.map_err(text)?.to_bytes();
        if status != 200 {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&body)));
        }
        if let Some(kept) = &mut self.kept {
            *kept = Some(sender);
        }
        let answer: serde_json::Value = serde_json::from_slice(&body).map_err(text)?;
        Ok(answer["worker"].as_str().unwrap_or_default().to_owned())
    }

    async fn connect(&self) -> Result<Sender, String> {
        let stream = TcpStream::connect(self.to).await.map_err(|error| format!("cannot connect: {error}"))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

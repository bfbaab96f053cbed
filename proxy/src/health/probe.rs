//! One check: an HTTP request or a gRPC call on a connection that is kept between checks, or a TCP connection.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, TE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_policy::effective::{HealthCheck, Probe, WorkerProtocol};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::grpc;
use crate::descriptors;
use crate::protocol::{self, Needs, Speaks};
use crate::worker::Worker;

/// A longer answer costs the connection.
const LONGEST_BODY: usize = 64 << 10;
const AGENT: &str = concat!("outrigger-health/", env!("CARGO_PKG_VERSION"));

/// Why a check failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No connection.
    #[error("it does not accept connections: {0}")]
    Connect(std::io::Error),
    /// No whole answer.
    #[error("it does not answer: {0}")]
    Http(#[from] hyper::Error),
    /// No answer in time.
    #[error("it does not answer in time")]
    Timeout,
    /// An answer that does not pass.
    #[error("it answers with status {0}")]
    Status(u16),
    /// A gRPC call that failed.
    #[error("its health service ends the call with gRPC status {0}")]
    Grpc(u16),
    /// A gRPC answer that says that it is not serving.
    #[error("its health service says that it is not serving: status {0}")]
    NotServing(u64),
    /// No answer of the gRPC health protocol.
    #[error("it does not answer as the gRPC health protocol says")]
    NotGrpc,
    /// The request cannot be made.
    #[error("it cannot be asked: {0}")]
    Request(#[from] http::Error),
}

impl Failure {
    /// Whether it says nothing of the worker.
    pub(super) fn is_this_machines(&self) -> bool {
        matches!(self, Self::Connect(error) if descriptors::exhausted(error))
    }

    /// Whether nobody listens at the worker's address.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Connect(error) if error.kind() == std::io::ErrorKind::ConnectionRefused)
    }
}

/// Checks a worker once, on a connection of its own.
///
/// # Errors
/// Why it does not pass.
pub async fn check_once(
    worker: &Arc<Worker>,
    protocol: WorkerProtocol,
    check: &HealthCheck,
) -> Result<(), Failure> {
    Prober::new(worker.clone(), protocol).check(check).await
}

/// Checks one worker again and again.
pub(super) struct Prober {
    worker: Arc<Worker>,
    protocol: WorkerProtocol,
    /// What the worker said that it speaks, where the policy does not say; asked again after a check that failed.
    speaks: Option<Speaks>,
    kept: Option<Connection>,
}

/// An open connection. It ends when this is dropped.
struct Connection {
    sender: Sender,
    driver: AbortHandle,
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    /// Absent when it was too long.
    body: Option<(Bytes, Option<HeaderMap>)>,
}

impl Prober {
    pub(super) fn new(worker: Arc<Worker>, protocol: WorkerProtocol) -> Self {
        Self { worker, protocol, speaks: None, kept: None }
    }

    pub(super) async fn check(&mut self, check: &HealthCheck) -> Result<(), Failure> {
        let checked = timeout(check.timeout, self.once(&check.probe)).await;
        if checked.is_err() {
            self.kept = None;
        }
        self.speaks = match &checked {
            Ok(Ok(())) => self.speaks,
            Err(_) if self.speaks.is_none() => Some(Speaks::Http1), // it was silent when it was asked
            _ => None, // it may be another program when it is back
        };
        checked.unwrap_or(Err(Failure::Timeout))
    }

    async fn once(&mut self, probe: &Probe) -> Result<(), Failure> {
        match probe {
            Probe::Tcp => dial(&self.worker).await.map(drop),
            Probe::Http(http) => match self.answer(probe).await?.status {
                status if http.passes(status) => Ok(()),
                status => Err(Failure::Status(status)),
            },
            Probe::Grpc { .. } => match self.answer(probe).await? {
                Answer { status: 200, headers, body: Some((body, trailers)) } => {
                    grpc::verdict(&headers, trailers.as_ref(), &body)
                }
                Answer { status: 200, .. } => Err(Failure::NotGrpc),
                Answer { status, .. } => Err(Failure::Status(status)),
            },
        }
    }

    async fn answer(&mut self, probe: &Probe) -> Result<Answer, Failure> {
        // A worker may close an idle connection at any time; that says nothing of its health.
        if let Some(connection) = self.kept.take()
            && let Ok(answer) = self.ask(connection, probe).await
        {
            return Ok(answer);
        }
        let connection = self.connect(probe).await?;
        self.ask(connection, probe).await
    }

    async fn ask(&mut self, mut connection: Connection, probe: &Probe) -> Result<Answer, Failure> {
        let (head, body) = connection.send(request(self.worker.address, probe)?).await?.into_parts();
        let body = Limited::new(body, LONGEST_BODY).collect().await.ok();
        let body = body.map(|body| {
            let trailers = body.trailers().cloned();
            (body.to_bytes(), trailers)
        });
        if body.is_some() {
            self.kept = Some(connection);
        }
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    }

    async fn over_http2(&mut self, probe: &Probe) -> Result<bool, Failure> {
        match (self.protocol, probe) {
            (WorkerProtocol::H2c, _) | (_, Probe::Grpc { .. }) => return Ok(true),
            (WorkerProtocol::Http1, _) => return Ok(false),
            (WorkerProtocol::Auto, _) => {}
        }
        let speaks = match self.speaks {
            Some(speaks) => speaks,
            None => protocol::ask(|| dial(&self.worker)).await?,
        };
        self.speaks = Some(speaks);
        Ok(speaks.over_http2(Needs::Any) == Some(true))
    }

    async fn connect(&mut self, probe: &Probe) -> Result<Connection, Failure> {
        let http2 = self.over_http2(probe).await?;
        let stream = dial(&self.worker).await?;
        let _ = stream.set_nodelay(true); // slower without, not wrong
        let io = TokioIo::new(stream);
        if http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            Ok(Connection { sender: Sender::Http2(sender), driver: drive(connection) })
        } else {
            let (sender, connection) = http1::handshake(io).await?;
            Ok(Connection { sender: Sender::Http1(sender), driver: drive(connection) })
        }
    }
}

async fn dial(worker: &Worker) -> Result<TcpStream, Failure> {
    worker.connect().await.map_err(Failure::Connect)
}

fn drive(connection: impl Future<Output = hyper::Result<()>> + Send + 'static) -> AbortHandle {
    tokio::spawn(async move {
        let _ = connection.await; // the request fails too, and says why
    })
    .abort_handle()
}

/// What is asked, for HTTP/1.1.
fn request(address: SocketAddr, probe: &Probe) -> Result<Request<Full<Bytes>>, Failure> {
    let authority = address.to_string();
    let request = match probe {
        Probe::Http(http) => Request::builder()
            .method(http.method.as_str())
            .uri(http.path.as_str())
            .header(HOST, http.hostname.as_ref().unwrap_or(&authority))
            .body(Full::default())?,
        Probe::Grpc { service } => Request::builder()
            .method(Method::POST)
            .uri(grpc::PATH)
            .header(HOST, authority)
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .body(Full::new(grpc::request(service)))?,
        Probe::Tcp => Request::new(Full::default()),
    };
    let (mut head, body) = request.into_parts();
    head.headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    Ok(Request::from_parts(head, body))
}

impl Connection {
    async fn send(&mut self, mut request: Request<Full<Bytes>>) -> Result<http::Response<Incoming>, Failure> {
        match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                Ok(sender.send_request(request).await?)
            }
            Sender::Http2(sender) => {
                let host = request.headers_mut().remove(HOST);
                let host = host.as_ref().map_or(&b""[..], HeaderValue::as_bytes);
                let path = request.uri().path().to_owned();
                *request.uri_mut() =
                    Uri::builder().scheme("http").authority(host).path_and_query(path).build()?;
                *request.version_mut() = Version::HTTP_2;
                sender.ready().await?;
                Ok(sender.send_request(request).await?)
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

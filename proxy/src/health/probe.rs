//! One check: a GET on a connection that is kept between checks.

use std::net::SocketAddr;

use bytes::Bytes;
use http::header::{HOST, USER_AGENT};
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_policy::effective::{HealthCheck, WorkerProtocol};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;

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
    /// The path cannot be asked for.
    #[error("its path is no path: {0}")]
    Request(#[from] http::Error),
}

/// Checks a worker once, on a connection of its own.
///
/// # Errors
/// Why it does not pass.
pub async fn check_once(
    address: SocketAddr,
    protocol: WorkerProtocol,
    check: &HealthCheck,
) -> Result<(), Failure> {
    Prober::new(address, protocol).check(check).await
}

/// Checks one worker again and again.
pub(super) struct Prober {
    address: SocketAddr,
    protocol: WorkerProtocol,
    kept: Option<Connection>,
}

/// An open connection. It ends when this is dropped.
struct Connection {
    sender: Sender,
    driver: AbortHandle,
}

enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl Prober {
    pub(super) fn new(address: SocketAddr, protocol: WorkerProtocol) -> Self {
        Self { address, protocol, kept: None }
    }

    pub(super) async fn check(&mut self, check: &HealthCheck) -> Result<(), Failure> {
        match timeout(check.timeout, self.status(&check.path)).await {
            Err(_) => {
                self.kept = None;
                Err(Failure::Timeout)
            }
            Ok(Err(failure)) => Err(failure),
            Ok(Ok(status)) if check.passes(status) => Ok(()),
            Ok(Ok(status)) => Err(Failure::Status(status)),
        }
    }

    async fn status(&mut self, path: &str) -> Result<u16, Failure> {
        // A worker may close an idle connection at any time; that says nothing of its health.
        if let Some(connection) = self.kept.take()
            && let Ok(status) = self.ask(connection, path).await
        {
            return Ok(status);
        }
        let connection = self.connect().await?;
        self.ask(connection, path).await
    }

    async fn ask(&mut self, mut connection: Connection, path: &str) -> Result<u16, Failure> {
        let response = connection.send(self.address, path).await?;
        let status = response.status().as_u16();
        let keep = Limited::new(response.into_body(), LONGEST_BODY).collect().await.is_ok();
        if keep {
            self.kept = Some(connection);
        }
        Ok(status)
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let stream = TcpStream::connect(self.address).await.map_err(Failure::Connect)?;
        let _ = stream.set_nodelay(true); // slower without, not wrong
        let io = TokioIo::new(stream);
        match self.protocol {
            WorkerProtocol::Auto | WorkerProtocol::Http1 => {
                let (sender, connection) = http1::handshake(io).await?;
                Ok(Connection { sender: Sender::Http1(sender), driver: drive(connection) })
            }
            WorkerProtocol::H2c => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                Ok(Connection { sender: Sender::Http2(sender), driver: drive(connection) })
            }
        }
    }
}

fn drive(connection: impl Future<Output = hyper::Result<()>> + Send + 'static) -> AbortHandle {
    tokio::spawn(async move {
        let _ = connection.await; // the request fails too, and says why
    })
    .abort_handle()
}

impl Connection {
    async fn send(&mut self, address: SocketAddr, path: &str) -> Result<http::Response<Incoming>, Failure> {
        let request = Request::get(path).header(USER_AGENT, AGENT);
        match &mut self.sender {
            Sender::Http1(sender) => {
                let request = request.header(HOST, address.to_string()).body(Empty::new())?;
                sender.ready().await?;
                Ok(sender.send_request(request).await?)
            }
            Sender::Http2(sender) => {
                let uri = Uri::builder().scheme("http").authority(address.to_string()).path_and_query(path);
                let request = request.uri(uri.build()?).body(Empty::new())?;
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

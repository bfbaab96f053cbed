//! A client for tests: a connection per request or one that is kept, HTTP/1.1 or HTTP/2, and what came back.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its header.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// The worker that gave it.
    pub fn worker(&self) -> &str {
        self.header("x-worker").unwrap_or_default()
    }

    /// A field of its header, as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Its body, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The cookie it sets, as a later request sends it.
    pub fn cookie(&self) -> Option<String> {
        self.header("set-cookie").and_then(|cookie| cookie.split(';').next()).map(str::to_owned)
    }
}

/// A kept HTTP/1.1 connection.
pub struct Connection(http1::SendRequest<Full<Bytes>>);

impl Connection {
    /// Connects.
    pub async fn open(to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Self::over(stream).await
    }

    /// Connects over TLS, trusting these certificates for `localhost` and no others.
    pub async fn open_tls(to: SocketAddr, trusted: &str) -> Result<Self> {
        Self::over(connect_tls(to, trusted).await?).await
    }

    async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Self> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection.with_upgrades());
        Ok(Self(sender))
    }

    /// Sends a request and reads the answer.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Answer> {
        self.0.ready().await?;
        read(self.0.send_request(request).await?).await
    }

    /// Whether the server still takes requests on it.
    pub fn is_open(&self) -> bool {
        !self.0.is_closed()
    }
}

/// A TLS connection to `localhost`, trusting these certificates, in PEM, and no others.
pub async fn connect_tls(to: SocketAddr, trusted: &str) -> Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(trusted.as_bytes()) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from("localhost")?, stream).await?)
}

/// A GET of a path, with these header fields.
pub fn get(path: &str, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    request("GET", path, headers, "")
}

/// A request, for the host `test`.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Request<Full<Bytes>> {
    let mut builder = Request::builder().method(method).uri(path).header("host", "test");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Full::new(Bytes::from(body.to_owned()))).expect("a valid request")
}

/// Sends one request on a connection of its own.
pub async fn send(to: SocketAddr, request: Request<Full<Bytes>>) -> Result<Answer> {
    Connection::open(to).await?.send(request).await
}

/// Sends requests over one HTTP/2 connection, one after the other.
pub async fn send_http2(to: SocketAddr, paths: &[&str]) -> Result<Vec<Answer>> {
    let stream = TcpStream::connect(to).await?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut answers = Vec::new();
    for path in paths {
        let request = Request::builder().uri(format!("http://test{path}")).body(Full::new(Bytes::new()))?;
        answers.push(read(sender.send_request(request).await?).await?);
    }
    Ok(answers)
}

async fn read(response: http::Response<hyper::body::Incoming>) -> Result<Answer> {
    let (head, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    Ok(Answer { status: head.status, headers: head.headers, body })
}

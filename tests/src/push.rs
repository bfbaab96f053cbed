//! A client of the push stream that is no proxy: it says what it is told to, and shows what comes back.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_policy::wire::{Hello, PROTOCOL, STREAM_PATH};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A connection to a push server.
pub struct PushClient {
    sender: SendRequest<Full<Bytes>>,
    name: String,
}

impl PushClient {
    /// Connects to the server of this name, trusting these certificates, in PEM.
    pub async fn connect(address: SocketAddr, name: &str, trusted: &str) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(trusted.as_bytes()) {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(address).await?;
        let stream =
            TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from(name.to_owned())?, stream).await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, name: name.to_owned() })
    }

    /// Asks for the stream of whoever holds the token: the status, and the first lines or the refusal.
    pub async fn hello(&mut self, token: Option<&str>, lines: usize) -> Result<(StatusCode, String)> {
        let hello =
            Hello { protocol: PROTOCOL, proxy_version: "test".to_owned(), holds: None, siblings: None };
        self.send("POST", STREAM_PATH, token, (serde_json::to_vec(&hello)?, lines)).await
    }

    /// Sends a request and reads this many lines of the answer; all of it, if it is no success.
    pub async fn send(
        &mut self,
        method: &str,
        path: &str,
        token: Option<&str>,
        (body, lines): (Vec<u8>, usize),
    ) -> Result<(StatusCode, String)> {
        let mut request = Request::builder().method(method).uri(format!("https://{}{path}", self.name));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = self.sender.send_request(request.body(Full::from(body))?).await?;
        let status = response.status();
        let lines = if status.is_success() { lines } else { usize::MAX };
        Ok((status, read(response.into_body(), lines).await?))
    }
}

async fn read(mut body: Incoming, lines: usize) -> Result<String> {
    let mut text = BytesMut::new();
    while text.iter().filter(|byte| **byte == b'\n').count() < lines {
        let Some(frame) = body.frame().await else { break };
        text.extend_from_slice(&frame?.into_data().ok().context("data")?);
    }
    Ok(String::from_utf8(text.to_vec())?)
}

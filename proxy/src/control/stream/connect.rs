//! One HTTP/2 connection to the operator, over TLS 1.3.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::uri::{Authority, Scheme};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How long each step may take: the name, the connection, TLS.
const STEP: Duration = Duration::from_secs(5);
/// How often the connection is asked whether it lives, and how long it has to answer.
const PING: [Duration; 2] = [Duration::from_secs(20), Duration::from_secs(10)];

/// What the operator answers.
pub(super) type Response = http::Response<Incoming>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("'{0}' is not HOST:PORT")]
    Address(String),
    #[error("the certificates to trust cannot be read: {0}")]
    Roots(String),
    #[error("{0} has no address: {1}")]
    Name(String, io::Error),
    #[error("{0} cannot be reached: {1}")]
    Tcp(String, io::Error),
    #[error("TLS with {0} fails: {1}")]
    Tls(String, io::Error),
    #[error("{0} does not speak HTTP/2")]
    NoHttp2(String),
    #[error("the connection fails: {0}")]
    Http(String),
    #[error("the token cannot be sent: it is no header value")]
    Token,
}

/// A connection. It ends when this is dropped.
pub(super) struct Link {
    sender: http2::SendRequest<Full<Bytes>>,
    authority: Authority,
    driver: AbortHandle,
}

impl Link {
    /// Connects to `HOST:PORT`, if its certificate comes from these roots.
    pub(super) async fn connect(operator: &str, pems: &[&str]) -> Result<Self, Error> {
        let no_address = || Error::Address(operator.to_owned());
        let authority: Authority = operator.parse().map_err(|_| no_address())?;
        authority.port_u16().ok_or_else(no_address)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(|_| no_address())?;
        let tls = tls(pems)?;
        let tcp = dial(operator).await?;
        let tls = within_step(TlsConnector::from(tls).connect(name, tcp))
            .await
            .map_err(|error| Error::Tls(operator.to_owned(), error))?;
        if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(Error::NoHttp2(operator.to_owned()));
        }
        Self::handshake(authority, tls).await
    }

    async fn handshake(authority: Authority, tls: TlsStream<TcpStream>) -> Result<Self, Error> {
        let [every, within] = PING;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(every)
            .keep_alive_timeout(within)
            .keep_alive_while_idle(true)
            .handshake(TokioIo::new(tls))
            .await
            .map_err(|error| Error::Http(chain(&error)))?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = chain(&error), "the connection to the operator ended");
            }
        });
        Ok(Self { sender, authority, driver: driver.abort_handle() })
    }

    /// Sends a message and waits for the head of the answer.
    pub(super) async fn post(
        &self,
        path: &'static str,
        token: &str,
        json: Vec<u8>,
    ) -> Result<Response, Error> {
        let mut bearer = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| Error::Token)?;
        bearer.set_sensitive(true);
        let uri = Uri::builder()
            .scheme(Scheme::HTTPS)
            .authority(self.authority.clone())
            .path_and_query(path)
            .build()
            .map_err(|error| Error::Http(error.to_string()))?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(AUTHORIZATION, bearer)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(json))
            .map_err(|error| Error::Http(error.to_string()))?;
        let mut sender = self.sender.clone();
        sender.ready().await.map_err(|error| Error::Http(chain(&error)))?;
        sender.send_request(request).await.map_err(|error| Error::Http(chain(&error)))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The certificates of several PEM texts; there must be one at least.
pub(super) fn roots(pems: &[&str]) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    for certificate in pems.iter().flat_map(|pem| CertificateDer::pem_slice_iter(pem.as_bytes())) {
        let certificate = certificate.map_err(|error| Error::Roots(error.to_string()))?;
        store.add(certificate).map_err(|error| Error::Roots(error.to_string()))?;
    }
    if store.is_empty() {
        return Err(Error::Roots(String::from("there is none")));
    }
    Ok(store)
}

fn tls(pems: &[&str]) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| Error::Roots(error.to_string()))?
        .with_root_certificates(roots(pems)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Connects to the first address that answers.
async fn dial(operator: &str) -> Result<TcpStream, Error> {
    let addresses = within_step(tokio::net::lookup_host(operator))
        .await
        .map_err(|error| Error::Name(operator.to_owned(), error))?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match within_step(TcpStream::connect(address)).await {
            Ok(stream) => {
                let _ = stream.set_nodelay(true); // slower without, not wrong
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(Error::Tcp(operator.to_owned(), last))
}

async fn within_step<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(STEP, step).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The `Retry-After` of an answer, in seconds.
pub(super) fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The beginning of a refusal's body, for the log.
pub(super) async fn short_text(body: Incoming) -> String {
    match Limited::new(body, 4096).collect().await {
        Ok(text) => String::from_utf8_lossy(&text.to_bytes()).trim().to_owned(),
        Err(_) => String::new(),
    }
}

/// An error and its causes, in one line.
pub(super) fn chain(error: &impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

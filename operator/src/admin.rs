//! Health and metrics, open to the pod network: `/livez`, `/readyz`, `/metrics`.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_telemetry::exposition::Format;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Duration;
use x509_parser::pem::Pem;

use crate::certs::Certificates;
use crate::listener::{Bounds, Listener};
use crate::metrics::Metrics;

const BOUNDS: Bounds = Bounds { connections: 64, bytes: 0 };
const IDLE: Duration = Duration::from_secs(60);

/// What is shown.
pub struct Admin {
    /// Whether proxies and the API server may be sent here.
    pub ready: watch::Receiver<bool>,
    /// The counts.
    pub metrics: Arc<Metrics>,
    /// For the time they end.
    pub certificates: Certificates,
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, admin: Arc<Admin>) {
    let listener = Listener::new(listener, BOUNDS);
    loop {
        let (stream, place) = listener.accept().await;
        let admin = admin.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = admin.respond(&request);
                place.served();
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE)
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(stream), service);
            let ended = tokio::select! {
                ended = connection => ended,
                () = place.evicted() => return tracing::debug!("a connection gave way"),
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
}

impl Admin {
    fn respond(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
        }
        match request.uri().path() {
            "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" if *self.ready.borrow() => text(StatusCode::OK, "ok\n"),
            "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            "/metrics" => self.page(Format::wanted(request.headers())),
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    fn page(&self, format: Format) -> Response<Full<Bytes>> {
        if let Some(ends) = first_to_end(&self.certificates.trust_bundle()) {
            self.metrics.set_authority_expiration(ends);
        }
        let mut response = Response::new(Full::from(format.of(self.metrics.encode())));
        let kind = header::HeaderValue::from_static(format.content_type());
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

/// When the certificate that ends first does.
fn first_to_end(bundle: &str) -> Option<i64> {
    let ends = |pem: Pem| Some(pem.parse_x509().ok()?.validity().not_after.timestamp());
    Pem::iter_from_buffer(bundle.as_bytes()).flatten().filter_map(ends).min()
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn probes_are_answered_whoever_holds_connections() {
        let certificates = Certificates::in_memory(&["operator".to_owned()]).expect("a certificate");
        let (_ready, ready) = watch::channel(true);
        let admin = Arc::new(Admin { ready, metrics: Arc::new(Metrics::new()), certificates });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(serve(listener, admin));
        let mut held = Vec::new();
        for _ in 0..2 * BOUNDS.connections {
            held.push(TcpStream::connect(address).await.expect("accepted"));
        }
        for _ in 0..10 {
            let mut probe = TcpStream::connect(address).await.expect("accepted");
            let request = b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
            probe.write_all(request).await.expect("taken");
            let mut answer = String::new();
            probe.read_to_string(&mut answer).await.expect("an answer");
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        drop(held);
    }

    #[test]
    fn the_end_of_a_certificate_is_found() {
        let certificates = Certificates::in_memory(&["operator".to_owned()]).expect("a certificate");
        let ends = first_to_end(&certificates.trust_bundle()).expect("an end");
        assert!(ends > 1_700_000_000, "{ends}");
        assert_eq!(first_to_end("garbage"), None);
    }
}

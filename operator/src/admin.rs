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
use tokio::sync::{Semaphore, watch};
use tokio::time::{Duration, sleep};
use x509_parser::pem::Pem;

use crate::certs::Certificates;
use crate::metrics::Metrics;

const CONNECTIONS: usize = 64;
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
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let admin = admin.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = admin.respond(&request);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(IDLE)
                .max_buf_size(16 << 10)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
            drop(slot);
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
    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_found() {
        let certificates = Certificates::in_memory(&["operator".to_owned()]).expect("a certificate");
        let ends = first_to_end(&certificates.trust_bundle()).expect("an end");
        assert!(ends > 1_700_000_000, "{ends}");
        assert_eq!(first_to_end("garbage"), None);
    }
}

//! The admission webhooks: adds the proxy to pods, refuses policies that no proxy could enforce.
//!
//! Anything in the pod network may connect here, and whether the cluster can create pods may depend on it:
//! so every body, connection and wait has a bound.

pub mod inject;
pub mod validate;

mod admission;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use self::admission::Answer;
use crate::certs::Certificates;
use crate::listener::{Bounds, Listener, Place};

/// The API server sends objects of at most 1.5 MiB, and an update brings two.
const BODY: usize = 3 << 20;
/// Bodies that are read at once may have 32 MiB in all: with what becomes of them they fit the container's memory.
const BOUNDS: Bounds = Bounds { connections: 512, bytes: 32 << 20 };
const HANDSHAKE: Duration = Duration::from_secs(5);
/// The API server closes idle connections after 90 seconds. It must be the one to close, or it could send a
/// request into a connection that is just going away.
const IDLE: Duration = Duration::from_secs(120);
/// The API server waits no longer than the chart's `timeoutSeconds`, at most 30.
const REQUEST: Duration = Duration::from_secs(10);
/// How long requests in flight may take once told to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// What the webhooks need.
pub struct Webhook {
    /// What pods get.
    pub settings: inject::Settings,
    /// Who this is, and what proxies are to trust.
    pub certificates: Certificates,
    /// What is counted.
    pub metrics: Metrics,
}

/// Counters of admission requests.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    requests: Family<Labels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    webhook: &'static str,
    outcome: &'static str,
}

impl Metrics {
    /// Makes the counters visible.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "outrigger_operator_admission_requests",
            "Admission requests by webhook (inject, validate) and outcome (injected, skipped, allowed, refused, invalid)",
            self.requests.clone(),
        );
    }

    fn count(&self, webhook: &'static str, outcome: &'static str) {
        self.requests.get_or_create(&Labels { webhook, outcome }).inc();
    }
}

/// Serves until told to stop; requests in flight are finished.
pub async fn serve(listener: TcpListener, webhook: Webhook, mut stop: watch::Receiver<bool>) {
    let tls = TlsAcceptor::from(webhook.certificates.server_config(&["http/1.1"]));
    let webhook = Arc::new(webhook);
    let listener = Listener::new(listener, BOUNDS);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stopped(&mut stop) => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, place) = accepted;
        let connection = connection(stream, tls.clone(), webhook.clone(), (place, stop.clone()));
        connections.spawn(connection);
    }
    let _ = timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
}

/// A sender that is gone means stop too.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connection(
    stream: TcpStream,
    tls: TlsAcceptor,
    webhook: Arc<Webhook>,
    (place, stop): (Place, watch::Receiver<bool>),
) {
    tokio::select! {
        () = converse(stream, tls, &webhook, (&place, stop)) => {}
        () = place.evicted() => tracing::debug!(address = %place.address(), "a connection gave way"),
    }
}

async fn converse(
    stream: TcpStream,
    tls: TlsAcceptor,
    webhook: &Webhook,
    (place, mut stop): (&Place, watch::Receiver<bool>),
) {
    let Ok(Ok(stream)) = timeout(HANDSHAKE, tls.accept(stream)).await else {
        tracing::debug!("no TLS handshake");
        return;
    };
    let service = service_fn(|request| async {
        let response = respond(request, webhook, place).await;
        place.forget();
        place.served();
        response
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        result = &mut connection => Some(result),
        () = stopped(&mut stop) => None,
    };
    let result = match ended {
        Some(result) => result,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended");
    }
}

async fn respond(
    request: Request<Incoming>,
    webhook: &Webhook,
    place: &Place,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let kind = match (request.method(), request.uri().path()) {
        (&Method::POST, "/inject") => "inject",
        (&Method::POST, "/validate") => "validate",
        (_, "/inject" | "/validate") => return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "POST only")),
        _ => return Ok(text(StatusCode::NOT_FOUND, "not found")),
    };
    let body = match timeout(REQUEST, Limited::new(noted(request.into_body(), place), BODY).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => {
            webhook.metrics.count(kind, "invalid");
            let code = if error.is::<http_body_util::LengthLimitError>() {
                StatusCode::PAYLOAD_TOO_LARGE
            } else {
                StatusCode::BAD_REQUEST
            };
            return Ok(text(code, &error.to_string()));
        }
        Err(_) => {
            webhook.metrics.count(kind, "invalid");
            return Ok(text(StatusCode::REQUEST_TIMEOUT, "the body took too long"));
        }
    };
    let answer = match kind {
        "inject" => admission::injection(&body, &webhook.settings, &webhook.certificates.trust_bundle()),
        _ => admission::validation(&body),
    };
    Ok(match answer {
        Ok(Answer { body, outcome }) => {
            webhook.metrics.count(kind, outcome);
            let mut response = Response::new(Full::from(body));
            let json = header::HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            response
        }
        Err(error) => {
            webhook.metrics.count(kind, "invalid");
            text(StatusCode::BAD_REQUEST, &error.to_string())
        }
    })
}

/// A body of which each part is noted at the connection's place.
fn noted(body: Incoming, place: &Place) -> impl http_body::Body<Data = Bytes, Error = hyper::Error> + Unpin {
    body.map_frame(|frame| {
        if let Some(data) = frame.data_ref() {
            place.read(data.len());
        }
        frame
    })
}

fn text(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(format!("{text}\n")));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests;

//! The push server: HTTP/2 over TLS 1.3. `POST /push/v1/stream`, `/push/v1/ack`, `/push/v1/report` and
//! `/push/v1/certify` for proxies,
//! `GET /push/v1/acks` for the replica that holds the lease.
//!
//! Anything in the pod network may connect, so every body, connection and wait has a bound, and a connection on
//! which nobody proved who they are is closed soon.

mod certified;
mod streams;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use outrigger_policy::report::{REPORT_PATH, Report};
use outrigger_policy::siblings::{CERTIFY_PATH, CertificateRequest};
use outrigger_policy::wire::{ACK_PATH, Ack, Hello, PROTOCOL, STREAM_PATH};
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;

pub use self::certified::Certified;
use super::identity::{Identity, Refusal};
use super::session::Reception;
use super::{Holds, Hub};
use crate::certs::Certificates;
use crate::controller::observe::PodFacts;
use crate::listener::{Bounds, Listener, Place};

/// Where the lease holder reads what this replica's proxies answered.
pub const ACKS_PATH: &str = "/push/v1/acks";

/// The longest `Hello`, `Ack` or `Report`.
const BODY: usize = 64 << 10;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A proxy has one stream, one ack and one report in flight.
const STREAMS: u32 = 8;
/// How long a connection may stay on which nobody proved who they are.
const ANONYMOUS: Duration = Duration::from_secs(15);
const REQUEST: Duration = Duration::from_secs(10);
const PING: Duration = Duration::from_secs(20);
/// How long streams have to say goodbye.
const DRAIN: Duration = Duration::from_secs(3);

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What the server needs.
pub struct Server {
    /// The proxies.
    pub hub: Arc<Hub>,
    /// Judges callers.
    pub identity: Identity,
    /// Who this is, and what proxies are to trust.
    pub certificates: Certificates,
    /// This replica's name, for the proxies' logs.
    pub replica: String,
    /// The operator's namespace and ServiceAccount.
    pub operator: (String, String),
    /// The most connections at once.
    pub connections: usize,
    /// Who was certified of late.
    pub certified: Certified,
}

/// Serves until told to stop; then every stream gets a `Goaway`.
pub async fn serve(listener: TcpListener, server: Arc<Server>, mut stop: watch::Receiver<bool>) {
    let tls = TlsAcceptor::from(server.certificates.server_config(&["h2"]));
    // A proxy's bodies are small, and bounded by its streams.
    let bounds = Bounds { connections: server.connections, bytes: usize::MAX };
    let listener = Listener::new(listener, bounds);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stopped(&mut stop) => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, place) = accepted;
        let connection = connection(stream, tls.clone(), server.clone(), (Arc::new(place), stop.clone()));
        connections.spawn(connection);
    }
    drop(listener);
    let _ = timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
}

/// Returns when told to stop.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await; // whoever could say so is gone: that says it too
}

async fn connection(
    stream: TcpStream,
    tls: TlsAcceptor,
    server: Arc<Server>,
    (place, mut stop): (Arc<Place>, watch::Receiver<bool>),
) {
    let _ = stream.set_nodelay(true); // an option that only costs time when it is refused
    let accepted = tokio::select! {
        accepted = timeout(HANDSHAKE, tls.accept(stream)) => accepted,
        () = place.evicted() => return,
    };
    let Ok(Ok(stream)) = accepted else { return tracing::debug!("no TLS handshake") };
    let streams_stop = stop.clone();
    let service = service_fn(|request| {
        let (server, caller, stop) = (server.clone(), Caller(place.clone()), streams_stop.clone());
        async move { Ok::<_, Infallible>(respond(request, &server, &caller, stop).await) }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(16 << 10)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING / 2)
        .max_send_buf_size(256 << 10)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let anonymous = async {
        sleep(ANONYMOUS).await;
        if place.is_kept() {
            std::future::pending::<()>().await;
        }
    };
    let result = tokio::select! {
        result = &mut connection => result,
        () = anonymous => return,
        () = place.evicted() => return,
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended");
    }
}

/// Whoever is at the other end of a connection.
struct Caller(Arc<Place>);

impl Caller {
    /// They proved who they are: their connection gives way to nobody.
    fn is_known(&self) {
        self.0.keep();
    }
}

async fn respond(
    request: Request<Incoming>,
    server: &Arc<Server>,
    caller: &Caller,
    stop: watch::Receiver<bool>,
) -> Response<Body> {
    let answer = match (request.method(), request.uri().path()) {
        (&Method::POST, STREAM_PATH) => stream(request, server, caller, stop).await,
        (&Method::POST, ACK_PATH) => ack(request, server, caller).await,
        (&Method::POST, REPORT_PATH) => report(request, server, caller).await,
        (&Method::POST, CERTIFY_PATH) => certify(request, server, caller).await,
        (&Method::GET, ACKS_PATH) => acks(&request, server, caller, stop).await,
        (_, STREAM_PATH | ACK_PATH | REPORT_PATH | CERTIFY_PATH | ACKS_PATH) => Err(Problem::Method),
        _ => Err(Problem::Path),
    };
    answer.unwrap_or_else(|problem| {
        tracing::debug!(%problem, "refused a request");
        problem.response()
    })
}

async fn stream(
    request: Request<Incoming>,
    server: &Arc<Server>,
    caller: &Caller,
    stop: watch::Receiver<bool>,
) -> Result<Response<Body>, Problem> {
    let pod = proxy(&request, server, caller).await?;
    let hello: Hello = read(request).await?;
    if hello.protocol != PROTOCOL {
        return Err(Problem::Protocol(hello.protocol));
    }
    tracing::info!(
        pod = pod.name,
        namespace = pod.namespace,
        proxy = hello.proxy_version,
        holds = hello.holds,
        "a proxy connected"
    );
    let holds = Holds { update: hello.holds, siblings: hello.siblings };
    let connection = server.hub.connect(&pod, holds);
    Ok(lines(streams::to_proxy(connection, server.clone(), stop)))
}

/// The pod that asks, by its token; its connection is no stranger's from then on.
async fn proxy(
    request: &Request<Incoming>,
    server: &Server,
    caller: &Caller,
) -> Result<Arc<PodFacts>, Problem> {
    let pod = server.identity.proxy(request.headers(), caller.0.address()).await?;
    caller.is_known();
    Ok(pod)
}

async fn ack(
    request: Request<Incoming>,
    server: &Arc<Server>,
    caller: &Caller,
) -> Result<Response<Body>, Problem> {
    let pod = proxy(&request, server, caller).await?;
    let ack: Ack = read(request).await?;
    let reception = server.hub.receive(&pod.uid, &ack).ok_or(Problem::NoStream)?;
    if reception == Reception::Rejected {
        let violation = ack.violations.first().map(ToString::to_string);
        tracing::warn!(
            pod = pod.name,
            namespace = pod.namespace,
            version = ack.version,
            violation,
            "a proxy rejected its policy"
        );
    }
    Ok(empty(StatusCode::NO_CONTENT))
}

async fn report(
    request: Request<Incoming>,
    server: &Arc<Server>,
    caller: &Caller,
) -> Result<Response<Body>, Problem> {
    let pod = proxy(&request, server, caller).await?;
    let report: Report = read(request).await?;
    server.hub.report(&pod.uid, report).ok_or(Problem::NoStream)?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// Signs what a proxy shows its siblings. What it is comes from its token, like everything else.
async fn certify(
    request: Request<Incoming>,
    server: &Arc<Server>,
    caller: &Caller,
) -> Result<Response<Body>, Problem> {
    let pod = proxy(&request, server, caller).await?;
    if let Err(again) = server.certified.take(&pod.uid, Instant::now()) {
        return Err(Problem::TooMany(again));
    }
    let asked: CertificateRequest = read(request).await?;
    let place = pod.place.as_ref().ok_or(Problem::NoWorkload)?;
    let certificate = server
        .certificates
        .certify(&asked.csr, &place.workload, &pod.uid)
        .map_err(|error| Problem::Certificate(error.to_string()))?;
    tracing::info!(
        pod = pod.name,
        namespace = pod.namespace,
        workload = place.workload,
        "certified a proxy for its siblings"
    );
    let body = serde_json::to_vec(&certificate).unwrap_or_default(); // plain data always serializes
    let mut response = Response::new(Full::from(body).boxed_unsync());
    let kind = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

async fn acks(
    request: &Request<Incoming>,
    server: &Arc<Server>,
    caller: &Caller,
    stop: watch::Receiver<bool>,
) -> Result<Response<Body>, Problem> {
    let (namespace, service_account) = &server.operator;
    server.identity.replica(request.headers(), caller.0.address(), (namespace, service_account)).await?;
    caller.is_known();
    Ok(lines(streams::to_replica(server.hub.clone(), stop)))
}

/// A bounded body of JSON.
async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Problem> {
    let body = timeout(REQUEST, Limited::new(request.into_body(), BODY).collect());
    let body = body.await.map_err(|_| Problem::Slow)?.map_err(|_| Problem::Body)?.to_bytes();
    serde_json::from_slice(&body).map_err(|error| Problem::Json(error.to_string()))
}

fn lines(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let kind = header::HeaderValue::from_static("application/jsonl");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Full::default().boxed_unsync());
    *response.status_mut() = status;
    response
}

/// Why a request got no answer of its own.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("not found")]
    Path,
    #[error("the method is not allowed")]
    Method,
    #[error("the body took too long")]
    Slow,
    #[error("the body is too long or broke off")]
    Body,
    #[error("the body is not what it must be: {0}")]
    Json(String),
    #[error("this operator speaks version {PROTOCOL} of the push protocol, not {0}")]
    Protocol(u32),
    #[error("this pod has no stream here")]
    NoStream,
    #[error("this pod can have no siblings: no controller made it, or its proxy has no port for them")]
    NoWorkload,
    #[error("{0}")]
    Certificate(String),
    #[error("this pod has asked for too many certificates: again in {} s", .0.as_secs())]
    TooMany(Duration),
}

impl Problem {
    fn response(&self) -> Response<Body> {
        let status = match self {
            Self::Refused(Refusal::Unavailable) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Refused(Refusal::NotAReplica(_)) => StatusCode::FORBIDDEN,
            Self::Refused(_) => StatusCode::UNAUTHORIZED,
            Self::Path => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::Body => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Json(_) | Self::Certificate(_) => StatusCode::BAD_REQUEST,
            Self::Protocol(_) => StatusCode::UPGRADE_REQUIRED,
            Self::NoStream | Self::NoWorkload => StatusCode::CONFLICT,
            Self::TooMany(_) => StatusCode::TOO_MANY_REQUESTS,
        };
        let mut response = Response::new(Full::from(format!("{self}\n")).boxed_unsync());
        *response.status_mut() = status;
        if let Self::TooMany(again) = self {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, header::HeaderValue::from(again.as_secs().max(1)));
        }
        response
    }
}

#[cfg(test)]
mod tests;

//! Health, metrics and the API, on a port of their own.
//!
//! Health and metrics are open to whoever reaches the port. `/api/` shows the policy and the workers: it asks for a
//! token, or is open to this machine alone where the process was started so. Nothing here shows a secret.

mod access;
mod breakers;
mod drain;
mod order;
mod places;
mod ready;
mod strategy;
pub mod token;
mod view;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_telemetry::exposition::Format;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

use self::access::Denied;
use self::places::{Place, Places};
use crate::control::Control;
use crate::control::stream::Status;
use crate::drain::Lifecycle;
use crate::essential::{Dead, Tasks};
use crate::supervisor::Beginning;

/// Connections open at once; for more, old ones give way.
pub const CONNECTIONS: usize = 64;
/// How long a request's head may take, and a connection may be idle.
const HEAD: Duration = Duration::from_secs(5);
/// Bytes that the body of a request may have.
const BODY: usize = 64 << 10;
/// How long a connection may be used.
const LONGEST: Duration = Duration::from_secs(60);
/// How long the answer in progress then has.
const LAST_ANSWER: Duration = Duration::from_secs(5);

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// What is shown, and to whom.
pub struct Admin {
    /// The policy in force and the workers.
    pub control: Arc<Control>,
    /// Whether the process is about to stop.
    pub lifecycle: Lifecycle,
    /// Whether what must run does.
    pub tasks: Arc<Tasks>,
    /// How the operator's stream stands.
    pub push: Arc<Status>,
    /// The text of one scrape, in OpenMetrics.
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
    /// The token that `/api/` asks for, where there is such a setting.
    pub token: Option<Token>,
    /// Whether `/api/` is open to clients on this machine, where there is no token.
    pub open_on_loopback: bool,
    /// When the process started.
    pub started: Instant,
    /// The number of workers once all have started.
    pub configured_workers: usize,
    /// How the start of those stands that the proxy starts.
    pub beginning: Arc<Beginning>,
}

/// The token as it is now; `None`: its file has none, which lets nobody in.
pub type Token = Box<dyn Fn() -> Option<Vec<u8>> + Send + Sync>;

type Answer = Response<Full<Bytes>>;

/// Serves. Never ends.
pub async fn serve(listener: Arc<TcpListener>, admin: Arc<Admin>) {
    let places = Places::new(CONNECTIONS);
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the admin port cannot accept a connection");
                sleep(Duration::from_millis(100)).await; // out of files: it passes, or it repeats at once
                continue;
            }
        };
        let place = Arc::new(places.take(client.ip().to_canonical()));
        let serving = connection(stream, client, admin.clone(), place.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = serving => {}
                () = place.evicted() => {}
            }
        });
    }
}

async fn connection(stream: TcpStream, client: SocketAddr, admin: Arc<Admin>, place: Arc<Place>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (admin, place) = (admin.clone(), place.clone());
        async move {
            let (head, body) = request.into_parts();
            let writes = matches!(head.method, Method::POST | Method::DELETE);
            let body = match writes {
                true => timeout(HEAD, Limited::new(body, BODY).collect()).await.ok().and_then(Result::ok),
                false => Some(Default::default()),
            };
            let answer = match body {
                Some(body) => {
                    let request = Request::from_parts(head, body.to_bytes());
                    let answer = || admin.answer(&request, client.ip());
                    catch_unwind(AssertUnwindSafe(answer)).unwrap_or_else(|_| {
                        text(StatusCode::INTERNAL_SERVER_ERROR, String::from("internal error\n"))
                    })
                }
                None => {
                    text(StatusCode::BAD_REQUEST, format!("no body of at most {BODY} bytes came in time\n"))
                }
            };
            place.answered();
            Ok::<_, Infallible>(answer)
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving);
    tokio::select! {
        _ = serving.as_mut() => return, // an error is the client's
        () = sleep(LONGEST) => serving.as_mut().graceful_shutdown(),
    }
    let _ = timeout(LAST_ANSWER, serving).await; // what still stands then is cut
}

impl Admin {
    fn answer(&self, request: &Request<Bytes>, client: IpAddr) -> Answer {
        let path = request.uri().path();
        let known = matches!(
            path,
            "/livez" | "/health" | "/readyz" | "/ready" | "/metrics" | "/api/snapshot" | "/api/breakers"
        );
        if path.starts_with("/api/")
            && let Err(denied) = self.access(request.headers(), client)
        {
            return deny(denied);
        }
        if path == "/api/strategy" {
            return self.strategy(request);
        }
        if path.starts_with("/api/breakers/") {
            return self.order(request);
        }
        if let Some(asked) = drain::asked(path) {
            return self.drain(asked, request, Instant::now());
        }
        if !known {
            return text(StatusCode::NOT_FOUND, String::from("not found\n"));
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return only("GET, HEAD");
        }
        match path {
            "/readyz" | "/ready" => match self.ready(Instant::now()) {
                Ok(()) => text(StatusCode::OK, String::from("ready\n")),
                Err(why) => {
                    let reasons = self.beginning.reasons();
                    text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}{reasons}\n"))
                }
            },
            "/metrics" => {
                let format = Format::wanted(request.headers());
                answer(StatusCode::OK, format.content_type(), format.of((self.metrics)()).into_bytes())
            }
            "/api/breakers" => self.breakers(Instant::now()),
            "/api/snapshot" => to_json(StatusCode::OK, &self.view(Instant::now())),
            _ => match self.tasks.alive() {
                Ok(()) => text(StatusCode::OK, String::from("alive\n")),
                Err(dead) => text(StatusCode::SERVICE_UNAVAILABLE, not_alive(&dead)),
            },
        }
    }
}

impl Admin {
    fn strategy(&self, request: &Request<Bytes>) -> Answer {
        let now = Instant::now();
        match *request.method() {
            Method::GET | Method::HEAD => {
                to_json(StatusCode::OK, &strategy::views(&self.control.snapshot(), now))
            }
            Method::DELETE => to_json(StatusCode::OK, &self.end_switches(now)),
            Method::POST if !is_json(request.headers()) => not_json(),
            Method::POST => match self.switch_strategy(request.body(), now) {
                Ok(views) => to_json(StatusCode::OK, &views),
                Err(refused) => to_json(StatusCode::BAD_REQUEST, &refused),
            },
            _ => only("GET, HEAD, POST, DELETE"),
        }
    }
}

fn not_alive(dead: &[Dead]) -> String {
    dead.iter().map(|why| format!("not alive: {why}\n")).collect()
}

/// A web page can make a browser send a form or plain text here, but no JSON without asking first.
fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(JSON))
}

fn not_json() -> Answer {
    let reason = "the body must be JSON, with 'content-type: application/json'\n";
    text(StatusCode::UNSUPPORTED_MEDIA_TYPE, String::from(reason))
}

fn only(methods: &'static str) -> Answer {
    let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("only {methods}\n"));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(methods));
    answer
}

fn to_json(status: StatusCode, value: &impl serde::Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(json) => answer(status, JSON, json),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn deny(denied: Denied) -> Answer {
    let mut answer = text(denied.status(), format!("{denied}\n"));
    if denied.status() == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    answer
}

fn text(status: StatusCode, text: String) -> Answer {
    answer(status, TEXT, text.into_bytes())
}

fn answer(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

#[cfg(test)]
mod tests;

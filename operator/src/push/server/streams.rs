//! The endless bodies. A body is asked for its next line when the peer has room for it, so a peer that does not
//! read costs one line and no more.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::unfold;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use outrigger_policy::wire::FromOperator;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep, sleep_until};

use super::{Body, Server, stopped};
use crate::push::fleet::{self, Line};
use crate::push::{Answer, Connection, Hub, News, Uid};

/// A line comes at least this often.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(10);
/// A proxy that owes an answer for so long is asked to connect anew.
const OVERDUE: Duration = Duration::from_secs(30);
/// A stream lasts at most so long, so that proxies spread over the replicas and prove anew who they are.
const AGE: Duration = Duration::from_secs(3600);
/// Answers are collected for so long before they are told to the lease holder.
const GATHER: Duration = Duration::from_millis(50);

struct ToProxy {
    connection: Connection,
    server: Arc<Server>,
    stop: watch::Receiver<bool>,
    bundle: watch::Receiver<()>,
    /// The bundle of the last `Welcome`.
    welcomed: Option<String>,
    ends: Instant,
    over: bool,
}

/// What makes the next line.
enum Event {
    Stop,
    News(Option<News>),
    Bundle,
    Old,
    Quiet,
}

/// What a proxy is told: a `Welcome`, then whatever comes first.
pub(super) fn to_proxy(connection: Connection, server: Arc<Server>, stop: watch::Receiver<bool>) -> Body {
    let bundle = server.certificates.watch();
    let ends = Instant::now() + AGE.mul_f64(0.7 + 0.3 * fastrand::f64());
    let state = ToProxy { connection, server, stop, bundle, welcomed: None, ends, over: false };
    body(state, ToProxy::next)
}

impl ToProxy {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        if self.over {
            return None;
        }
        if let Some(line) = self.welcome() {
            return Some((line, self));
        }
        let event = tokio::select! {
            biased;
            () = stopped(&mut self.stop) => Event::Stop,
            news = self.connection.next() => Event::News(news),
            () = changed(&mut self.bundle) => Event::Bundle,
            () = sleep_until(self.ends) => Event::Old,
            () = sleep(HEARTBEAT) => Event::Quiet,
        };
        let line = match event {
            Event::Stop => self.goaway("the replica is going away", spread(3000)),
            Event::News(Some(News::Target(target))) => target.line.clone(),
            Event::News(Some(News::Siblings(line))) => line,
            Event::News(None) => self.goaway("the pod is gone or has another stream", 1000),
            Event::Bundle => self.welcome().unwrap_or_else(heartbeat_line),
            Event::Old => self.goaway("the stream is old", spread(100)),
            Event::Quiet => self.heartbeat(),
        };
        Some((line, self))
    }

    /// The first line; later only if what proxies are to trust changed.
    fn welcome(&mut self) -> Option<Bytes> {
        self.bundle.borrow_and_update();
        let bundle = self.server.certificates.trust_bundle();
        if self.welcomed.as_ref() == Some(&bundle) {
            return None;
        }
        self.welcomed = Some(bundle.clone());
        Some(line(&FromOperator::Welcome {
            replica: self.server.replica.clone(),
            heartbeat_seconds: u32::try_from(HEARTBEAT.as_secs()).unwrap_or(u32::MAX),
            trust_bundle: bundle,
        }))
    }

    fn heartbeat(&mut self) -> Bytes {
        if self.connection.lag().is_some_and(|lag| OVERDUE < lag) {
            return self.goaway("the last update was not answered", spread(1000));
        }
        heartbeat_line()
    }

    fn goaway(&mut self, reason: &str, retry_after_millis: u64) -> Bytes {
        self.over = true;
        line(&FromOperator::Goaway { reason: reason.to_owned(), retry_after_millis })
    }
}

struct ToReplica {
    hub: Arc<Hub>,
    stop: watch::Receiver<bool>,
    changes: watch::Receiver<u64>,
    told: HashMap<Uid, Answer>,
    first: bool,
}

/// What the lease holder is told: every answer once, then those that change.
pub(super) fn to_replica(hub: Arc<Hub>, stop: watch::Receiver<bool>) -> Body {
    let changes = hub.changes();
    body(ToReplica { hub, stop, changes, told: HashMap::new(), first: true }, ToReplica::next)
}

impl ToReplica {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        let deadline = Instant::now() + HEARTBEAT;
        loop {
            if !std::mem::take(&mut self.first) {
                tokio::select! {
                    () = stopped(&mut self.stop) => return None,
                    () = changed(&mut self.changes) => sleep(GATHER).await,
                    () = sleep_until(deadline) => return Some((line(&Line::Heartbeat), self)),
                }
            }
            self.changes.borrow_and_update();
            let lines = fleet::lines(&mut self.told, self.hub.answers());
            if !lines.is_empty() {
                return Some((lines.iter().flat_map(line).collect(), self));
            }
        }
    }
}

/// Returns at the next change; never, if there can be none.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn body<S, F>(state: S, next: fn(S) -> F) -> Body
where
    S: Send + 'static,
    F: Future<Output = Option<(Bytes, S)>> + Send + 'static,
{
    let lines = unfold(state, move |state| {
        let next = next(state);
        async move {
            let (bytes, state) = next.await?;
            Some((Ok::<_, Infallible>(Frame::data(bytes)), state))
        }
    });
    StreamBody::new(lines).boxed_unsync()
}

fn line(message: &impl Serialize) -> Bytes {
    // Serializing plain data into memory does not fail; an empty line would be skipped.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

fn heartbeat_line() -> Bytes {
    line(&FromOperator::Heartbeat)
}

/// So that a fleet does not come back all at once.
fn spread(most: u64) -> u64 {
    fastrand::u64(most / 10..=most)
}

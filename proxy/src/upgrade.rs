//! WebSockets: a connection of its own to a worker, and bytes both ways once the worker has answered 101.
//! Such a connection is never pooled: what comes after an upgrade must not meet another client's request.

mod frames;
mod tunnel;

use std::time::{Duration, Instant};

use http::request::Parts;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;

pub use self::tunnel::{GOODBYE, Tunnels};
use crate::body::{AnswerBody, Proxied, RequestBody, ResponseBody};
use crate::forward::{self, Forward};
use crate::guard;
use crate::record::{Exchange, Record};
use crate::rejection::Rejection;
use crate::siblings::{BLAMELESS, UNSERVED};
use crate::worker::{Permit, Worker};

/// A worker's answer to an upgrade.
pub struct Tunnel {
    response: Response<Incoming>,
    permit: Permit,
    idle: Duration,
}

/// Asks a worker to upgrade.
///
/// # Errors
/// Why there is no answer.
pub async fn connect(forward: &Forward<'_>, mut head: Parts, body: RequestBody) -> Result<Tunnel, Rejection> {
    let idle = forward.route.policy.timeout.idle;
    let (stream, mut permit) = forward.dedicated().await?;
    let (mut sender, connection) =
        http1::Builder::new().handshake(TokioIo::new(stream)).await.map_err(|_| Rejection::WorkerReset)?;
    tokio::task::spawn_local(async move {
        let _ = connection.with_upgrades().await; // whoever used it learns of the error by its request
    });
    forward::as_http1(&mut head);
    let request = Request::from_parts(head, body);
    // A worker that expects no upgrade there may close or stay silent, and whether it does is for the client to choose.
    let response = forward.in_time(sender.send_request(request)).await?;
    let response = response.map_err(|_| {
        Rejection::UpgradeFailed("the worker closed the connection and did not answer the handshake")
    })?;
    let (mut head, body) = response.into_parts();
    head.headers.remove(UNSERVED);
    if head.headers.remove(BLAMELESS).is_some() && permit.worker().sibling.is_some() {
        permit.excuse();
    }
    guard::response(&mut head, true).inspect_err(|rejection| permit.refused(*rejection, Instant::now()))?;
    Ok(Tunnel { response: Response::from_parts(head, body), permit, idle })
}

impl Tunnel {
    /// The worker that answered.
    pub fn worker(&self) -> &Worker {
        self.permit.worker()
    }

    /// The answer to the client. After a 101 the bytes flow both ways; after any other it is an answer like others.
    pub fn open(self, exchange: Exchange) -> Response<ResponseBody> {
        let Self { mut response, permit, idle } = self;
        let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let worker = hyper::upgrade::on(&mut response);
        let end = exchange.thread.tunnels.open(permit.worker().id);
        let (head, body) = response.into_parts();
        let connection = exchange.client.clone();
        let arrived = Instant::now();
        let mut record = Record::answered(exchange, permit, &head, arrived);
        if !upgraded {
            let proxied = Box::new(Proxied::new(AnswerBody::Hyper(body), idle, None, record));
            return Response::from_parts(head, ResponseBody::Proxied(proxied));
        }
        let (taker, client) = oneshot::channel();
        connection.upgrade.set(Some(taker));
        record.succeeded(arrived); // a tunnel may go on for hours, and how it ends is for its two sides to say
        tokio::task::spawn_local(async move {
            match tunnel::run(client, worker, &end, idle).await {
                Ok(sent) => record.sent(usize::try_from(sent).unwrap_or(usize::MAX)),
                Err(error) => tracing::debug!(%error, "tunnel ended"),
            }
        });
        Response::from_parts(head, ResponseBody::Own(None))
    }
}

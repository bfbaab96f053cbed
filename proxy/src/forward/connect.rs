//! A connection to a worker, over the protocol that the worker speaks.

use std::time::Instant;

use http::Request;
use outrigger_policy::effective::WorkerProtocol;

use super::patience::{Limit, Try};
use super::{Choice, Forward, NO_WEBSOCKET};
use crate::body::RequestBody;
use crate::pool::{ConnectError, Connection, MAX_IDLE_ONCE, Wire};
use crate::protocol::{self, Needs, Speaks};
use crate::rejection::Rejection;
use crate::worker::{Permit, Worker};

/// Why there is no connection for a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoConnection {
    /// The worker does not accept one.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The worker does not speak what the request needs.
    #[error("the worker does not speak the protocol that the request needs")]
    NotSpoken,
    /// The request's time is over.
    #[error("the worker does not say in time which protocol it speaks, or how many requests it takes")]
    Late,
    /// The request's time is over, and the worker had as many requests as it takes.
    #[error("the worker takes no more requests at once than it has")]
    Full,
}

impl Forward<'_> {
    /// Whether a worker may speak what the request needs. The proxies of siblings speak all of it.
    pub(super) fn suits(&self, worker: &Worker, now: Instant) -> bool {
        let settled = |speaks: Speaks| speaks.over_http2(self.needs).is_some();
        match self.snapshot.protocol(worker) {
            _ if self.needs == Needs::Any || worker.sibling.is_some() => true,
            WorkerProtocol::Auto => !protocol::refuses(worker, self.needs, now),
            WorkerProtocol::Http1 => settled(Speaks::Http1),
            WorkerProtocol::H2c => settled(Speaks::Http2),
        }
    }

    /// A connection for one try: one that rests, or a new one.
    pub(super) async fn connection(
        &self,
        permit: &Permit,
        request: &Request<RequestBody>,
        limit: Limit,
    ) -> Result<Connection, NoConnection> {
        let worker = permit.worker();
        let connect = self.route.policy.timeout.connect;
        if self.speaks(worker, limit).await?.over_http2(self.needs).ok_or(NoConnection::NotSpoken)? {
            return self.stream(worker, limit).await;
        }
        // The worker may be closing a connection that stood idle, and then what is sent on it is lost.
        let longest = (!request.method().is_idempotent()).then_some(MAX_IDLE_ONCE);
        Ok(Connection::Http1(match self.thread.upstreams.idle(worker, longest) {
            Some(lease) => lease,
            None => self.thread.upstreams.connect(worker, connect).await?,
        }))
    }

    /// A stream on an HTTP/2 connection, once there is one.
    pub(super) async fn stream(&self, worker: &Worker, limit: Limit) -> Result<Connection, NoConnection> {
        let upstreams = &self.thread.upstreams;
        if let Some(stream) = upstreams.stream(worker) {
            return Ok(stream);
        }
        let waits = Box::pin(upstreams.http2(worker, self.route.policy.timeout.connect)); // rare and large
        match self.within(limit, waits).await {
            Some(connected) => Ok(connected?),
            None if upstreams.is_full(worker) => Err(NoConnection::Full),
            None => Err(NoConnection::Late),
        }
    }

    /// Whether a worker is asked for its protocol: the policy does not say.
    pub(super) fn asks(&self, worker: &Worker) -> bool {
        self.snapshot.protocol(worker) == WorkerProtocol::Auto
    }

    /// What a worker speaks: the policy says so, or the worker itself.
    async fn speaks(&self, worker: &Worker, limit: Limit) -> Result<Speaks, NoConnection> {
        match self.snapshot.protocol(worker) {
            WorkerProtocol::H2c => return Ok(Speaks::Http2),
            WorkerProtocol::Http1 => return Ok(Speaks::Http1),
            WorkerProtocol::Auto => {}
        }
        if let Some(known) = worker.speaks.known()
            && known.over_http2(self.needs).is_some()
        {
            return Ok(known);
        }
        let connect = self.route.policy.timeout.connect;
        let asked = Box::pin(self.thread.upstreams.ask(worker, self.needs, connect)); // rare and large
        Ok(self.within(limit, asked).await.ok_or(NoConnection::Late)??)
    }

    /// A new connection of its own to a worker, for an upgrade, with the permit to use it.
    ///
    /// # Errors
    /// That no worker accepts one, or none speaks HTTP/1.1.
    pub async fn dedicated(&self) -> Result<(Wire, Permit), Rejection> {
        let mut choice = Choice::default();
        let (mut refused, mut attempt) = (None, 0);
        while attempt <= self.route.policy.retry.num_retries {
            choice.leaves_the_pod = self.is_last(attempt);
            let Some(mut permit) = choice.untried(self, self.started) else { break };
            match self.dedicated_to(permit.worker()).await {
                Ok(stream) => return Ok((stream, permit)),
                Err(error) => {
                    attempt += u32::from(!matches!(error, NoConnection::NotSpoken)); // to find that out is no retry
                    refused = Some(self.not_connected(&mut permit, error));
                }
            }
        }
        Err(refused.unwrap_or_else(|| choice.nobody(self)))
    }

    async fn dedicated_to(&self, worker: &Worker) -> Result<Wire, NoConnection> {
        if worker.sibling.is_none() {
            let speaks = self.speaks(worker, self.limit(Try { number: 0, began: self.started })).await?;
            speaks.over_http2(self.needs).ok_or(NoConnection::NotSpoken)?;
        }
        Ok(self.thread.upstreams.dedicated(worker, self.route.policy.timeout.connect).await?)
    }

    /// Why a try ends before it began, held against the worker where it is the worker's doing.
    pub(super) fn not_connected(&self, permit: &mut Permit, error: NoConnection) -> Rejection {
        let rejection = match error {
            NoConnection::Connect(error) => {
                self.thread.refusals.attempt_failed(permit.worker(), &error);
                if !matches!(error, ConnectError::Exhausted(_)) {
                    permit.worker().speaks.forget(); // it may be another program when it is back
                }
                Rejection::from(error)
            }
            NoConnection::NotSpoken if self.needs == Needs::Http2 => Rejection::NotGrpc,
            NoConnection::NotSpoken => Rejection::UpgradeFailed(NO_WEBSOCKET),
            NoConnection::Late if self.deadline.is_the_clients(self.whole_at()) => {
                Rejection::DeadlineExceeded
            }
            NoConnection::Late => Rejection::WorkerTimeout,
            NoConnection::Full => Rejection::WorkerFull,
        };
        permit.refused(rejection, Instant::now());
        rejection
    }
}

impl From<ConnectError> for Rejection {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Refused(_) => Self::ConnectFailed,
            ConnectError::Exhausted(_) => Self::LocalExhaustion,
            ConnectError::Timeout => Self::ConnectTimeout,
            ConnectError::Handshake(_) => Self::WorkerProtocol("the worker does not speak HTTP/2"),
        }
    }
}

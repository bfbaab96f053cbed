//! One try: a connection to a worker, the request, the head of the answer.

use std::time::Duration;

use http::{Request, Response};
use http_body::Body;

use super::connect::NoConnection;
use super::over_http2::Stream;
use super::patience::{Limit, Try};
use super::repeat::{Fields, Repeat};
use super::{Answer, Forward, Slot};
use crate::body::{AnswerBody, Broken, Progress, RequestBody};
use crate::clock;
use crate::descriptors;
use crate::drain::worker::Serves;
use crate::http1::{self, SendError};
use crate::pool::{ConnectError, Connection, Lease};
use crate::rejection::Rejection;
use crate::siblings::{BLAMELESS, UNSERVED};
use crate::worker::{Permit, Worker};

/// A worker that ends a connection within this time of being sent a request was closing it already; after it, it gave the
/// request up.
pub(super) const CLOSING: Duration = Duration::from_secs(1);

/// How a try ended.
#[expect(clippy::large_enum_variant, reason = "the large one is the usual one")]
pub(super) enum Tried {
    /// With an answer.
    Answered(Answer),
    /// Nothing of the request left, and it is in its slot: it may go to another worker, whatever it is.
    Unsent(Rejection),
    /// It left, and the worker failed before an answer began.
    Lost(Rejection),
    /// The client broke off, or the time is over: it is not tried again.
    Final(Rejection),
}

impl Tried {
    pub(super) fn into_result(self) -> Result<Answer, Rejection> {
        match self {
            Self::Answered(answer) => Ok(answer),
            Self::Unsent(rejection) | Self::Lost(rejection) | Self::Final(rejection) => Err(rejection),
        }
    }
}

impl Forward<'_> {
    /// Sends the request to one worker: its first try, or the one of this number. What it takes for a further one is
    /// kept in `repeat`.
    pub(super) async fn attempt(
        &self,
        mut permit: Permit,
        request: &mut Slot,
        (attempt, repeat): (u32, &Repeat),
    ) -> Tried {
        let Some(outgoing) = request.as_mut() else { return Tried::Final(Rejection::Internal) };
        let began = if attempt == 0 { self.started } else { clock::now() };
        if 0 < attempt {
            permit.sent_again(began);
        }
        let this = Try { number: attempt, began };
        let limit = self.limit(this);
        let connection = match self.connection(&permit, outgoing, limit).await {
            Ok(connection) => connection,
            Err(NoConnection::Late) => return self.late(permit, limit),
            Err(error) => return Tried::Unsent(self.not_connected(&mut permit, error)),
        };
        self.deadline.write(outgoing.headers_mut(), self.whole_at(), clock::now);
        let upload = outgoing.body().progress();
        if let Some(upload) = &upload {
            upload.moved(); // it did not stand still while there was no connection
        }
        // A request without a body can be sent again when a sibling had nobody to give it to.
        let repeats = permit.worker().sibling.is_some() && outgoing.body().is_end_stream();
        let again = repeats.then(|| Box::new(Fields::of(outgoing)));
        let sent = match connection {
            Connection::Http1(lease) => self.over_http1(lease, (&mut permit, this), (outgoing, repeat)).await,
            Connection::Http2(sender, lease) => {
                repeat.keep(outgoing);
                self.over_http2(Stream { sender, lease }, (&mut permit, this), (request, repeat)).await
            }
        };
        match sent {
            Ok((response, lease)) => {
                let arrived = clock::now();
                if let Some(upload) = &upload {
                    upload.moved();
                    permit.body_sent(upload.sent_at().unwrap_or(arrived));
                }
                let (mut head, body) = response.into_parts();
                if let Some(sibling) = &permit.worker().sibling {
                    self.thread.shard.siblings[0].add(1);
                    if head.headers.remove(UNSERVED).is_some() {
                        sibling.rest(arrived);
                        *request = again.map(|fields| fields.with(RequestBody::empty()));
                        return self.unserved(permit, request.is_some());
                    }
                    if head.headers.remove(BLAMELESS).is_some() {
                        permit.excuse();
                    }
                }
                Tried::Answered(Answer { head, body, permit, arrived, lease, client: upload })
            }
            Err(why) => self.unanswered(permit, upload.as_deref(), why),
        }
    }

    /// What comes of a try that got no answer.
    fn unanswered(&self, mut permit: Permit, upload: Option<&Progress>, why: Unanswered) -> Tried {
        match why {
            Unanswered::Unsent => {
                permit.refused(Rejection::WorkerReset, clock::now());
                Tried::Unsent(Rejection::WorkerReset)
            }
            Unanswered::NotConnected { error, left } => {
                let rejection = self.not_connected(&mut permit, error);
                if left { Tried::Lost(rejection) } else { Tried::Unsent(rejection) }
            }
            Unanswered::Broken(rejection) => self.broken(permit, upload, rejection),
            Unanswered::OtherProtocol => {
                let rejection = Rejection::WorkerRefused("the worker speaks another protocol than before");
                if upload.is_none() { Tried::Unsent(rejection) } else { Tried::Final(rejection) }
            }
            Unanswered::Refused(rejection) => {
                Tried::Final(upload.and_then(Progress::fault).unwrap_or(rejection))
            }
            Unanswered::Late(limit) => self.late(permit, limit),
        }
    }

    /// A sibling had nobody to give the request to: it may go elsewhere, if it can be sent again.
    fn unserved(&self, mut permit: Permit, again: bool) -> Tried {
        permit.refused(Rejection::ConnectFailed, clock::now());
        let rejection = self.nobody();
        if again { Tried::Unsent(rejection) } else { Tried::Final(rejection) }
    }

    /// A pooled connection that the worker closed in the meantime costs nobody anything: the request goes over a new one, to the
    /// same worker, where nothing of it was sent or it may be repeated (RFC 9112 §9.3.1).
    async fn over_http1(
        &self,
        mut lease: Lease,
        (permit, this): (&mut Permit, Try),
        (request, repeat): (&mut Request<RequestBody>, &Repeat),
    ) -> Sent {
        let mut left = false;
        loop {
            let Some(connection) = lease.http1() else { return Err(Unanswered::Broken(Rejection::Internal)) };
            connection.take_at_most(self.part);
            match self.patiently(this, permit, connection.send(request, self.interim)).await {
                Ok(Ok(mut response)) => match response.body_mut().broken_at_once() {
                    None => return Ok((response.map(AnswerBody::Http1), lease)),
                    Some(error) => return self.lost(permit.worker(), error),
                },
                Ok(Err(SendError::Unanswered(_)))
                    if lease.reused && clock::now() < this.began + CLOSING && repeat.renew(request) =>
                {
                    self.thread.shard.stale_connections.add(1);
                    left = true;
                }
                Ok(Err(SendError::Unanswered(error))) => return self.lost(permit.worker(), error),
                Ok(Err(SendError::Lost(http1::Error::SpeaksHttp2))) if self.asks(permit.worker()) => {
                    permit.worker().speaks.forget();
                    return Err(Unanswered::OtherProtocol);
                }
                Ok(Err(SendError::Lost(error))) => return self.lost(permit.worker(), error),
                Ok(Err(SendError::Unsent(error))) if descriptors::exhausted(&error) => {
                    return Err(Unanswered::NotConnected {
                        error: ConnectError::Exhausted(error).into(),
                        left,
                    });
                }
                Ok(Err(SendError::Unsent(_))) if !lease.reused => return Err(Unanswered::Unsent),
                Ok(Err(SendError::Unsent(_))) => {}
                Err(limit) => return Err(Unanswered::Late(limit)),
            }
            match self.thread.upstreams.connect(permit.worker(), self.route.policy.timeout.connect).await {
                Ok(new) => lease = new,
                Err(error) => return Err(Unanswered::NotConnected { error: error.into(), left }),
            }
        }
    }

    fn lost(&self, worker: &Worker, error: http1::Error) -> Sent {
        self.thread.refusals.attempt_failed(worker, &error);
        Err(Unanswered::Broken(Rejection::from(error)))
    }

    /// Who is at fault when a request that left got no answer: the client whose body broke off, or the worker. Only
    /// the worker's fault is held against the worker.
    fn broken(&self, mut permit: Permit, upload: Option<&Progress>, rejection: Rejection) -> Tried {
        if let Some(fault) = upload.and_then(Progress::fault) {
            return Tried::Final(fault);
        }
        if upload.is_some_and(|upload| upload.sent_at().is_none() && upload.held_up_its_worker()) {
            return Tried::Final(Rejection::CLIENT_HELD_UP); // the worker did not wait for the client any longer
        }
        if permit.worker().drain.serves() != Serves::Nothing {
            permit.refused(rejection, clock::now()); // or it was cut
        }
        Tried::Lost(rejection)
    }
}

pub(super) type Sent = Result<(Response<AnswerBody>, Lease), Unanswered>;

/// Why there is no answer.
pub(super) enum Unanswered {
    /// The request is in its slot again.
    Unsent,
    /// There is no new connection; `left`: it had left over the one before.
    NotConnected {
        error: NoConnection,
        left: bool,
    },
    /// It left, and this is what became of it.
    Broken(Rejection),
    /// It left, and the worker would not have it.
    Refused(Rejection),
    /// Its head is in its slot, and the worker is not the one that was asked for its protocol.
    OtherProtocol,
    Late(Limit),
}

impl From<http1::Error> for Rejection {
    fn from(error: http1::Error) -> Self {
        match error {
            http1::Error::Head(rule) => Self::WorkerProtocol(rule),
            http1::Error::Body(Broken::Stalled) => Self::CLIENT_STOOD_STILL,
            http1::Error::Body(_) => Self::ClientBody,
            http1::Error::Socket(error) if descriptors::exhausted(&error) => Self::MemoryLimit,
            _ => Self::WorkerReset,
        }
    }
}

//! The wait for a worker's answer. A worker is given its time from when it has all of the request. Before that the body of
//! the request and the answer may not both stand still for `timeout.idle`, and nothing else is counted but the client's own
//! deadline.

use std::pin::pin;
use std::task::Context;
use std::time::{Duration, Instant};

use super::Forward;
use super::attempt::Tried;
use crate::body::Progress;
use crate::clock;
use crate::passage::Passage;
use crate::rejection::Rejection;
use crate::worker::Permit;

/// Until when a try may wait, as things stand, and what it means when it takes longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    pub(super) at: Option<Instant>,
    late: Late,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Late {
    /// The worker had all the time of the policy.
    Worker,
    /// The worker had all the time of one try; there may be another.
    Try,
    /// The worker had less time: what earlier tries left.
    Rest,
    /// The client waits less long than the policy.
    Client,
    /// The body of the request is on its way, and neither it nor the answer moved.
    Idle,
}

/// One try, and when it began.
#[derive(Clone, Copy)]
pub(super) struct Try {
    /// Its number, from 0.
    pub(super) number: u32,
    pub(super) began: Instant,
}

impl Forward<'_> {
    /// When a worker had all of the request first; `None`: its body is on its way still.
    pub fn whole_at(&self) -> Option<Instant> {
        match &self.upload {
            Some(upload) => upload.whole_at(),
            None => Some(self.started),
        }
    }

    /// Until when a try may take to find a connection: nothing of the body moves meanwhile.
    pub(super) fn limit(&self, this: Try) -> Limit {
        self.limit_from(this, Some(self.whole_at().unwrap_or(this.began)), Some(this.began))
    }

    /// Until when it may then wait for the head of the answer.
    fn limit_of_answer(&self, this: Try) -> Limit {
        let Some(upload) = &self.upload else { return self.limit(this) };
        let (sent, idle) = (upload.sent_at(), upload.stands_still_at());
        let limit = self.limit_from(this, upload.whole_at(), sent.map(|sent| sent.max(this.began)));
        match sent {
            None if limit.at.is_none_or(|at| idle < at) => Limit { at: Some(idle), late: Late::Idle },
            _ => limit,
        }
    }

    /// For a request that a worker had whole first at one time, and the worker of this try at the other.
    fn limit_from(&self, this: Try, whole: Option<Instant>, sent: Option<Instant>) -> Limit {
        let rest = match this.number {
            _ if self.deadline.is_the_clients(whole) => Late::Client,
            0 => Late::Worker,
            _ => Late::Rest,
        };
        let at = self.deadline.at(whole);
        let one = sent.zip(self.route.policy.retry.per_try_timeout).map(|(sent, limit)| sent + limit);
        match one {
            Some(one) if at.is_none_or(|at| one < at) => Limit { at: Some(one), late: Late::Try },
            _ => Limit { at, late: rest },
        }
    }

    /// What comes of `sent` by a time that is known.
    pub(super) async fn within<T>(&self, limit: Limit, sent: impl Future<Output = T>) -> Option<T> {
        match limit.at {
            None => Some(sent.await),
            Some(at) => self.thread.alarms.within(at, sent).await,
        }
    }

    /// Waits for the head of the answer to one try.
    ///
    /// # Errors
    /// What it took too long for.
    pub(super) async fn patiently<T>(
        &self,
        this: Try,
        permit: &mut Permit,
        sent: impl Future<Output = T>,
    ) -> Result<T, Limit> {
        let Some(upload) = &self.upload else {
            let limit = self.limit(this);
            return self.within(limit, sent).await.ok_or(limit);
        };
        let mut sent = pin!(sent);
        loop {
            let at = |cx: &Context<'_>| {
                upload.listen(cx);
                let at = self.limit_of_answer(this).at;
                match self.trial_ends_at(this, permit, upload) {
                    Some(trial) => Some(at.map_or(trial, |at| at.min(trial))),
                    None => at,
                }
            };
            if let Some(done) = self.thread.alarms.until(at, sent.as_mut()).await {
                return Ok(done);
            }
            let now = clock::now();
            if self.trial_ends_at(this, permit, upload).is_some_and(|at| at <= now) {
                permit.excuse();
                self.passage.iter().for_each(|passage| passage.excuse());
            }
            let limit = self.limit_of_answer(this);
            if limit.at.is_some_and(|at| at <= now) {
                return Err(limit);
            }
        }
    }

    /// When a request by which a half-open breaker finds out how things are is no use for that any more: its client has
    /// kept the worker waiting, or takes longer for its body than the worker would have for its answer.
    fn trial_ends_at(&self, this: Try, permit: &Permit, upload: &Progress) -> Option<Instant> {
        let probes = || permit.probes() || self.passage.is_some_and(Passage::probes);
        if permit.is_excused() || upload.sent_at().is_some() || !probes() {
            return None;
        }
        let longest = self.route.policy.timeout.request.unwrap_or(LONGEST_TRIAL);
        Some(upload.holds_up_its_worker_at().min(this.began + longest))
    }

    /// Who is at fault when an answer does not come in time: the client that is waited for or does not wait, or the
    /// worker.
    pub(super) fn late(&self, mut permit: Permit, limit: Limit) -> Tried {
        let upload = self.upload.as_deref();
        if let Some(fault) = upload.and_then(Progress::fault) {
            return Tried::Final(fault);
        }
        let rejection = match limit.late {
            Late::Client => return Tried::Final(Rejection::DeadlineExceeded),
            Late::Rest => return Tried::Final(Rejection::WorkerTimeout),
            Late::Idle if upload.is_some_and(Progress::waited_for) => {
                return Tried::Final(Rejection::CLIENT_STOOD_STILL);
            }
            Late::Idle => Rejection::WorkerStalled,
            Late::Worker | Late::Try => Rejection::WorkerTimeout,
        };
        permit.refused(rejection, clock::now());
        if limit.late == Late::Try { Tried::Lost(rejection) } else { Tried::Final(rejection) }
    }
}

/// A trial does not take longer where the policy gives its answer no limit.
const LONGEST_TRIAL: Duration = Duration::from_secs(60);

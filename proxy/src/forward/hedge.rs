//! A second request when the first answers late (Dean and Barroso, "The Tail at Scale", 2013). The first answer counts;
//! the other request is cancelled, and its permit is dropped without an outcome: it says nothing of its worker.

use std::pin::pin;
use std::time::{Duration, Instant};

use http::Request;
use outrigger_policy::effective::Hedge;

use super::attempt::Tried;
use super::repeat::Repeat;
use super::{Choice, Forward, Slot};
use crate::body::RequestBody;
use crate::worker::Permit;

impl Forward<'_> {
    /// The first try, and beside it a second one when the first is late.
    pub(super) async fn hedged(
        &self,
        permit: Permit,
        request: &mut Slot,
        (hedge, late): (&Hedge, Duration),
        (repeat, choice): (&Repeat, &mut Choice),
    ) -> Tried {
        let shard = &self.thread.shard;
        let mut beside: Slot;
        let (tried, second_won) = {
            let mut first = pin!(self.attempt(permit, request, (0, repeat)));
            tokio::select! {
                biased;
                tried = &mut first => return self.timed(tried),
                () = tokio::time::sleep(late) => {}
            }
            let Some((permit, again)) = self.second(hedge, repeat, choice) else {
                return self.timed(first.await);
            };
            shard.hedges.add(1);
            beside = Some(again);
            let mut second = pin!(self.attempt(permit, &mut beside, (1, repeat)));
            tokio::select! {
                biased;
                tried = &mut first => match self.is_good(repeat, &tried) {
                    true => (tried, false),
                    false => (second.await, true),
                },
                tried = &mut second => match self.is_good(repeat, &tried) {
                    true => (tried, true),
                    false => (first.await, false),
                },
            }
        };
        if second_won {
            shard.hedges_won.add(1);
            *request = beside;
        }
        self.timed(tried)
    }

    /// What a second request goes by, where there may be one, and how long the first has before it is late.
    pub(super) fn late_after(&self, repeat: &Repeat) -> Option<(&Hedge, Duration)> {
        let hedge = self.route.policy.hedge.as_ref()?;
        if !(repeat.is_idempotent() && repeat.is_without_body()) {
            return None;
        }
        let late = self.thread.recent.late_after(self.route, hedge, self.started)?;
        Some((hedge, late))
    }

    /// What is to be sent beside the first, if the budget allows and there is another worker.
    fn second(
        &self,
        hedge: &Hedge,
        repeat: &Repeat,
        choice: &mut Choice,
    ) -> Option<(Permit, Request<RequestBody>)> {
        let now = Instant::now();
        let allowed = self.thread.recent.may_hedge(self.route, hedge, now);
        let permit = allowed.then(|| choice.untried(self, now))??;
        Some((permit, repeat.request(1, &mut None)?))
    }

    fn is_good(&self, repeat: &Repeat, tried: &Tried) -> bool {
        matches!(tried, Tried::Answered(_)) && !repeat.is_wanted(&self.route.policy.retry, tried)
    }

    /// Notes how long the client waited for an answer, for the percentile of the next requests.
    fn timed(&self, tried: Tried) -> Tried {
        if let Tried::Answered(answer) = &tried {
            let now = answer.arrived;
            self.thread.recent.answered(self.route, now.saturating_duration_since(self.started), now);
        }
        tried
    }
}

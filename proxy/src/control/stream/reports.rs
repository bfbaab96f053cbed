//! Tells the operator how the workers are: soon after there is news, and now and then without.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use outrigger_policy::report::{REPORT_PATH, Report};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::connect::Link;
use super::{Control, Error, Settings, post};
use crate::control::report::{Moment, Observer};

/// How often the workers are looked at.
const LOOK: Duration = Duration::from_millis(250);
/// A canary's counts are sent at most so often.
const COUNTS: Duration = Duration::from_secs(2);
/// Without news a report is repeated after this: the operator may have forgotten it.
const REPEAT: Duration = Duration::from_secs(15);
/// A report that the operator did not take is sent again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// What was sent last, and when.
struct Sent {
    report: Report,
    at: Instant,
    taken: bool,
}

impl Sent {
    /// Whether `next` is to be sent now.
    fn is_outdated_by(&self, next: &Report, now: Instant) -> bool {
        let age = now.saturating_duration_since(self.at);
        if !self.taken {
            return AGAIN <= age;
        }
        let rest = if self.report.differs_in_counts_only(next) { COUNTS } else { Duration::ZERO };
        (self.report != *next && rest <= age) || REPEAT <= age
    }
}

/// Reports over this connection as long as it lasts. There is no queue: what is sent is how things are now.
pub(super) async fn send(link: &Link, control: &Control, settings: &Settings, observer: &RefCell<Observer>) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sent: Option<Sent> = None;
    loop {
        looks.tick().await;
        let now = Instant::now();
        let report = observer.borrow_mut().report(&control.snapshot(), moment(now));
        if sent.as_ref().is_some_and(|sent| !sent.is_outdated_by(&report, now)) {
            continue;
        }
        let result = post(settings, link, REPORT_PATH, &report).await;
        if let Err(Error::Refused { status: StatusCode::NOT_FOUND, .. }) = result {
            tracing::info!("this release of the operator takes no reports");
            return std::future::pending().await;
        }
        if let Err(error) = &result {
            tracing::debug!(%error, "the operator did not take a report");
        }
        sent = Some(Sent { report, at: now, taken: result.is_ok() });
    }
}

fn moment(now: Instant) -> Moment {
    #[expect(clippy::disallowed_methods, reason = "the edge that reads the wall clock for reports")]
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Moment { now: now.into_std(), unix_millis: i64::try_from(unix.as_millis()).unwrap_or(i64::MAX) }
}

#[cfg(test)]
mod tests {
    use outrigger_policy::report::CanaryReport;
    use outrigger_policy::sample::Sample;

    use super::*;

    #[test]
    fn news_is_sent_at_once_and_the_same_again_only_later() {
        let now = Instant::now();
        let report = |version: &str| Report { version: version.to_owned(), ..Report::default() };
        let sent = Sent { report: report("1"), at: now, taken: true };
        assert!(!sent.is_outdated_by(&report("1"), now + REPEAT / 2));
        assert!(sent.is_outdated_by(&report("1"), now + REPEAT));
        assert!(sent.is_outdated_by(&report("2"), now));
        let counts = |requests| {
            let old = Sample { requests, ..Sample::default() };
            let canary = CanaryReport { epoch: "v2.1/1".to_owned(), old: old.clone(), new: old };
            Report { canary: Some(canary), ..report("1") }
        };
        assert!(sent.is_outdated_by(&counts(1), now), "an epoch began");
        let counted = Sent { report: counts(1), at: now, taken: true };
        assert!(!counted.is_outdated_by(&counts(2), now + COUNTS / 2));
        assert!(counted.is_outdated_by(&counts(2), now + COUNTS));
        let refused = Sent { taken: false, ..sent };
        assert!(!refused.is_outdated_by(&report("2"), now + AGAIN / 2), "not several times a second");
        assert!(refused.is_outdated_by(&report("1"), now + AGAIN));
    }
}

//! One proxy, as the replica that it is connected to sees it: what was sent, what came back. Pure.
//!
//! There is no queue: a newer version takes the place of one that was not answered yet.

use std::sync::Arc;

use outrigger_policy::wire::Ack;
use tokio::time::{Duration, Instant};

/// What was sent last, and the answer to it.
#[derive(Debug)]
pub struct Session {
    /// What the proxy said it has in force, until something is sent.
    holds: Option<String>,
    sent: Option<Sent>,
}

#[derive(Debug)]
struct Sent {
    version: Arc<str>,
    at: Instant,
    answer: Option<Verdict>,
}

/// What a proxy made of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is in force.
    Acknowledged,
    /// It is not, and the last good one is; with the first violation.
    Rejected(String),
}

/// What an acknowledgement was worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reception {
    /// It answers what was sent last: in force.
    Acknowledged,
    /// It answers what was sent last: rejected.
    Rejected,
    /// It answers something older, or nothing that was sent.
    Stale,
}

impl Session {
    /// A stream that just opened; `holds` is what the proxy has in force.
    pub fn new(holds: Option<String>) -> Self {
        Self { holds, sent: None }
    }

    /// Whether this version must be sent now. A proxy that has it in force already is not sent it again: that
    /// counts as acknowledged.
    pub fn offer(&mut self, version: &Arc<str>, now: Instant) -> bool {
        if self.sent.as_ref().is_some_and(|sent| sent.version == *version) {
            return false;
        }
        let held = self.holds.take().is_some_and(|holds| *holds == **version);
        let answer = held.then_some(Verdict::Acknowledged);
        self.sent = Some(Sent { version: version.clone(), at: now, answer });
        !held
    }

    /// Takes in what the proxy made of a version.
    pub fn receive(&mut self, ack: &Ack) -> Reception {
        let Some(sent) = self.sent.as_mut().filter(|sent| *sent.version == *ack.version) else {
            return Reception::Stale;
        };
        match ack.violations.first() {
            None => {
                sent.answer = Some(Verdict::Acknowledged);
                Reception::Acknowledged
            }
            Some(first) => {
                sent.answer = Some(Verdict::Rejected(bounded(&first.to_string())));
                Reception::Rejected
            }
        }
    }

    /// The last version sent and what the proxy made of it; `None` while no answer came. Nothing is said of older
    /// versions: as long as a newer one is on its way, nobody knows which is in force.
    pub fn verdict(&self) -> Option<(Arc<str>, Verdict)> {
        let sent = self.sent.as_ref()?;
        Some((sent.version.clone(), sent.answer.clone()?))
    }

    /// For how long the proxy has owed an answer.
    pub fn lag(&self, now: Instant) -> Option<Duration> {
        let sent = self.sent.as_ref().filter(|sent| sent.answer.is_none())?;
        Some(now.saturating_duration_since(sent.at))
    }
}

/// A proxy's words go into a status: not too many of them, and none that would break a line.
fn bounded(text: &str) -> String {
    text.chars().take(256).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use outrigger_policy::Violation;
    use proptest::prelude::*;

    use super::*;

    fn ack(version: &str) -> Ack {
        Ack { version: version.to_owned(), violations: vec![] }
    }

    fn reject(version: &str) -> Ack {
        let violation = Violation { path: "spec.x".to_owned(), reason: "no\nsuch field".to_owned() };
        Ack { violations: vec![violation], ..ack(version) }
    }

    #[test]
    fn what_is_sent_is_sent_once_and_answered() {
        let now = Instant::now();
        let mut session = Session::new(None);
        assert!(session.offer(&"a".into(), now));
        assert!(!session.offer(&"a".into(), now));
        assert_eq!(session.verdict(), None);
        assert_eq!(session.lag(now + Duration::from_secs(3)), Some(Duration::from_secs(3)));
        assert_eq!(session.receive(&ack("a")), Reception::Acknowledged);
        assert_eq!(session.verdict(), Some(("a".into(), Verdict::Acknowledged)));
        assert_eq!(session.lag(now), None);
    }

    #[test]
    fn what_the_proxy_holds_counts_as_acknowledged_and_is_not_sent() {
        let mut session = Session::new(Some("a".to_owned()));
        assert!(!session.offer(&"a".into(), Instant::now()));
        assert_eq!(session.verdict(), Some(("a".into(), Verdict::Acknowledged)));
        let mut session = Session::new(Some("old".to_owned()));
        assert!(session.offer(&"a".into(), Instant::now()));
        assert_eq!(session.verdict(), None);
    }

    #[test]
    fn a_rejection_keeps_its_reason_and_is_not_sent_again() {
        let mut session = Session::new(None);
        session.offer(&"a".into(), Instant::now());
        assert_eq!(session.receive(&reject("a")), Reception::Rejected);
        assert_eq!(session.verdict(), Some(("a".into(), Verdict::Rejected("spec.x: no such field".into()))));
        assert!(!session.offer(&"a".into(), Instant::now()));
    }

    #[test]
    fn back_to_an_earlier_version_needs_a_new_answer() {
        let mut session = Session::new(None);
        session.offer(&"a".into(), Instant::now());
        session.receive(&ack("a"));
        assert!(session.offer(&"b".into(), Instant::now()));
        assert_eq!(session.verdict(), None, "the proxy may have put b in force");
        assert!(session.offer(&"a".into(), Instant::now()), "so a must be sent again");
        assert_eq!(session.receive(&ack("b")), Reception::Stale);
        assert_eq!(session.verdict(), None);
        assert_eq!(session.receive(&ack("a")), Reception::Acknowledged);
    }

    /// A proxy that applies what it gets, in order, with answers that arrive late or never.
    #[derive(Clone, Debug)]
    enum Step {
        Offer(u8),
        Apply,
        Answer,
    }

    proptest! {
        /// The one thing status relies on: what counts as acknowledged is in force at the proxy.
        #[test]
        fn acknowledged_is_in_force(
            steps in prop::collection::vec(
                prop_oneof![(0..3_u8).prop_map(Step::Offer), Just(Step::Apply), Just(Step::Answer)], 0..40),
            holds in prop::option::of(0..3_u8),
        ) {
            let mut session = Session::new(holds.map(|v| v.to_string()));
            let mut in_force = holds.map(|v| v.to_string());
            let (mut stream, mut answers) = (std::collections::VecDeque::new(), std::collections::VecDeque::new());
            for step in steps {
                match step {
                    Step::Offer(version) => {
                        let version: Arc<str> = version.to_string().into();
                        if session.offer(&version, Instant::now()) {
                            stream.push_back(version.to_string());
                        }
                    }
                    Step::Apply => if let Some(version) = stream.pop_front() {
                        in_force = Some(version.clone());
                        answers.push_back(version);
                    },
                    Step::Answer => if let Some(version) = answers.pop_front() {
                        session.receive(&ack(&version));
                    },
                }
                // Applying is in order and an answer is per version: only a stream without anything newer in
                // flight can be judged, and a version sent twice may be answered by its first answer.
                if let Some((version, Verdict::Acknowledged)) = session.verdict() && stream.is_empty() {
                    prop_assert_eq!(in_force.as_deref(), Some(&*version));
                }
            }
        }
    }
}

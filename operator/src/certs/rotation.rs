//! When certificates are renewed. Pure: time is an argument.
//!
//! A new CA is published beside the current one for the overlap before it signs anything, so every client
//! trusts it by then; the old one stays in the bundle for another overlap after that.

use std::time::{Duration, SystemTime};

/// Certificates are valid from this long before they are made: the clocks of the nodes differ.
const SKEW: Duration = Duration::from_secs(300);

/// From when until when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first moment.
    pub not_before: SystemTime,
    /// The last moment.
    pub not_after: SystemTime,
}

/// How long things last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// A CA's lifetime.
    pub authority: Duration,
    /// How long a new CA is published before it signs, and an old one stays published after it signed last.
    pub overlap: Duration,
    /// A server certificate's lifetime.
    pub leaf: Duration,
}

/// The validities of the CAs at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authorities {
    /// The one that signs.
    pub current: Validity,
    /// Published, not yet signing.
    pub next: Option<Validity>,
    /// No longer signing, still published.
    pub previous: Option<Validity>,
}

/// What is to be done about the CAs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Keep,
    /// Make the next CA and publish it.
    Prepare,
    /// Let the next CA sign.
    Promote,
    /// The current CA is worthless and no other is at hand: make a new one that signs at once.
    Replace,
    /// Stop publishing the previous CA.
    Retire,
}

/// The one step that is due. Called again after each step, it ends with `Keep`.
pub fn due(held: &Authorities, schedule: &Schedule, now: SystemTime) -> Step {
    // An overlap that does not fit into what is left of the old CA would end after it.
    let overlap = schedule.overlap.min(schedule.authority / 6);
    let expired = held.current.not_after <= now;
    match held.next {
        Some(next) if next.not_after <= now => Step::Replace,
        Some(next) if expired || next.issued() + overlap <= now => Step::Promote,
        Some(_) => Step::Keep,
        None if expired => Step::Replace,
        None if held.current.is_due(now) => Step::Prepare,
        None => match held.previous {
            Some(old) if old.not_after <= now || held.current.issued() + 2 * overlap <= now => Step::Retire,
            _ => Step::Keep,
        },
    }
}

impl Validity {
    /// Of a certificate that is made now.
    pub fn starting(now: SystemTime, lifetime: Duration) -> Self {
        Self { not_before: now - SKEW, not_after: now + lifetime }
    }

    /// The same, but not longer than its issuer's.
    pub fn within(self, issuer: &Self) -> Self {
        Self { not_before: self.not_before, not_after: self.not_after.min(issuer.not_after) }
    }

    /// When the certificate was made.
    pub fn issued(&self) -> SystemTime {
        self.not_before + SKEW
    }

    /// Whether two thirds of the lifetime have passed.
    pub fn is_due(&self, now: SystemTime) -> bool {
        let lifetime = self.not_after.duration_since(self.issued()).unwrap_or_default();
        self.issued() + lifetime * 2 / 3 <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);
    const SCHEDULE: Schedule = Schedule {
        authority: Duration::from_secs(360 * 86_400),
        overlap: Duration::from_secs(30 * 86_400),
        leaf: Duration::from_secs(30 * 86_400),
    };

    fn at(day: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + DAY * (1000 + day)
    }

    fn made(day: u32) -> Validity {
        Validity::starting(at(day), SCHEDULE.authority)
    }

    fn step(current: u32, next: Option<u32>, previous: Option<u32>, now: u32) -> Step {
        let held = Authorities { current: made(current), next: next.map(made), previous: previous.map(made) };
        due(&held, &SCHEDULE, at(now))
    }

    #[test]
    fn a_ca_lives_through_its_stages() {
        assert_eq!(step(0, None, None, 0), Step::Keep);
        assert_eq!(step(0, None, None, 239), Step::Keep);
        assert_eq!(step(0, None, None, 240), Step::Prepare);
        assert_eq!(step(0, Some(240), None, 240), Step::Keep);
        assert_eq!(step(0, Some(240), None, 269), Step::Keep, "published, not yet trusted by all");
        assert_eq!(step(0, Some(240), None, 270), Step::Promote);
        assert_eq!(step(240, None, Some(0), 270), Step::Keep, "the old one is still in the bundle");
        assert_eq!(step(240, None, Some(0), 300), Step::Retire);
        assert_eq!(step(240, None, None, 300), Step::Keep);
    }

    #[test]
    fn an_operator_that_was_away_catches_up() {
        assert_eq!(step(0, None, None, 360), Step::Replace);
        assert_eq!(step(0, Some(350), None, 360), Step::Promote, "a published CA is better than a new one");
        assert_eq!(step(0, Some(240), None, 700), Step::Replace);
        assert_eq!(step(200, None, Some(0), 360), Step::Retire, "expired");
    }

    #[test]
    fn every_day_of_ten_years_has_a_ca_that_was_published_for_the_overlap() {
        let mut held = Authorities { current: made(0), next: None, previous: None };
        for day in 0..3650 {
            match due(&held, &SCHEDULE, at(day)) {
                Step::Keep => {}
                Step::Prepare => held.next = Some(made(day)),
                Step::Promote => {
                    held.previous = Some(held.current);
                    held.current = held.next.take().expect("a promotion has a next");
                    assert!(held.current.issued() + SCHEDULE.overlap <= at(day));
                }
                Step::Retire => held.previous = None,
                Step::Replace => panic!("day {day}: the CA ran out"),
            }
            assert!(at(day) < held.current.not_after);
        }
    }

    #[test]
    fn an_overlap_too_long_for_the_lifetime_is_cut() {
        let schedule = Schedule { overlap: 360 * DAY, ..SCHEDULE };
        let held = Authorities { current: made(0), next: Some(made(240)), previous: None };
        assert_eq!(due(&held, &schedule, at(300)), Step::Promote);
    }

    #[test]
    fn a_leaf_never_outlives_its_ca() {
        let leaf = Validity::starting(at(350), SCHEDULE.leaf).within(&made(0));
        assert_eq!(leaf.not_after, at(360));
        assert!(!leaf.is_due(at(351)));
        assert!(leaf.is_due(at(357)));
    }
}

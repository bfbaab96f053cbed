//! How many Events one policy may make: a fleet whose breakers flap must not be a flood to the API server. Pure.

use tokio::time::{Duration, Instant};

/// So many at once…
const BURST: f64 = 20.0;
/// … and then one each so often.
const EVERY: Duration = Duration::from_secs(10);

/// The Events that a policy may still make.
#[derive(Debug)]
pub(super) struct Budget {
    left: f64,
    at: Instant,
    /// Events that were not made since the last one that was.
    omitted: u32,
}

impl Budget {
    /// A full budget.
    pub(super) fn new(now: Instant) -> Self {
        Self { left: BURST, at: now, omitted: 0 }
    }

    /// The note of an Event that may be made now, with a word on those that were not; `None`: it may not.
    pub(super) fn admit(&mut self, note: String, now: Instant) -> Option<String> {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() / EVERY.as_secs_f64();
        self.left = (self.left + gained).min(BURST);
        self.at = now;
        if self.left < 1.0 {
            self.omitted += 1;
            return None;
        }
        self.left -= 1.0;
        match std::mem::take(&mut self.omitted) {
            0 => Some(note),
            omitted => {
                Some(format!("{note} ({omitted} Events before this one were omitted: there were too many)"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_said_to_be() {
        let (now, mut budget) = (Instant::now(), Budget::new(Instant::now()));
        let made = (0..100).filter(|_| budget.admit("x".to_owned(), now).is_some()).count();
        assert_eq!(made, 20);
        let next = budget.admit("x".to_owned(), now + EVERY + Duration::from_secs(1)).expect("one is back");
        assert_eq!(next, "x (80 Events before this one were omitted: there were too many)");
        assert_eq!(budget.admit("x".to_owned(), now + EVERY), None);
        let later = now + 1000 * EVERY;
        assert_eq!((0..100).filter(|_| budget.admit(String::new(), later).is_some()).count(), 20);
    }
}

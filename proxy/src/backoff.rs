//! How long to wait before what failed is tried again: doubling from a first to a longest wait.

use std::time::Duration;

/// The waits after failures in a row.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits from `first` to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The wait after one more failure.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = wait.saturating_mul(2).min(self.longest);
        wait
    }

    /// The wait after one more failure, spread over all of its length: what failed for many at once must not
    /// be tried again by all of them at once. `random` is in 0..1.
    pub fn wait_spread(&mut self, random: f64) -> Duration {
        self.wait().mul_f64(random.clamp(0.0, 1.0))
    }

    /// It worked: the next failure is a first one.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_millis(350);

    #[test]
    fn the_wait_doubles_up_to_the_longest() {
        let mut backoff = Backoff::new(FIRST, LONGEST);
        let waits: Vec<_> = (0..4).map(|_| backoff.wait().as_millis()).collect();
        assert_eq!(waits, [100, 200, 350, 350]);
        backoff.reset();
        assert_eq!(backoff.wait(), FIRST);
    }

    #[test]
    fn a_spread_wait_is_a_share_of_the_whole() {
        let mut backoff = Backoff::new(FIRST, LONGEST);
        assert_eq!(backoff.wait_spread(0.5).as_millis(), 50);
        assert_eq!(backoff.wait_spread(0.0), Duration::ZERO);
        assert_eq!(backoff.wait_spread(1.0), LONGEST);
    }
}

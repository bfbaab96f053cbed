//! When checks in a row change what is thought of a worker.

/// What is thought of a worker.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    healthy: bool,
    /// Whether any check has been passed: the first that is ends a start, whatever the threshold.
    proved: bool,
    /// Checks in a row that say otherwise.
    against: u32,
}

impl Verdict {
    pub(super) fn new(healthy: bool) -> Self {
        Self { healthy, proved: healthy, against: 0 }
    }

    /// Takes one check's result; says what the worker is from now on, when that changes.
    pub(super) fn observe(&mut self, passed: bool, healthy_after: u32, unhealthy_after: u32) -> Option<bool> {
        let first = passed && !self.proved;
        self.proved |= passed;
        if passed == self.healthy {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = if passed { healthy_after } else { unhealthy_after };
        if !first && self.against < needed {
            return None;
        }
        self.healthy = passed;
        self.against = 0;
        Some(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(verdict: &mut Verdict, results: &[bool]) -> Vec<Option<bool>> {
        results.iter().map(|passed| verdict.observe(*passed, 2, 3)).collect()
    }

    #[test]
    fn only_failures_in_a_row_make_it_unhealthy() {
        let mut verdict = Verdict::new(true);
        let changes = observed(&mut verdict, &[false, false, true, false, false, false, false]);
        assert_eq!(changes, [None, None, None, None, None, Some(false), None]);
    }

    #[test]
    fn only_passes_in_a_row_make_it_healthy_again() {
        let mut verdict = Verdict::new(true);
        observed(&mut verdict, &[false, false, false]);
        assert_eq!(observed(&mut verdict, &[true, false, true, true]), [None, None, None, Some(true)]);
    }

    #[test]
    fn one_pass_ends_a_start() {
        let mut verdict = Verdict::new(false);
        assert_eq!(observed(&mut verdict, &[false, true]), [None, Some(true)]);
    }
}

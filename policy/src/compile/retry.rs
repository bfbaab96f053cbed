//! The rules of `retry`.

use super::Check;
use crate::spec;

impl Check {
    pub(super) fn retries(&mut self, at: &str, section: Option<&spec::RetrySpec>) -> u32 {
        let retries = section.and_then(|section| section.num_retries).unwrap_or(2);
        self.number(&format!("{at}.numRetries"), retries, 0..=10)
    }
}

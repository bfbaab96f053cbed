//! The rules of `drain`.

use std::time::Duration;

use super::{Check, DAY, HOUR, MINUTE, SECOND};
use crate::effective;
use crate::spec;

impl Check {
    pub(super) fn drain(&mut self, at: &str, section: &spec::DrainSpec) -> effective::Drain {
        let zero = Duration::ZERO;
        effective::Drain {
            delay: self.duration(
                &format!("{at}.delay"),
                section.delay.as_ref(),
                5 * SECOND,
                [zero, 5 * MINUTE],
            ),
            timeout: self.duration(
                &format!("{at}.timeout"),
                section.timeout.as_ref(),
                20 * SECOND,
                [zero, HOUR],
            ),
            worker_timeout: self.duration(
                &format!("{at}.workerTimeout"),
                section.worker_timeout.as_ref(),
                5 * MINUTE,
                [zero, DAY],
            ),
        }
    }
}

//! The rules of `timeout`.

use std::time::Duration;

use super::{Check, DAY, MILLISECOND, MINUTE, SECOND};
use crate::effective;
use crate::spec;

impl Check {
    pub(super) fn timeout(&mut self, at: &str, section: &spec::TimeoutSpec) -> effective::Timeout {
        let no_limit = section.request.as_ref().is_some_and(|text| text.parse() == Ok(Duration::ZERO));
        let request_header = section.request_header.as_ref().map(|name| {
            self.token(&format!("{at}.requestHeader"), name, 128);
            name.to_ascii_lowercase()
        });
        effective::Timeout {
            request_header,
            connect: self.duration(
                &format!("{at}.connect"),
                section.connect.as_ref(),
                SECOND,
                [MILLISECOND, MINUTE],
            ),
            request: (!no_limit).then(|| {
                self.duration(&format!("{at}.request"), section.request.as_ref(), MINUTE, [MILLISECOND, DAY])
            }),
            idle: self.duration(&format!("{at}.idle"), section.idle.as_ref(), 5 * MINUTE, [SECOND, DAY]),
        }
    }
}

//! How many requests each client may send.
//!
//! There is one algorithm, the token bucket; what tells clients apart is the caller's to say, as a key of bytes.

mod keys;
mod token_bucket;

use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;

pub use self::keys::{Keys, MAX_KEYS};
pub use self::token_bucket::TokenBucket;

/// What a limit says of one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision {
    /// Whether it may pass.
    pub allowed: bool,
    /// Requests that may follow at once.
    pub remaining: u32,
    /// Until the bucket is full.
    pub reset: Duration,
    /// Until the next request may pass; zero when this one does.
    pub retry_after: Duration,
}

impl Decision {
    /// The member of the field `RateLimit` (draft-ietf-httpapi-ratelimit-headers-10) for the limit of this name.
    ///
    /// `t` is when more may be sent. For a request that passed that is when the bucket is full; for one that did
    /// not it is when the next may pass: the draft wants `Retry-After` to be no earlier than `t`, and to hold a
    /// client back until its bucket is full would be longer than the limit asks.
    pub fn header(&self, name: &str) -> HeaderValue {
        let until = if self.allowed { self.reset } else { self.retry_after };
        let seconds = until.as_secs() + u64::from(until.subsec_nanos() != 0);
        let (mut remaining, mut left) = (itoa::Buffer::new(), itoa::Buffer::new());
        let (remaining, left) = (remaining.format(self.remaining), left.format(seconds));
        let parts = ["\"", name, "\";r=", remaining, ";t=", left];
        // One allocation of the right length: `Bytes` takes it as it is.
        let mut text = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
        parts.iter().for_each(|part| text.extend_from_slice(part.as_bytes()));
        HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or_else(|_| HeaderValue::from_static(""))
    }
}

/// The member of the field `RateLimit-Policy` for a limit.
fn policy_header(name: &str, quota: u32, window: Duration) -> HeaderValue {
    header_value(format!("\"{name}\";q={quota};w={}", window.as_secs().max(1)).as_bytes())
}

/// A name of letters, digits, `-` and `_`, as policies have them, is always a valid value; were one not, the field
/// would be empty, which a reader of lists takes for no field.
fn header_value(text: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_those_of_the_draft() {
        let passed = Decision {
            allowed: true,
            remaining: 50,
            reset: Duration::from_millis(29_001),
            retry_after: Duration::ZERO,
        };
        assert_eq!(passed.header("per-client"), r#""per-client";r=50;t=30"#);
        let refused =
            Decision { allowed: false, remaining: 0, retry_after: Duration::from_millis(600), ..passed };
        assert_eq!(refused.header("x"), r#""x";r=0;t=1"#);
        assert_eq!(policy_header("x", 100, Duration::from_secs(60)), r#""x";q=100;w=60"#);
    }
}

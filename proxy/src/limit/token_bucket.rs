//! The token bucket, as the Generic Cell Rate Algorithm counts it (ITU-T I.371, annex A).
//!
//! A bucket holds `burst` tokens and gains `requests` of them per `period`; each request takes one. Instead of tokens
//! the algorithm stores one time per client, the *theoretical arrival time*: when the bucket will be full again. It
//! lies as far ahead as there are tokens missing, so to wait needs no timer and to refill needs no work.
//!
//! Times are nanoseconds. The time between two tokens is rounded up: a limit admits less than it says by at most a
//! nanosecond per request, never more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue};
use outrigger_policy::effective::{Limit, LimitKey};

use super::keys::Keys;
use super::{Decision, policy_header};

/// A limit, and what each of its clients has used.
pub struct TokenBucket {
    limit: Limit,
    /// The field that tells clients apart, where one does.
    header: Option<HeaderName>,
    policy_header: HeaderValue,
    /// Between two tokens.
    interval: u64,
    /// From empty to full.
    depth: u64,
    clients: Arc<Clients>,
}

/// What is known of a limit's clients, in the table of all limits.
struct Clients {
    full_at: Arc<Keys>,
    /// Tells the clients of this limit from those of others, and is never used again.
    limit: u64,
}

/// From empty to full, at most: 146 years. It keeps all sums within 64 bits, and shortens only bursts that would
/// take longer to come back.
const MAX_DEPTH: u64 = 1 << 62;

impl TokenBucket {
    /// The buckets of this limit. They are those of the previous one, with what clients have used, when both have
    /// one name and tell clients apart by the same thing. What a client has used is then kept as time until its
    /// bucket is full, but never as more than an empty bucket takes under the new numbers.
    pub fn next(previous: Option<&Self>, limit: &Limit, table: &Arc<Keys>) -> Self {
        static LIMITS: AtomicU64 = AtomicU64::new(0);
        let same = previous
            .filter(|previous| (&previous.limit.name, &previous.limit.key) == (&limit.name, &limit.key));
        let clients = same.map_or_else(
            || Arc::new(Clients { full_at: table.clone(), limit: LIMITS.fetch_add(1, Relaxed) }),
            |previous| previous.clients.clone(),
        );
        let period = u64::try_from(limit.period.as_nanos()).unwrap_or(u64::MAX);
        let interval = period.div_ceil(u64::from(limit.requests.max(1))).clamp(1, MAX_DEPTH);
        let burst = u64::from(limit.burst.max(1)).min(MAX_DEPTH / interval);
        let header = match &limit.key {
            LimitKey::Header(name) => name.parse().ok(), // the policy names only fields that can be
            LimitKey::SourceAddress => None,
        };
        Self {
            limit: limit.clone(),
            header,
            policy_header: policy_header(&limit.name, limit.requests, limit.period),
            interval,
            depth: burst * interval,
            clients,
        }
    }

    /// What the policy says.
    pub fn limit(&self) -> &Limit {
        &self.limit
    }

    /// What tells clients apart.
    pub fn key(&self) -> &LimitKey {
        &self.limit.key
    }

    /// The field that tells clients apart; `None` where their addresses do.
    pub fn header(&self) -> Option<&HeaderName> {
        self.header.as_ref()
    }

    /// The member of the field `RateLimit-Policy`.
    pub fn policy_header(&self) -> &HeaderValue {
        &self.policy_header
    }

    /// Takes a token of this client's, if there is one.
    pub fn check(&self, key: &[u8], now: Instant) -> Decision {
        let Clients { full_at, limit } = &*self.clients;
        let now = full_at.nanos(now).min(MAX_DEPTH);
        full_at.update((*limit, key), now, |full_at| self.take(full_at, now))
    }

    /// The whole algorithm: when the bucket will be full, if a token is taken, and the decision.
    fn take(&self, full_at: u64, now: u64) -> (Option<u64>, Decision) {
        let missing = full_at.saturating_sub(now).min(self.depth);
        let missing_after = missing + self.interval;
        if self.depth < missing_after {
            let retry_after = Duration::from_nanos(missing_after - self.depth);
            let reset = Duration::from_nanos(missing);
            // A debt from before the numbers became smaller is cut to what the bucket can owe.
            let cut = (now + missing < full_at).then_some(now + missing);
            return (cut, Decision { allowed: false, remaining: 0, reset, retry_after });
        }
        let remaining = (self.depth - missing_after) / self.interval;
        let decision = Decision {
            allowed: true,
            remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
            reset: Duration::from_nanos(missing_after),
            retry_after: Duration::ZERO,
        };
        (Some(now + missing_after), decision)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limit::MAX_KEYS;

    const SECOND: Duration = Duration::from_secs(1);

    fn limit(requests: u32, period: Duration, burst: u32) -> Limit {
        Limit { name: "per-client".into(), key: LimitKey::SourceAddress, requests, period, burst }
    }

    fn bucket(previous: Option<&TokenBucket>, limit: &Limit) -> TokenBucket {
        TokenBucket::next(previous, limit, &Arc::default())
    }

    fn admitted(bucket: &TokenBucket, requests: usize, now: Instant) -> usize {
        (0..requests).filter(|_| bucket.check(b"client", now).allowed).count()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let (bucket, start) = (bucket(None, &limit(10, SECOND, 3)), Instant::now());
        let decisions: Vec<_> = (0..4).map(|_| bucket.check(b"client", start)).collect();
        assert_eq!(decisions.iter().map(|d| d.remaining).collect::<Vec<_>>(), [2, 1, 0, 0]);
        let millis = Duration::from_millis;
        let refused = Decision { allowed: false, remaining: 0, reset: millis(300), retry_after: millis(100) };
        assert_eq!(decisions[3], refused);
        assert!(bucket.check(b"another", start).allowed);
        assert_eq!(admitted(&bucket, 9, start + millis(99)), 0);
        assert_eq!(admitted(&bucket, 9, start + millis(100)), 1);
        assert_eq!(admitted(&bucket, 9, start + 60 * SECOND), 3);
    }

    #[test]
    fn a_change_of_numbers_keeps_what_was_used() {
        let start = Instant::now();
        let slow = bucket(None, &limit(1, 3600 * SECOND, 5));
        assert_eq!(admitted(&slow, 9, start), 5);
        let same = bucket(Some(&slow), &limit(1, 3600 * SECOND, 5));
        assert_eq!(admitted(&same, 9, start), 0);
        let fast = bucket(Some(&same), &limit(10, SECOND, 5));
        assert_eq!(admitted(&fast, 9, start), 0, "still empty");
        assert_eq!(admitted(&fast, 9, start + SECOND / 10), 1, "and filled at the new rate");
        let other_key = Limit { key: LimitKey::Header("x".into()), ..limit(10, SECOND, 5) };
        assert_eq!(admitted(&bucket(Some(&fast), &other_key), 9, start), 5);
    }

    #[test]
    fn memory_is_bounded() {
        let (bucket, now) = (bucket(None, &limit(1, 3600 * SECOND, 10)), Instant::now());
        for client in 0..1_000_000u32 {
            assert!(bucket.check(&client.to_be_bytes(), now).allowed);
        }
        assert_eq!(bucket.clients.full_at.len(), MAX_KEYS);
    }

    #[test]
    fn threads_share_a_bucket() {
        let (bucket, now) = (bucket(None, &limit(1, 3600 * SECOND, 1000)), Instant::now());
        let total: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| admitted(&bucket, 600, now))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!(total, 1000);
    }

    fn numbers() -> impl Strategy<Value = Limit> {
        let number = || prop_oneof![1..20u32, 1..=10_000_000u32, Just(10_000_000)];
        let period = prop_oneof![Just(SECOND), Just(60 * SECOND), Just(3600 * SECOND)];
        (number(), period, number()).prop_map(|(requests, period, burst)| limit(requests, period, burst))
    }

    /// Mostly about as long as a token takes, sometimes nothing, sometimes very long.
    fn pauses() -> impl Strategy<Value = Vec<f64>> {
        let pause = prop_oneof![3 => Just(0.0), 5 => 0.0..2.0, 1 => 0.0..1e4, 1 => Just(1e12)];
        prop::collection::vec(pause, 1..200)
    }

    proptest! {
        /// Over any interval no more is admitted than a burst and what comes back in that time.
        #[test]
        fn never_more_than_burst_and_rate(limit in numbers(), pauses in pauses()) {
            let bucket = bucket(None, &limit);
            let mut now = Instant::now();
            let mut passed = Vec::new();
            for pause in pauses {
                let token = limit.period.as_secs_f64() / f64::from(limit.requests);
                now += Duration::from_secs_f64((token * pause).min(1e9));
                if bucket.check(b"client", now).allowed {
                    passed.push(now);
                }
            }
            for (i, from) in passed.iter().enumerate() {
                for (j, to) in passed.iter().enumerate().skip(i) {
                    // admitted ≤ burst + rate · time, without rounding
                    let beyond = (j - i + 1).saturating_sub(limit.burst as usize) as u128;
                    let earned = (*to - *from).as_nanos() * u128::from(limit.requests);
                    prop_assert!(beyond * limit.period.as_nanos() <= earned, "{i}..={j}");
                }
            }
        }

        /// What a decision promises comes true.
        #[test]
        fn decisions_are_consistent(limit in numbers(), pauses in pauses()) {
            let bucket = bucket(None, &limit);
            let (mut full_at, mut now) = (0, 1);
            for pause in pauses {
                now += ((bucket.interval as f64 * pause) as u64).min(1 << 55);
                let (next, decision) = bucket.take(full_at, now);
                prop_assert_eq!(decision.allowed, next.is_some());
                full_at = next.unwrap_or(full_at);
                prop_assert!(decision.remaining < limit.burst);
                let retry_after = decision.retry_after.as_nanos() as u64;
                let after = |time: u64| bucket.take(full_at, now + time).1;
                if decision.allowed {
                    prop_assert_eq!(retry_after, 0);
                    prop_assert_eq!(after(0).allowed, decision.remaining != 0);
                } else {
                    prop_assert!(after(retry_after).allowed && !after(retry_after - 1).allowed);
                }
                let full = after(decision.reset.as_nanos() as u64);
                prop_assert_eq!(u64::from(full.remaining) + 1, bucket.depth / bucket.interval);
            }
        }
    }
}

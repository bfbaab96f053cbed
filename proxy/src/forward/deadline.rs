//! Until when an answer is of use: as long as the policy says, from when a worker has all of the request, or as long as the
//! client waits where that is sooner. The worker is told what is left. A client only ever shortens: what it says cannot hold a worker up.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};
use outrigger_policy::units::DurationText;

use crate::snapshot::Route;

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// A request's deadline.
#[derive(Clone, Debug)]
pub struct Deadline {
    /// How long the policy waits for a worker that has all of the request.
    pub policy: Option<Duration>,
    /// When the client does.
    pub client: Option<Instant>,
    field: Field,
}

/// Where the worker is told what is left.
#[derive(Clone, Debug)]
enum Field {
    None,
    /// `grpc-timeout`: only what the client said. It is for the whole call, and the policy's limit for the head.
    Grpc,
    Millis(HeaderName),
    Text(HeaderName),
}

impl Deadline {
    /// What the policy and the head of a request say.
    pub fn of(route: &Route, headers: &HeaderMap, grpc: bool, started: Instant) -> Self {
        let mut deadline = Self { policy: route.policy.timeout.request, client: None, field: Field::None };
        if let Some(name) = &route.deadline_header {
            let (said, field) = match headers.get(name).and_then(|value| value.to_str().ok()) {
                Some(text) => match text.trim().parse() {
                    Ok(millis) => (Some(Duration::from_millis(millis)), Field::Millis(name.clone())),
                    Err(_) => (DurationText(text.to_owned()).parse().ok(), Field::Text(name.clone())),
                },
                None => (None, Field::Millis(name.clone())),
            };
            deadline.client = said.and_then(|limit| started.checked_add(limit));
            deadline.field = field;
        }
        if grpc
            && let Some(limit) = headers.get(GRPC_TIMEOUT).and_then(|value| grpc_timeout(value.as_bytes()))
        {
            deadline.client = started.checked_add(limit);
            deadline.field = Field::Grpc;
        }
        deadline
    }

    /// When the policy gives up on a request that a worker had whole at this time; `None`: its body is still on its way.
    fn policy_at(&self, whole: Option<Instant>) -> Option<Instant> {
        whole?.checked_add(self.policy?)
    }

    /// The sooner of both, for such a request.
    pub fn at(&self, whole: Option<Instant>) -> Option<Instant> {
        match (self.policy_at(whole), self.client) {
            (Some(policy), Some(client)) => Some(policy.min(client)),
            (policy, client) => policy.or(client),
        }
    }

    /// Whether it is the client that does not wait as long as the policy would.
    pub fn is_the_clients(&self, whole: Option<Instant>) -> bool {
        self.client.is_some_and(|client| self.policy_at(whole).is_none_or(|policy| client < policy))
    }

    /// Writes what is left into a request that is about to be sent. While its body is on its way only the client knows: were
    /// the policy's limit told, a slow client could have the worker give up.
    pub fn write(&self, headers: &mut HeaderMap, whole: Option<Instant>, now: impl FnOnce() -> Instant) {
        let (name, at) = match &self.field {
            Field::None => return,
            Field::Grpc => (&GRPC_TIMEOUT, self.client),
            Field::Millis(name) | Field::Text(name) => (name, self.at(whole)),
        };
        let Some(at) = at else { return };
        let left = at.saturating_duration_since(now());
        let text = match &self.field {
            Field::Grpc => grpc_text(left),
            Field::Text(_) => DurationText::from(Duration::from_millis(millis(left))).0,
            Field::Millis(_) | Field::None => millis(left).to_string(),
        };
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(name.clone(), value);
        }
    }
}

/// At least one: to a worker 0 may mean that there is no limit.
fn millis(left: Duration) -> u64 {
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Up to eight digits and a unit ("gRPC over HTTP2", Requests).
fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || 8 < digits.len() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// In the smallest unit that eight digits suffice for.
fn grpc_text(left: Duration) -> String {
    const MOST: u128 = 99_999_999;
    if left.as_micros() <= MOST {
        format!("{}u", left.as_micros().max(1))
    } else if left.as_millis() <= MOST {
        format!("{}m", left.as_millis())
    } else {
        format!("{}S", u128::from(left.as_secs()).min(MOST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_and_written() {
        for (text, millis) in [("1H", 3_600_000), ("2M", 120_000), ("3S", 3000), ("4m", 4), ("5000u", 5)] {
            assert_eq!(grpc_timeout(text.as_bytes()), Some(Duration::from_millis(millis)), "{text}");
        }
        for wrong in ["", "S", "1", "123456789S", "-1S", "1s", "1.5S"] {
            assert_eq!(grpc_timeout(wrong.as_bytes()), None, "{wrong}");
        }
        for (left, text) in [(0, "1u"), (1, "1000u"), (99_999, "99999000u"), (100_000, "100000m")] {
            assert_eq!(grpc_text(Duration::from_millis(left)), text);
        }
        assert_eq!(grpc_text(Duration::from_secs(360_000)), "360000S");
    }

    fn deadline(policy: u64, client: u64, field: Field) -> (Deadline, Instant) {
        let now = Instant::now();
        let policy = Some(Duration::from_millis(policy));
        (Deadline { policy, client: Some(now + Duration::from_millis(client)), field }, now)
    }

    #[test]
    fn a_client_only_shortens() {
        let (shorter, now) = deadline(1000, 300, Field::None);
        let whole = Some(now);
        assert!(shorter.is_the_clients(whole) && shorter.at(whole) == Some(now + Duration::from_millis(300)));
        let (longer, now) = deadline(1000, 3000, Field::None);
        let whole = Some(now);
        assert!(!longer.is_the_clients(whole) && longer.at(whole) == Some(now + Duration::from_millis(1000)));
        let late = Some(now + Duration::from_millis(2500));
        assert!(
            longer.is_the_clients(late),
            "its upload took so long that the client is the first to give up"
        );
        assert!(
            longer.is_the_clients(None) && longer.at(None) == longer.client,
            "while the body is on its way"
        );
    }

    #[test]
    fn the_worker_is_told_what_is_left() {
        let name = HeaderName::from_static("x-request-timeout");
        for (field, name, text) in [
            (Field::Millis(name.clone()), &name, "200"),
            (Field::Text(name.clone()), &name, "200ms"),
            (Field::Grpc, &GRPC_TIMEOUT, "200000u"),
        ] {
            let (deadline, now) = deadline(1000, 300, field);
            let mut headers = HeaderMap::new();
            deadline.write(&mut headers, Some(now), || now + Duration::from_millis(100));
            assert_eq!(headers.get(name).and_then(|value| value.to_str().ok()), Some(text));
        }
        let (deadline, now) = deadline(1000, 3000, Field::Grpc);
        let mut headers = HeaderMap::new();
        deadline.write(&mut headers, Some(now), || now);
        assert_eq!(headers[GRPC_TIMEOUT], "3000000u", "the policy's limit is not for the whole call");
    }

    #[test]
    fn the_worker_is_not_told_a_limit_that_has_not_begun() {
        let name = HeaderName::from_static("x-request-timeout");
        let (mut deadline, now) = deadline(1000, 3000, Field::Millis(name.clone()));
        let mut headers = HeaderMap::new();
        deadline.write(&mut headers, None, || now);
        assert_eq!(headers[&name], "3000", "what the client said");
        (deadline.client, headers) = (None, HeaderMap::new());
        deadline.write(&mut headers, None, || now);
        assert!(headers.is_empty());
        deadline.write(&mut headers, Some(now), || now);
        assert_eq!(headers[&name], "1000");
    }
}

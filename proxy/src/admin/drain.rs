//! `POST /api/workers/{name}/drain?expires=10m&reason=…` takes a worker out of service, and `…/undrain` takes that back.
//! An order always expires: what somebody did by hand must not outlast what he knew.

use std::time::{Duration, Instant};

use http::StatusCode;
use outrigger_policy::units::DurationText;

use super::view::Drain;
use super::{Admin, Answer, JSON, answer, text};
use crate::drain;
use crate::drain::worker::Order;

const LONGEST: Duration = Duration::from_secs(86_400);
const LONGEST_REASON: usize = 256;

/// What is asked of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    Drain,
    Undrain,
}

/// The worker and what is asked of it, if the path is one of these.
pub(super) fn asked(path: &str) -> Option<(&str, Ask)> {
    let (name, ask) = path.strip_prefix("/api/workers/")?.split_once('/')?;
    match ask {
        "drain" => Some((name, Ask::Drain)),
        "undrain" => Some((name, Ask::Undrain)),
        _ => None,
    }
}

impl Admin {
    pub(super) fn drain(&self, (name, ask): (&str, Ask), query: &str, now: Instant) -> Answer {
        let order = match ask {
            Ask::Undrain => None,
            Ask::Drain => match order(query, now) {
                Ok(order) => Some(order),
                Err(why) => return text(StatusCode::BAD_REQUEST, format!("{why}\n")),
            },
        };
        let snapshot = self.control.snapshot();
        let Some(worker) = snapshot.workers.iter().find(|worker| worker.name == name) else {
            return text(StatusCode::NOT_FOUND, String::from("there is no worker of this name\n"));
        };
        tracing::warn!(worker = name, ?ask, reason = order.as_ref().map(|order| &order.reason), "order");
        worker.drain.order(order);
        drain::follow(&self.control, now);
        match serde_json::to_vec(&Drain::of(worker, now)) {
            Ok(json) => answer(StatusCode::OK, JSON, json),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }
}

fn order(query: &str, now: Instant) -> Result<Order, String> {
    let field = |name: &str| {
        let found = query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name);
        found.map(|(_, value)| decoded(value))
    };
    let expires = field("expires").ok_or("needs `expires`, such as `?expires=10m&reason=…`")?;
    let lasting = match DurationText(expires.clone()).parse() {
        Ok(lasting) if Duration::ZERO < lasting && lasting <= LONGEST => lasting,
        Ok(_) => return Err(format!("`expires` must be at most 24h and more than nothing, not '{expires}'")),
        Err(error) => return Err(format!("`expires` {error}, not '{expires}'")),
    };
    let reason = field("reason").filter(|reason| !reason.is_empty()).ok_or("needs a `reason`")?;
    if LONGEST_REASON < reason.len() {
        return Err(format!("`reason` must have at most {LONGEST_REASON} bytes"));
    }
    Ok(Order { until: now + lasting, reason })
}

/// A value of a query, as forms write it.
fn decoded(value: &str) -> String {
    let mut bytes = value.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [bytes.next(), bytes.next()].map(|digit| char::from(digit?).to_digit(16));
                match digits {
                    [Some(high), Some(low)] => (high << 4 | low) as u8,
                    _ => b'?', // a broken escape in a text for people
                }
            }
            byte => byte,
        });
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_name_a_worker_an_end_and_a_reason() {
        assert_eq!(asked("/api/workers/worker-a/drain"), Some(("worker-a", Ask::Drain)));
        assert_eq!(asked("/api/workers/worker-a/undrain"), Some(("worker-a", Ask::Undrain)));
        assert_eq!(asked("/api/workers/worker-a"), None);
        assert_eq!(asked("/api/workers/a/b/drain"), None);
        let now = Instant::now();
        let given = order("expires=10m&reason=new+disk%21", now).expect("an order");
        assert_eq!((given.until, given.reason.as_str()), (now + Duration::from_secs(600), "new disk!"));
        for wrong in [
            "",
            "expires=10m",
            "reason=x",
            "expires=0s&reason=x",
            "expires=25h&reason=x",
            "expires=&reason=x",
        ] {
            assert!(order(wrong, now).is_err(), "{wrong}");
        }
        assert!(order(&format!("expires=1m&reason={}", "x".repeat(257)), now).is_err());
        assert_eq!(decoded("%C3%A4%zz%4"), "ä??");
    }
}

//! `POST /api/workers/{name}/drain` takes a worker out of service for a while, and `…/undrain` takes that back.

use std::time::Instant;

use bytes::Bytes;
use http::{Method, Request, StatusCode};

use super::view::Drain;
use super::{Admin, Answer, is_json, not_json, only, order, text, to_json};
use crate::drain;
use crate::drain::worker::Order;

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
    /// Does what is asked of a worker. Who may has been asked already.
    pub(super) fn drain(&self, (name, ask): (&str, Ask), request: &Request<Bytes>, now: Instant) -> Answer {
        if request.method() != Method::POST {
            return only("POST");
        }
        if !is_json(request.headers()) {
            return not_json();
        }
        let order = match ask {
            Ask::Undrain => None,
            Ask::Drain => match order::read(request.body()) {
                Ok(order) => Some(Order { until: now + order.holds, reason: order.reason }),
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
        to_json(StatusCode::OK, &Drain::of(&snapshot, worker, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_a_worker_and_what_is_asked_of_it() {
        assert_eq!(asked("/api/workers/worker-a/drain"), Some(("worker-a", Ask::Drain)));
        assert_eq!(asked("/api/workers/worker-a/undrain"), Some(("worker-a", Ask::Undrain)));
        assert_eq!(asked("/api/workers/worker-a"), None);
        assert_eq!(asked("/api/workers/a/b/drain"), None);
    }
}

//! `/api/breakers`: how every breaker stands, and what people tell them:
//! `POST /api/breakers/{worker/NAME|route/NAME|service}/{open|close|reset|half-open}`.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use outrigger_policy::effective::{BreakerMode, BreakerName};
use serde::Serialize;

use super::order::{self, Order};
use super::{Admin, Answer, is_json, not_json, only, text, to_json};
use crate::breaker::{Action, Command, Hold, Learned, View, watch};
use crate::snapshot::Snapshot;

/// A moment, on both clocks.
#[derive(Clone, Copy)]
struct Moment {
    now: Instant,
    unix_millis: i64,
}

/// One breaker.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    /// `worker/NAME`, `route/NAME` or `service`.
    name: String,
    level: &'static str,
    state: &'static str,
    mode: BreakerMode,
    /// Whether the policy configures a breaker here.
    configured: bool,
    /// Why it last left the closed state.
    cause: Option<String>,
    /// Why it stays closed though a rule says that it must open.
    held: Option<&'static str>,
    since: Option<String>,
    /// When a request may pass that is refused now.
    next_probe: Option<String>,
    #[serde(rename = "override")]
    hold: Option<Held>,
    window: Window,
    consecutive_failures: u32,
    adaptive: Option<Adaptive>,
    /// Latest first.
    last_errors: Vec<LastError>,
    totals: Totals,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Held {
    by: &'static str,
    action: &'static str,
    reason: String,
    until: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Window {
    calls: u64,
    failures: u64,
    slow_calls: u64,
    /// In percent.
    failure_rate: f64,
    mean_latency_millis: f64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Adaptive {
    /// For people: "threshold 7.2 %, normal 1.8 %".
    failure_rate: String,
    latency: String,
    failure_rate_threshold: f64,
    normal_failure_rate: Option<f64>,
    latency_threshold_millis: f64,
    normal_latency_millis: Option<f64>,
}

#[derive(Serialize)]
struct LastError {
    at: String,
    error: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Totals {
    successful: u64,
    failed: u64,
    slow: u64,
    /// Requests that were refused; a worker's breaker refuses none, it is passed by.
    refused: u64,
    opened: u64,
}

impl Admin {
    /// Every breaker: of the service, the routes and the workers.
    pub(super) fn breakers(&self, now: Instant) -> Answer {
        let (snapshot, at) = (self.control.snapshot(), Moment { now, unix_millis: watch::unix_millis() });
        let gates = snapshot.gates().map(|gate| shown(gate.name(), gate.view(now), gate.refused(), at));
        let workers = snapshot.workers.iter().map(|worker| {
            let breaker = &worker.breaker;
            shown(breaker.name(), breaker.view(now), 0, at)
        });
        to_json(StatusCode::OK, &gates.chain(workers).collect::<Vec<_>>())
    }

    /// Does what somebody tells a breaker. Who may has been asked already.
    pub(super) fn order(&self, request: &Request<Bytes>) -> Answer {
        let Some((name, action)) = target(request.uri().path()) else {
            return text(StatusCode::NOT_FOUND, String::from("not found\n"));
        };
        if request.method() != Method::POST {
            return only("POST");
        }
        if !is_json(request.headers()) {
            return not_json();
        }
        let at = Moment { now: Instant::now(), unix_millis: watch::unix_millis() };
        match command(action, request.body(), at.unix_millis) {
            Ok(command) => tell(&self.control.snapshot(), &name, command, at),
            Err(reason) => text(StatusCode::BAD_REQUEST, format!("{reason}\n")),
        }
    }
}

/// The breaker and the action that a path names. The slash in a breaker's name may be encoded.
fn target(path: &str) -> Option<(BreakerName, Action)> {
    let (name, action) = path.strip_prefix("/api/breakers/")?.rsplit_once('/')?;
    let name = BreakerName::parse(&name.replace("%2F", "/").replace("%2f", "/"))?;
    let (_, action) = Action::ALL.into_iter().find(|(named, _)| *named == action)?;
    Some((name, action))
}

fn command(action: Action, body: &[u8], unix_millis: i64) -> Result<Command, String> {
    let Order { reason, holds } = order::read(body)?;
    let millis = i64::try_from(holds.as_millis()).unwrap_or(i64::MAX);
    Ok(Command { action, reason, until_unix_millis: unix_millis.saturating_add(millis) })
}

fn tell(snapshot: &Snapshot, name: &BreakerName, command: Command, at: Moment) -> Answer {
    let Moment { now, unix_millis } = at;
    let told = if let Some(gate) = snapshot.gates().find(|gate| gate.name() == name) {
        gate.command(command, now, unix_millis).map(|()| shown(name, gate.view(now), gate.refused(), at))
    } else if let Some(worker) = snapshot.workers.iter().find(|worker| worker.breaker.name() == name) {
        worker
            .breaker
            .command(command, now, unix_millis)
            .map(|()| shown(name, worker.breaker.view(now), 0, at))
    } else {
        return text(StatusCode::NOT_FOUND, format!("there is no {} '{}'\n", name.level(), name.name()));
    };
    match told {
        Ok(shown) => to_json(StatusCode::OK, &shown),
        Err(error) => text(StatusCode::CONFLICT, format!("{error}\n")),
    }
}

fn shown(name: &BreakerName, view: View, refused: u64, at: Moment) -> Shown {
    let failure_rate = 100.0 * ratio(view.failures, view.calls);
    Shown {
        name: name.to_string(),
        level: name.level(),
        state: view.state,
        mode: view.mode,
        configured: view.configured,
        cause: view.cause,
        held: view.held,
        since: view.since.map(|since| at.earlier(since)),
        next_probe: view.open_remaining.map(|left| time(at.unix_millis.saturating_add(millis(left)))),
        hold: view.hold.map(|Hold { by, action, reason, until_unix_millis }| Held {
            by,
            action,
            reason,
            until: time(until_unix_millis),
        }),
        window: Window {
            calls: view.calls,
            failures: view.failures,
            slow_calls: view.slow_calls,
            failure_rate,
            mean_latency_millis: view.mean_latency.as_secs_f64() * 1e3,
        },
        consecutive_failures: view.consecutive_failures,
        adaptive: view.learned.map(adaptive),
        last_errors: view
            .errors
            .iter()
            .map(|error| LastError { at: at.earlier(error.at), error: error.outcome.to_string() })
            .collect(),
        totals: Totals {
            successful: view.tally.successful,
            failed: view.tally.failed,
            slow: view.tally.slow,
            refused,
            opened: view.times_opened,
        },
    }
}

fn adaptive(learned: Learned) -> Adaptive {
    let words = |threshold: f64, normal: Option<f64>, unit: &str| match normal {
        Some(normal) => format!("threshold {threshold:.1} {unit}, normal {normal:.1} {unit}"),
        None => format!("threshold {threshold:.1} {unit}, normal not learned yet"),
    };
    Adaptive {
        failure_rate: words(learned.failure_rate_threshold, learned.normal_failure_rate, "%"),
        latency: words(learned.latency_threshold_millis, learned.normal_latency_millis, "ms"),
        failure_rate_threshold: learned.failure_rate_threshold,
        normal_failure_rate: learned.normal_failure_rate,
        latency_threshold_millis: learned.latency_threshold_millis,
        normal_latency_millis: learned.normal_latency_millis,
    }
}

impl Moment {
    /// The wall clock of a time that has passed.
    fn earlier(&self, then: Instant) -> String {
        time(self.unix_millis.saturating_sub(millis(self.now.saturating_duration_since(then))))
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a window are far below 2^52")]
fn ratio(part: u64, of: u64) -> f64 {
    part as f64 / of.max(1) as f64
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// As RFC 3339 has it.
fn time(unix_millis: i64) -> String {
    jiff::Timestamp::from_millisecond(unix_millis).map(|time| time.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests;

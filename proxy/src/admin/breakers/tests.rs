use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::BodyExt;
use outrigger_policy::merge::Merged;
use outrigger_policy::wire::{KeyRing, Update};
use serde_json::Value;

use super::super::JSON;
use super::*;
use crate::breaker::{Call, Outcome};
use crate::control::Control;
use crate::drain::Lifecycle;
use crate::snapshot::Source;
use crate::worker::Worker;

const HERE: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn admin(spec: &str) -> Admin {
    let workers = ["a", "b"].map(|name| Worker::new(name, SocketAddr::from(([127, 0, 0, 1], 8081))));
    let control = Control::new(workers.into());
    let merged = Merged { spec: serde_yaml::from_str(spec).expect("a spec"), ..Merged::default() };
    control.apply(&Update::new(merged, KeyRing::default()), Source::File).expect("valid");
    Admin {
        control,
        lifecycle: Lifecycle::default(),
        tasks: crate::essential::Tasks::new(Lifecycle::default()),
        push: Arc::default(),
        metrics: Box::new(|| String::from("# EOF\n")),
        token: Some(Box::new(|| Some(b"secret".to_vec()))),
        open_on_loopback: false,
        started: Instant::now(),
        configured_workers: 0,
        beginning: Arc::default(),
    }
}

async fn post(admin: &Admin, path: &str, body: &str) -> (StatusCode, String) {
    let request = Request::post(format!("/api/breakers/{path}"))
        .header("authorization", "Bearer secret")
        .header("content-type", "application/json");
    let request = request.body(Bytes::from(body.to_owned())).expect("a request");
    read(admin.answer(&request, HERE)).await
}

async fn read(answer: Answer) -> (StatusCode, String) {
    let (head, body) = answer.into_parts();
    let body = body.collect().await.expect("whole").to_bytes();
    (head.status, String::from_utf8(body.to_vec()).expect("text"))
}

async fn list(admin: &Admin) -> Value {
    let request = Request::get("/api/breakers").header("authorization", "Bearer secret");
    let (status, body) = read(admin.answer(&request.body(Bytes::new()).expect("a request"), HERE)).await;
    assert_eq!(status, StatusCode::OK);
    serde_json::from_str(&body).expect("JSON")
}

const ORDER: &str = r#"{"reason": "a leak in v2", "expiresIn": "10m"}"#;

#[tokio::test]
async fn every_breaker_is_listed_with_what_it_saw() {
    let admin = admin("circuitBreaker: {worker: {consecutiveFailures: 2, adaptive: {}}}");
    let (worker, now) = (admin.control.snapshot().workers[0].clone(), Instant::now());
    for _ in 0..2 {
        let call = Call { outcome: Outcome::Answered(503), latency: Duration::from_millis(4) };
        worker.acquire(now).expect("closed").finish(call, now);
    }
    let listed = list(&admin).await;
    let names: Vec<_> = listed.as_array().expect("a list").iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names, ["service", "route/default", "worker/a", "worker/b"]);
    let (service, worker) = (&listed[0], &listed[2]);
    assert_eq!((&service["configured"], &service["state"]), (&false.into(), &"closed".into()));
    assert_eq!((&worker["state"], &worker["mode"]), (&"open".into(), &"Enforced".into()));
    assert_eq!(worker["cause"], "2 failures in a row");
    assert_eq!(worker["window"]["failures"], 2);
    assert_eq!(worker["window"]["failureRate"], 100.0);
    assert_eq!(worker["window"]["meanLatencyMillis"], 4.0);
    assert_eq!(worker["lastErrors"][1]["error"], "status 503");
    assert_eq!(worker["adaptive"]["failureRate"], "threshold 50.0 %, normal not learned yet");
    let parsed =
        |field: &str| worker[field].as_str().expect("a time").parse::<jiff::Timestamp>().expect("RFC 3339");
    assert!(parsed("since") < parsed("nextProbe"));
}

#[tokio::test]
async fn a_breaker_does_what_it_is_told_until_it_is_over() {
    let admin = admin("circuitBreaker: {worker: {}}");
    let snapshot = admin.control.snapshot();
    let (worker, now) = (&snapshot.workers[0], Instant::now());
    for (path, state, action) in [
        ("worker/a/open", "open", "open"),
        ("worker%2Fa/close", "closed", "close"),
        ("worker%2fa/half-open", "half-open", "half-open"),
        ("worker/a/reset", "closed", "reset"),
    ] {
        let (status, body) = post(&admin, path, ORDER).await;
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        let shown: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(
            (&shown["state"], &shown["override"]["action"]),
            (&state.into(), &action.into()),
            "{path}"
        );
        assert_eq!(shown["override"]["reason"], "a leak in v2");
        assert_eq!(worker.usable(now), state != "open", "{path}");
    }
    for path in ["service/open", "route/default/open"] {
        assert_eq!(post(&admin, path, ORDER).await.0, StatusCode::OK, "an override needs no settings");
    }
    assert!(snapshot.service.view(now).state == "open" && snapshot.routes[0].gate.view(now).state == "open");
    assert_eq!(post(&admin, "service/half-open", ORDER).await.0, StatusCode::CONFLICT, "nothing could probe");
}

#[tokio::test]
async fn an_order_that_is_not_whole_is_refused() {
    let admin = admin("{}");
    for (path, body, expected) in [
        ("worker/a/open", "", StatusCode::BAD_REQUEST),
        ("worker/a/open", r#"{"reason": "x"}"#, StatusCode::BAD_REQUEST),
        ("worker/a/open", r#"{"expiresIn": "1m"}"#, StatusCode::BAD_REQUEST),
        ("worker/a/open", r#"{"reason": "", "expiresIn": "1m"}"#, StatusCode::BAD_REQUEST),
        ("worker/a/open", r#"{"reason": "x", "expiresIn": "25h"}"#, StatusCode::BAD_REQUEST),
        ("worker/a/open", r#"{"reason": "x", "expiresIn": "soon"}"#, StatusCode::BAD_REQUEST),
        ("worker/a/open", r#"{"reason": "x", "expiresIn": "1m", "more": 1}"#, StatusCode::BAD_REQUEST),
        ("worker/c/open", ORDER, StatusCode::NOT_FOUND),
        ("route/none/open", ORDER, StatusCode::NOT_FOUND),
        ("worker/a/break", ORDER, StatusCode::NOT_FOUND),
        ("pod/a/open", ORDER, StatusCode::NOT_FOUND),
    ] {
        assert_eq!(post(&admin, path, body).await.0, expected, "{path} {body}");
    }
    let (_, reason) = post(&admin, "worker/a/open", "{}").await;
    assert!(reason.contains("expiresIn") && reason.contains("reason"), "{reason}");
    assert!(admin.control.snapshot().workers[0].usable(Instant::now()));
}

#[tokio::test]
async fn only_who_has_the_token_and_sends_json_may() {
    let admin = admin("{}");
    let ask = async |token: &str, kind: &str, method: Method| {
        let request = Request::builder().method(method).uri("/api/breakers/worker/a/open");
        let request = request.header("authorization", token).header("content-type", kind);
        read(admin.answer(&request.body(Bytes::from(ORDER)).expect("a request"), HERE)).await.0
    };
    assert_eq!(ask("Bearer wrong", JSON, Method::POST).await, StatusCode::UNAUTHORIZED);
    assert_eq!(ask("Bearer secret", "text/plain", Method::POST).await, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(ask("Bearer secret", JSON, Method::GET).await, StatusCode::METHOD_NOT_ALLOWED);
    assert!(admin.control.snapshot().workers[0].usable(Instant::now()));
    assert_eq!(ask("Bearer secret", "application/json; charset=utf-8", Method::POST).await, StatusCode::OK);
}

use outrigger_policy::merge::Merged;
use outrigger_policy::wire::{KeyRing, SessionKey, Update};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::drain::Delay;
use crate::siblings::Siblings;
use crate::snapshot::Source;
use crate::worker::Worker;

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 7));

fn admin() -> Admin {
    let worker = Worker::new("a", SocketAddr::from(([127, 0, 0, 1], 8081)));
    Admin {
        control: Control::new(vec![worker]),
        lifecycle: Lifecycle::default(),
        tasks: Tasks::new(Lifecycle::default()),
        push: Arc::default(),
        metrics: Box::new(|| String::from("# EOF\n")),
        token: None,
        open_on_loopback: true,
        started: Instant::now(),
        configured_workers: 0,
        beginning: Arc::default(),
    }
}

fn get(path: &str) -> http::request::Builder {
    Request::get(path).header("host", "localhost:9900")
}

fn ask(admin: &Admin, request: http::request::Builder, client: IpAddr) -> StatusCode {
    admin.answer(&request.body(Bytes::new()).expect("a request"), client).status()
}

async fn body(answer: Answer) -> Bytes {
    use http_body_util::BodyExt;
    answer.into_body().collect().await.expect("a whole body").to_bytes()
}

#[test]
fn health_and_metrics_are_open_to_all() {
    let admin = Admin { token: Some(Box::new(|| Some(b"secret".to_vec()))), ..admin() };
    for path in ["/livez", "/health", "/readyz", "/ready", "/metrics"] {
        assert_eq!(ask(&admin, get(path), ELSEWHERE), StatusCode::OK, "{path}");
        assert_eq!(ask(&admin, Request::head(path), ELSEWHERE), StatusCode::OK, "{path}");
        assert_eq!(ask(&admin, Request::post(path), ELSEWHERE), StatusCode::METHOD_NOT_ALLOWED, "{path}");
    }
    assert_eq!(ask(&admin, get("/"), ELSEWHERE), StatusCode::NOT_FOUND);
    assert_eq!(ask(&admin, get("/apis"), ELSEWHERE), StatusCode::NOT_FOUND);
}

#[test]
fn the_api_asks_for_the_token() {
    let admin = Admin { token: Some(Box::new(|| Some(b"secret".to_vec()))), ..admin() };
    let with = |value: &str| ask(&admin, get("/api/snapshot").header("authorization", value), HERE);
    assert_eq!(with("Bearer secret"), StatusCode::OK);
    assert_eq!(with("bearer secret"), StatusCode::OK);
    for wrong in ["Bearer secre", "Bearer secret2", "Bearer ", "Basic secret", "secret"] {
        assert_eq!(with(wrong), StatusCode::UNAUTHORIZED, "{wrong}");
    }
    assert_eq!(ask(&admin, get("/api/snapshot"), HERE), StatusCode::UNAUTHORIZED, "loopback is no token");
    assert_eq!(ask(&admin, get("/api/none"), HERE), StatusCode::UNAUTHORIZED, "nor is what exists told");
    let empty = Admin { token: Some(Box::new(|| None)), ..self::admin() };
    for given in ["Bearer ", "Bearer secret"] {
        let request = get("/api/snapshot").header("authorization", given);
        assert_eq!(
            ask(&empty, request, HERE),
            StatusCode::FORBIDDEN,
            "a file without a token lets nobody in"
        );
    }
    assert_eq!(ask(&empty, get("/api/snapshot"), HERE), StatusCode::UNAUTHORIZED);
}

#[test]
fn the_token_may_change() {
    let token = Arc::new(parking_lot::Mutex::new("old"));
    let now = token.clone();
    let admin = Admin { token: Some(Box::new(move || Some(now.lock().as_bytes().to_vec()))), ..admin() };
    let with = |value: &str| ask(&admin, get("/api/snapshot").header("authorization", value), HERE);
    assert_eq!((with("Bearer old"), with("Bearer new")), (StatusCode::OK, StatusCode::UNAUTHORIZED));
    *token.lock() = "new";
    assert_eq!((with("Bearer old"), with("Bearer new")), (StatusCode::UNAUTHORIZED, StatusCode::OK));
}

#[test]
fn without_a_token_the_api_is_open_to_this_machine_if_at_all() {
    let open = admin();
    assert_eq!(ask(&open, get("/api/snapshot"), HERE), StatusCode::OK);
    assert_eq!(ask(&open, get("/api/none"), HERE), StatusCode::NOT_FOUND);
    assert_eq!(ask(&open, get("/api/snapshot"), ELSEWHERE), StatusCode::FORBIDDEN);
    for host in ["127.0.0.1:9900", "[::1]:9900", "LOCALHOST"] {
        assert_eq!(
            ask(&open, Request::get("/api/snapshot").header("host", host), HERE),
            StatusCode::OK,
            "{host}"
        );
    }
    let rebound = Request::get("/api/snapshot").header("host", "evil.example:9900");
    assert_eq!(ask(&open, rebound, HERE), StatusCode::FORBIDDEN, "a browser was led here");
    let closed = Admin { open_on_loopback: false, ..admin() };
    assert_eq!(ask(&closed, get("/api/snapshot"), HERE), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn readiness_says_why_not() {
    let admin = admin();
    let worker = admin.control.snapshot().workers[0].clone();
    worker.set_healthy(true);
    worker.set_healthy(false);
    let answer = admin.answer(&get("/readyz").body(Bytes::new()).expect("a request"), ELSEWHERE);
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let why = body(answer).await;
    assert_eq!(
        why,
        "not ready: no worker is usable: of 1, 0 are stopping, 0 accept no connection, 1 unhealthy, 0 refused by their breakers\n"
    );
    worker.set_healthy(true);
    assert_eq!(admin.ready(Instant::now()), Ok(()));
    admin.control.change_workers(|_| Vec::new());
    assert_eq!(admin.ready(Instant::now()), Err(ready::NotReady::NoWorkers));
}

#[test]
fn a_proxy_is_not_ready_before_it_has_a_policy() {
    let worker = Worker::new("a", SocketAddr::from(([127, 0, 0, 1], 8081)));
    let control = Control::beside(vec![worker], Siblings::none(None, Arc::default()), Source::Awaited);
    let admin = Admin { control: control.clone(), ..admin() };
    assert_eq!(admin.ready(Instant::now()), Err(ready::NotReady::NoPolicy));
    let update = Update::new(Merged::default(), KeyRing::default());
    assert_eq!(control.apply(&update, Source::Operator), Ok(true));
    assert_eq!(admin.ready(Instant::now()), Ok(()), "a policy without rules is one");
    let starting = Admin { control, lifecycle: Lifecycle::starting(), ..self::admin() };
    assert_eq!(starting.ready(Instant::now()), Err(ready::NotReady::NoPolicy), "connections wait still");
}

#[test]
fn a_proxy_is_ready_when_every_worker_accepts_or_one_does_after_a_while() {
    let address = SocketAddr::from(([127, 0, 0, 1], 8081));
    let workers: Vec<_> = ["a", "b", "c"].map(|name| Worker::new(name, address)).into();
    workers.iter().for_each(|worker| worker.starts());
    let admin = Admin { control: Control::new(workers.clone()), configured_workers: 3, ..admin() };
    let (start, grace) = (admin.started, crate::health::acceptance::GRACE);
    let starting = |up, seconds| Err(ready::NotReady::Starting { up, all: 3, seconds });
    assert_eq!(admin.ready(start), starting(0, 31));
    workers[0].accepts();
    assert_eq!(admin.ready(start + Duration::from_secs(10)), starting(1, 21));
    assert_eq!(admin.ready(start + grace), Ok(()), "a broken worker does not keep the others");
    workers[1].accepts();
    workers[2].drain.follow(true, Duration::from_secs(60), start);
    assert_eq!(admin.ready(start), Ok(()), "nor does one that is drained");
    workers[2].drain.follow(false, Duration::from_secs(60), start);
    workers[2].set_healthy(false);
    workers[2].accepts();
    assert_eq!(admin.ready(start), starting(2, 31), "its first check is to come");
    workers[2].set_healthy(true);
    workers.iter().for_each(|worker| worker.refuses());
    let why = admin.ready(start).expect_err("nobody listens").to_string();
    assert_eq!(
        why,
        "no worker is usable: of 3, 0 are stopping, 3 accept no connection, 0 unhealthy, 0 refused by their breakers"
    );
    workers[1].accepts();
    assert_eq!(admin.ready(start), Ok(()), "once all were up, one is enough");
    let json = serde_json::to_value(admin.view(start)).expect("JSON");
    let shown: Vec<_> =
        json["workers"].as_array().expect("a list").iter().map(|one| &one["acceptance"]).collect();
    assert_eq!(shown, ["refusing", "accepting", "refusing"]);
    assert_eq!((&json["workers"][0]["usable"], &json["workers"][1]["usable"]), (&false.into(), &true.into()));
}

#[test]
fn workers_that_the_proxy_has_yet_to_start_are_waited_for() {
    let admin = Admin { configured_workers: 2, ..admin() };
    let starting = Err(ready::NotReady::Starting { up: 1, all: 2, seconds: 31 });
    assert_eq!(admin.ready(admin.started), starting);
    let address = SocketAddr::from(([127, 0, 0, 1], 8082));
    admin.control.change_workers(|workers| [workers, &[Worker::new("b", address)]].concat());
    assert_eq!(admin.ready(admin.started), Ok(()));
}

#[test]
fn workers_that_may_take_nothing_are_not_ready_and_the_snapshot_says_why() {
    let admin = admin();
    let spec = serde_yaml::from_str("workers: [{name: a, weight: 0}, {name: x}]").expect("a spec");
    let update = Update::new(Merged { spec, ..Merged::default() }, KeyRing::default());
    assert_eq!(admin.control.apply(&update, Source::File), Ok(true));
    assert_eq!(admin.ready(Instant::now()), Err(ready::NotReady::NoWeight));
    let json = serde_json::to_value(admin.view(Instant::now())).expect("JSON");
    let paths: Vec<_> = json["warnings"].as_array().expect("a list").iter().map(|one| &one["path"]).collect();
    assert_eq!(paths, ["spec.workers[1].name", "spec.workers"]);
}

#[test]
fn readiness_follows_the_share_of_usable_workers() {
    let address = SocketAddr::from(([127, 0, 0, 1], 8081));
    let workers: Vec<_> = ["a", "b", "c", "d"].map(|name| Worker::new(name, address)).into();
    let admin = Admin { control: Control::new(workers.clone()), ..admin() };
    let spec = serde_yaml::from_str("healthCheck: {readyThresholdPercent: 75}").expect("a spec");
    let update = Update::new(Merged { spec, ..Merged::default() }, KeyRing::default());
    assert_eq!(admin.control.apply(&update, Source::File), Ok(true));
    workers[0].set_healthy(true);
    workers[0].set_healthy(false);
    assert_eq!(admin.ready(Instant::now()), Ok(()));
    workers[1].set_draining(true);
    let why = admin.ready(Instant::now()).expect_err("two of four").to_string();
    assert_eq!(
        why,
        "too few workers are usable: 2 of 4, and 75 % must be; 1 are stopping, 0 accept no connection, 1 unhealthy, 0 refused by their breakers"
    );
}

#[tokio::test]
async fn a_worker_is_drained_by_order_until_it_expires_or_is_taken_back() {
    let admin = Admin { token: Some(Box::new(|| Some(b"secret".to_vec()))), ..admin() };
    let worker = admin.control.snapshot().workers[0].clone();
    let post = |path: &str, token: &str, body: &'static str| {
        let request = Request::post(path)
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json");
        admin.answer(&request.body(Bytes::from(body)).expect("a request"), ELSEWHERE)
    };
    const ORDER: &str = r#"{"reason": "a new disk", "expiresIn": "10m"}"#;
    let (here, elsewhere) = ("/api/workers/a/drain", "/api/workers/b/drain");
    assert_eq!(post(here, "wrong", ORDER).status(), StatusCode::UNAUTHORIZED);
    assert_eq!(post(here, "secret", "{}").status(), StatusCode::BAD_REQUEST);
    assert_eq!(post(elsewhere, "secret", ORDER).status(), StatusCode::NOT_FOUND);
    assert!(worker.usable(Instant::now()));
    let drained = post(here, "secret", ORDER);
    assert_eq!(drained.status(), StatusCode::OK);
    let drained: Value = serde_json::from_slice(&body(drained).await).expect("JSON");
    assert_eq!((&drained["serves"], &drained["order"]["reason"]), (&"sessions".into(), &"a new disk".into()));
    assert_eq!(drained["by"], serde_json::json!(["order"]));
    assert!(!worker.usable(Instant::now()) && worker.serves_its_sessions(Instant::now()));
    let get = Request::get(here).header("authorization", "Bearer secret");
    assert_eq!(ask(&admin, get, HERE), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(post("/api/workers/a/undrain", "secret", "").status(), StatusCode::OK);
    assert!(worker.usable(Instant::now()));
    let page = Request::post(here).header("authorization", "Bearer secret");
    assert_eq!(ask(&admin, page, HERE), StatusCode::UNSUPPORTED_MEDIA_TYPE, "a page can send no JSON");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_stops_is_not_ready_but_lives() {
    let admin = admin();
    admin.lifecycle.drain(&admin.control, Delay::Whole, || async {}).await;
    assert_eq!(admin.ready(Instant::now()), Err(ready::NotReady::Stopping));
    assert_eq!(ask(&admin, get("/livez"), ELSEWHERE), StatusCode::OK);
}

#[tokio::test]
async fn the_snapshot_shows_the_policy_and_the_workers_and_no_key() {
    let admin = admin();
    let keys = KeyRing { keys: vec![SessionKey { id: 7, secret: [65; 32] }] };
    let spec =
        serde_yaml::from_str("{retry: {numRetries: 3}, workers: [{name: a, weight: 5}]}").expect("a spec");
    let merged = Merged { spec, ..Merged::default() };
    let update = Update::new(merged, keys);
    assert_eq!(admin.control.apply(&update, Source::File), Ok(true));
    let answer = admin.answer(&get("/api/snapshot").body(Bytes::new()).expect("a request"), HERE);
    let text = body(answer).await;
    let json: Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(json["version"], update.version);
    assert_eq!(json["source"], "file");
    assert_eq!(json["policy"]["retry"]["numRetries"], 3);
    assert_eq!(json["workers"][0]["name"], "a");
    assert_eq!(json["workers"][0]["usable"], true);
    assert_eq!(json["workers"][0]["weight"], 5);
    assert_eq!(json["workers"][0]["breaker"]["state"], "closed");
    assert_eq!(json["process"]["phase"], "serving");
    assert!(json.get("push").is_none(), "there is no operator");
    let text = String::from_utf8_lossy(&text);
    assert!(!text.contains("QUFBQUFB") && !text.to_lowercase().contains("secret"), "{text}");
}

fn switch(admin: &Admin, wanted: &str) -> (StatusCode, Value) {
    let request = Request::post("/api/strategy").header("host", "localhost").header("content-type", JSON);
    let answer = admin.answer(&request.body(Bytes::from(wanted.to_owned())).expect("a request"), HERE);
    let status = answer.status();
    let shown = futures_util::FutureExt::now_or_never(body(answer)).expect("a body that is there");
    (status, serde_json::from_slice(&shown).expect("JSON"))
}

#[test]
fn the_strategy_is_switched_for_a_while_and_shown() {
    let admin = admin();
    let body = r#"{"loadBalancer": {"type": "PeakEwma"}, "expiresIn": "10m", "reason": "worker-2 is slow"}"#;
    let (status, shown) = switch(&admin, body);
    assert_eq!(status, StatusCode::OK, "{shown}");
    let json = serde_json::to_value(admin.view(Instant::now())).expect("JSON");
    assert_eq!(
        json["routes"],
        serde_json::json!([{"name": "default", "strategy": "PeakEwma", "switched": true}])
    );
    assert_eq!(json["switches"][0]["reason"], "worker-2 is slow");
    assert!((590..=600).contains(&json["switches"][0]["expiresInSeconds"].as_u64().expect("a number")));
    let delete = Request::delete("/api/strategy").header("host", "localhost");
    assert_eq!(ask(&admin, delete, HERE), StatusCode::OK);
    let json = serde_json::to_value(admin.view(Instant::now())).expect("JSON");
    assert_eq!(json["routes"][0]["strategy"], "RoundRobin");
    assert_eq!(json["routes"][0]["switched"], false);
}

#[test]
fn a_switch_that_is_wrong_is_refused_with_every_violation() {
    let admin = admin();
    let paths = |body: &str| {
        let (status, json) = switch(&admin, body);
        assert_eq!(status, StatusCode::BAD_REQUEST, "{json}");
        let violations = json["violations"].as_array().expect("a list").clone();
        violations.iter().map(|one| one["path"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(paths(r#"{"loadBalancer": {"type": "Random"}}"#), ["expiresIn"]);
    assert_eq!(paths(r#"{"loadBalancer": {"type": "Random"}, "expiresIn": "25h"}"#), ["expiresIn"]);
    assert_eq!(paths(r#"{"loadBalancer": {"type": "Best"}, "expiresIn": "1h"}"#), ["body"]);
    assert_eq!(paths(r#"{"loadBalancer": {"type": "Random"}, "expiresIn": "1h", "for": "ever"}"#), ["body"]);
    assert_eq!(paths("{"), ["body"]);
    let all = format!(
        r#"{{"loadBalancer": {{"type": "Random", "peakEwma": {{}}, "slowStart": {{"window": "0s"}}}},
            "route": "none", "expiresIn": "soon", "reason": "{}"}}"#,
        "x".repeat(257)
    );
    assert_eq!(
        paths(&all),
        ["loadBalancer.peakEwma", "loadBalancer.slowStart.window", "route", "reason", "expiresIn"]
    );
    assert!(admin.control.snapshot().switches.is_empty());
}

#[test]
fn switching_asks_for_the_token_and_for_json() {
    let locked = Admin { token: Some(Box::new(|| Some(b"secret".to_vec()))), ..admin() };
    let post = || Request::post("/api/strategy").header("host", "localhost");
    assert_eq!(ask(&locked, post().header("content-type", JSON), HERE), StatusCode::UNAUTHORIZED);
    assert_eq!(ask(&admin(), post().header("content-type", JSON), ELSEWHERE), StatusCode::FORBIDDEN);
    assert_eq!(ask(&admin(), post(), HERE), StatusCode::UNSUPPORTED_MEDIA_TYPE, "a browser's form");
    let put = Request::put("/api/strategy").header("host", "localhost");
    assert_eq!(ask(&admin(), put, HERE), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(ask(&admin(), get("/api/strategy"), HERE), StatusCode::OK);
}

async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    answer
}

#[tokio::test]
async fn it_serves_over_a_socket() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let serving = tokio::spawn(serve(Arc::new(listener), Arc::new(admin())));
    let answer = exchange(address, "GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nalive\n"), "{answer}");
    let answer = exchange(address, "HEAD /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(
        answer.contains("content-type: text/plain; version=0.0.4") && answer.ends_with("\r\n\r\n"),
        "{answer}"
    );
    let order = format!("POST /api/strategy HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", BODY + 1);
    let answer = exchange(address, &format!("{order}{}", " ".repeat(BODY + 1))).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("no body of at most"), "{answer}");
    serving.abort();
}

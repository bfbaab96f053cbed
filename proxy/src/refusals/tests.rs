use std::collections::BTreeSet;
use std::fmt::Write;
use std::rc::Rc;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::subscriber::with_default;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::*;
use crate::body::ResponseBody;
use crate::client::{Peer, Trust};
use crate::connection::{Activity, Bounds, Limits};
use crate::control::Control;
use crate::metrics::Metrics;
use crate::metrics::exposition::Exposition;
use crate::request::refuse;
use crate::siblings::Arrival;
use crate::thread::DataThread;

#[test]
fn each_reason_has_a_burst_and_then_ten_a_second() {
    let began = Instant::now();
    let refusals = Refusals::new(began);
    let each = Duration::from_secs(1) / 4_000;
    let admitted = (0..40_000).filter(|i| refusals.admits(0, began + each * *i)).count();
    assert!((108..=110).contains(&admitted), "ten, and ten a second for ten seconds: {admitted}");
    assert_eq!(refusals.reasons[0].suppressed.get(), 40_000 - admitted as u64);
    assert!((0..10).all(|_| refusals.admits(1, began)), "another reason");
    assert!(!refusals.admits(1, began));
    refusals.tick(began + SAID / 2);
    assert_ne!(refusals.reasons[0].suppressed.get(), 0, "not yet");
    refusals.tick(began + SAID);
    assert_eq!(refusals.reasons[0].suppressed.get() + refusals.reasons[1].suppressed.get(), 0, "said");
}

#[test]
fn the_beginning_of_a_path_is_kept_and_no_query() {
    let client = IpAddr::from([127, 0, 0, 1]);
    let mut asked = Asked { client, worker: Cell::default(), method: None, path: [0; PATH], length: 0 };
    assert_eq!(asked.path(), None);
    for (uri, kept) in [
        ("/a/b?secret=1", "/a/b".to_owned()),
        ("http://host/a?x", "/a".to_owned()),
        ("/", "/".to_owned()),
        (&format!("/{}", "x".repeat(5_000)), format!("/{}", "x".repeat(PATH - 1))),
    ] {
        let request = http::Request::get(uri).body(()).expect("a request");
        asked.heard(request.method(), request.uri());
        assert_eq!(asked.path(), Some(kept.as_str()));
    }
}

/// One of each. Where one is missing, `every_refusal_has_all_that_it_must` says so.
fn every_rejection() -> Vec<Rejection> {
    let after = Duration::from_secs(5);
    vec![
        Rejection::BadRequest("a rule"),
        Rejection::MethodNotAllowed,
        Rejection::ExpectationFailed,
        Rejection::NotImplemented,
        Rejection::HeadersTooLarge,
        Rejection::ClientBody,
        Rejection::CLIENT_STOOD_STILL,
        Rejection::RateLimited(after),
        Rejection::NoPolicy,
        Rejection::NoWorker(after),
        Rejection::ServiceOpen(after),
        Rejection::RouteOpen(after),
        Rejection::ConnectFailed,
        Rejection::ConnectTimeout,
        Rejection::WorkerReset,
        Rejection::WorkerTimeout,
        Rejection::WorkerStalled,
        Rejection::DeadlineExceeded,
        Rejection::WorkerProtocol("a rule"),
        Rejection::Internal,
        Rejection::HttpVersion,
        Rejection::WebSocketVersion,
        Rejection::PlainHttp,
        Rejection::HeadTimeout,
        Rejection::NotGrpc,
        Rejection::UpgradeFailed("how it went"),
        Rejection::WorkerRefused("how it went"),
        Rejection::ConnectionLimit,
        Rejection::AddressLimit,
        Rejection::MemoryLimit,
        Rejection::LocalExhaustion,
        Rejection::WorkerFull,
    ]
}

/// The error types of RFC 9209 §2.3.
const ERRORS: [&str; 32] = [
    "dns_timeout",
    "dns_error",
    "destination_not_found",
    "destination_unavailable",
    "destination_ip_prohibited",
    "destination_ip_unroutable",
    "connection_refused",
    "connection_terminated",
    "connection_timeout",
    "connection_read_timeout",
    "connection_write_timeout",
    "connection_limit_reached",
    "tls_protocol_error",
    "tls_certificate_error",
    "tls_alert_received",
    "http_request_error",
    "http_request_denied",
    "http_response_incomplete",
    "http_response_header_section_size",
    "http_response_header_size",
    "http_response_body_size",
    "http_response_trailer_section_size",
    "http_response_trailer_size",
    "http_response_transfer_coding",
    "http_response_content_coding",
    "http_response_timeout",
    "http_upgrade_failed",
    "http_protocol_error",
    "proxy_internal_response",
    "proxy_internal_error",
    "proxy_configuration_error",
    "proxy_loop_detected",
];

/// The fields of every event, as text.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = write!(self.0, "{field}={value:?} "); // a String takes it
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text(format!("{} ", event.metadata().level()));
        event.record(&mut text);
        self.0.lock().push(text.0);
    }
}

fn client() -> Rc<Client> {
    Rc::new(Client {
        peer: Peer::new("192.0.2.7:50000".parse().expect("an address"), false),
        activity: Rc::new(Activity::new(Rc::default(), Rc::default())),
        upgrade: Cell::new(None),
        arrival: Arrival::Client,
    })
}

/// A rejection that is added is answered, counted, logged and documented like all others, or this fails.
#[test]
fn every_refusal_has_all_that_it_must() {
    let all = every_rejection();
    let indices: BTreeSet<_> = all.iter().map(|rejection| rejection.index()).collect();
    assert_eq!(indices, (0..Rejection::LABELS.len()).collect(), "`every_rejection` has one of each");
    let labels: BTreeSet<_> = all.iter().map(|rejection| rejection.label()).collect();
    assert_eq!(labels.len(), all.len(), "labels are unique");

    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/refusals.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let rows = page.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, all.len(), "docs/refusals.md has a row for each and no other");

    let metrics = Arc::new(Metrics::default());
    let hour = Duration::from_secs(3600);
    let bounds = Bounds::of_one_thread(Limits { head: hour, idle: hour, stall: hour });
    let control = Control::new(Vec::new());
    let thread = DataThread::new(control.clone(), metrics.shard(), Trust::default(), bounds);
    for rejection in all {
        let lines = Lines::default();
        let subscriber = tracing_subscriber::registry().with(lines.clone());
        let answer = with_default(subscriber, || refuse(thread.clone(), client(), rejection));
        let (label, status, error) = (rejection.label(), rejection.status(), rejection.proxy_status());
        assert_eq!(answer.status(), status, "{label}");
        assert!(status.is_client_error() || status.is_server_error(), "{label}");
        let header = answer.headers()["proxy-status"].to_str().expect("text");
        assert!(
            header.starts_with(&format!("outrigger; error={error}")) && ERRORS.contains(&error),
            "{label}"
        );
        let ResponseBody::Own(Some(body)) = answer.body() else { panic!("{label}: no body") };
        assert_eq!(*body, format!("{}\n", rejection.message()), "{label}");
        assert!(!rejection.message().is_empty() && rejection.message().len() < 100, "{label}");
        assert!(rejection.retry_after().is_none() || answer.headers().contains_key("retry-after"), "{label}");

        let lines = lines.0.lock();
        let [line] = &lines[..] else { panic!("{label}: {lines:?}") };
        assert!(line.starts_with("INFO "), "{line}");
        for field in [
            format!("reason=\"{label}\""),
            format!("status={}", status.as_u16()),
            format!("detail=\"{}\"", rejection.message()),
            "client=192.0.2.7".to_owned(),
            "message=refused".to_owned(),
        ] {
            assert!(line.contains(&field), "{label}: no {field} in {line}");
        }

        let row = format!("| `{label}` | {} | `{error}` | {} | ", status.as_u16(), rejection.grpc_status());
        let row = page.lines().find_map(|line| line.strip_prefix(&row));
        let cells =
            row.unwrap_or_else(|| panic!("docs/refusals.md has no row for {rejection:?}")).split(" | ");
        assert!(cells.clone().count() == 2 && cells.clone().all(|cell| 2 < cell.len()), "{label}");
    }
    let page = Exposition::new(crate::metrics::exposition::Families {
        memory: crate::memory::Memory::new(crate::memory::Limit::of(256 << 20), 1),
        metrics,
        control,
        push: Arc::default(),
        tasks: crate::essential::Tasks::new(crate::drain::Lifecycle::default()),
    })
    .text();
    for label in Rejection::LABELS {
        let line = format!("outrigger_rejections_total{{reason=\"{label}\"}} 1\n");
        assert!(page.contains(&line), "{label} is counted once");
    }
}

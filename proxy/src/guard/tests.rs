use http::{Request, Response, StatusCode};
use proptest::prelude::*;

use super::*;

type Lines<'a> = &'a [(&'a str, &'a str)];

/// One call of the guard: what came, and from whom.
struct Case<'a> {
    line: &'a str,
    version: Version,
    lines: Lines<'a>,
    body_ended: bool,
    trust: Trust,
    tls: bool,
    sibling: bool,
}

fn http1<'a>(line: &'a str, lines: Lines<'a>) -> Case<'a> {
    Case {
        line,
        version: Version::HTTP_11,
        lines,
        body_ended: true,
        trust: Trust::default(),
        tls: false,
        sibling: false,
    }
}

fn http2<'a>(line: &'a str, lines: Lines<'a>) -> Case<'a> {
    Case { version: Version::HTTP_2, ..http1(line, lines) }
}

fn get(lines: Lines<'_>) -> Case<'_> {
    http1("GET /x", lines)
}

impl Case<'_> {
    fn run(&self) -> Result<(Parts, Inspected), Rejection> {
        let (method, target) = self.line.split_once(' ').unwrap();
        let request = Request::builder().method(method).uri(target).version(self.version);
        let request = self.lines.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let mut head = request.body(()).unwrap().into_parts().0;
        let peer = Peer::new("10.0.0.1:999".parse().unwrap(), self.tls);
        let context = Context { peer: &peer, trust: &self.trust, sibling: self.sibling, random: 0xab };
        let inspected = super::request(&mut head, self.body_ended, &context)?;
        Ok((head, inspected))
    }

    fn passes(&self) -> (Parts, Inspected) {
        self.run().unwrap_or_else(|rejection| panic!("{} {:?}: {rejection:?}", self.line, self.lines))
    }

    fn bad(&self) -> bool {
        matches!(self.run(), Err(Rejection::BadRequest(_)))
    }
}

fn all(head: &Parts, name: &str) -> Vec<String> {
    let text = |value: &HeaderValue| value.to_str().unwrap().to_owned();
    head.headers.get_all(name).iter().map(text).collect()
}

fn one(head: &Parts, name: &str) -> String {
    let values = all(head, name);
    assert_eq!(values.len(), 1, "{name}: {values:?}");
    values.concat()
}

const HOST: (&str, &str) = ("host", "a.test");

/// Over HTTP/2 `http` takes a quote for a part of a name.
#[test]
fn a_name_with_a_quote_goes_neither_way() {
    let name = http::HeaderName::from_lowercase(b"x\"a").unwrap();
    let request = Request::builder().uri("http://a.test/x").version(Version::HTTP_2).header(&name, "b");
    let mut head = request.body(()).unwrap().into_parts().0;
    let peer = Peer::new("10.0.0.1:999".parse().unwrap(), false);
    let context = Context { peer: &peer, trust: &Trust::default(), sibling: false, random: 0xab };
    assert!(matches!(super::request(&mut head, true, &context), Err(Rejection::BadRequest(_))));
    let answer = Response::builder().version(Version::HTTP_2).header(&name, "b").body(()).unwrap();
    let mut answer = answer.into_parts().0;
    assert!(!interim(&mut answer.headers.clone()));
    assert!(matches!(response(&mut answer, false), Err(Rejection::WorkerProtocol(_))));
    trailers(&mut answer.headers);
    assert!(answer.headers.is_empty());
}

#[test]
fn a_plain_request_gets_the_proxys_fields() {
    let (head, inspected) = get(&[HOST, ("accept", "*/*"), ("trailer", "x-sum")]).passes();
    assert_eq!(head.uri, "/x");
    for (name, expected) in [
        ("host", "a.test"),
        ("accept", "*/*"),
        ("trailer", "x-sum"),
        ("x-forwarded-for", "10.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "a.test"),
        ("x-request-id", "000000000000000000000000000000ab"),
        ("via", "1.1 outrigger"),
    ] {
        assert_eq!(one(&head, name), expected, "{name}");
    }
    assert_eq!(head.headers.len(), 8);
    let client = Client { address: "10.0.0.1".parse().unwrap(), secure: false };
    assert_eq!(inspected, Inspected { client, websocket: false, expects: false });
}

#[test]
fn methods() {
    for line in ["CONNECT a.test:80", "TRACE /x"] {
        assert_eq!(http1(line, &[HOST]).run().unwrap_err(), Rejection::MethodNotAllowed);
    }
    for line in ["get /x", "BREW /x", "M!#$%&'*+-.^_`|~9 /x", "OPTIONS *"] {
        http1(line, &[HOST]).passes();
    }
}

#[test]
fn expectations() {
    for lines in [
        &[HOST, ("expect", "banana")][..],
        &[HOST, ("expect", "100-continue, x")],
        &[HOST, ("expect", "100-continue"), ("expect", "100-continue")],
    ] {
        assert_eq!(get(lines).run().unwrap_err(), Rejection::ExpectationFailed);
    }
    let lines = [HOST, ("expect", "100-Continue"), ("content-length", "5")];
    for (version, body_ended, expects) in [
        (Version::HTTP_11, false, true),
        (Version::HTTP_2, false, true),
        (Version::HTTP_10, false, false),
        (Version::HTTP_11, true, false),
    ] {
        let lines = if body_ended { &lines[..2] } else { &lines };
        let (head, inspected) = Case { version, body_ended, ..get(lines) }.passes();
        assert_eq!(
            (inspected.expects, head.headers.contains_key("expect")),
            (expects, expects),
            "{version:?}"
        );
    }
}

#[test]
fn too_many_fields() {
    let mut lines = vec![HOST];
    lines.resize(MAX_HEADERS, ("x-a", "b"));
    get(&lines).passes();
    lines.push(("x-a", "b"));
    assert_eq!(get(&lines).run().unwrap_err(), Rejection::HeadersTooLarge);
    assert_eq!(http2("GET http://a.test/", &lines).run().unwrap_err(), Rejection::HeadersTooLarge);
}

#[test]
fn hosts_that_are_refused() {
    let absolute = "GET http://a.test/x";
    for case in [
        get(&[]),
        get(&[HOST, HOST]),
        get(&[("host", "")]),
        get(&[("host", "a b")]),
        http1(absolute, &[]),
        http1(absolute, &[HOST, HOST]),
        http1(absolute, &[("host", "a b")]),
        http1("GET http://u:p@a.test/x", &[HOST]),
        http1("GET http://a.test:99999/x", &[HOST]),
        Case { version: Version::HTTP_10, ..get(&[("host", "")]) },
        http2("GET /x", &[]),
        http2("GET /x", &[HOST, HOST]),
        http2(absolute, &[HOST, HOST]),
        http2(absolute, &[("host", "evil.test")]),
        http2("GET http://u@a.test/x", &[]),
        http2("GET http://a.test:99999/x", &[]),
    ] {
        assert!(case.bad(), "{} {:?}", case.line, case.lines);
    }
}

#[test]
fn hosts_that_are_settled() {
    for (case, expected) in [
        (http1("GET http://b.test:8080/x", &[HOST]), "b.test:8080"),
        (http1("GET http://A.test/x", &[HOST]), "a.test"),
        (Case { version: Version::HTTP_10, ..get(&[]) }, "localhost"),
        (Case { version: Version::HTTP_10, ..http1("GET http://b.test/x", &[]) }, "b.test"),
        (http2("GET http://b.test/x", &[]), "b.test"),
        (http2("GET http://a.test/x", &[("host", "A.Test")]), "A.Test"),
        (http2("GET /x", &[HOST]), "a.test"),
    ] {
        let (head, _) = case.passes();
        assert_eq!(one(&head, "host"), expected, "{}", case.line);
        assert_eq!(one(&head, "x-forwarded-host"), expected);
        assert_eq!(head.uri, "/x");
    }
}

const CHUNKED: (&str, &str) = ("transfer-encoding", "chunked");

fn post(lines: Lines<'_>) -> Case<'_> {
    Case { body_ended: false, ..http1("POST /p", lines) }
}

#[test]
fn framing_that_is_refused() {
    for lines in [
        &[HOST, CHUNKED, CHUNKED][..],
        &[HOST, ("transfer-encoding", "chunked, chunked")],
        &[HOST, ("transfer-encoding", ", chunked")],
        &[HOST, ("transfer-encoding", "")],
        &[HOST, CHUNKED, ("content-length", "5")],
        &[HOST, ("content-length", "5"), ("content-length", "5")],
        &[HOST, ("content-length", "+5")],
    ] {
        assert!(post(lines).bad(), "{lines:?}");
    }
    for value in ["gzip, chunked", "identity, chunked", "xchunked", "chunked;q=1", "\"chunked\""] {
        let case = [HOST, ("transfer-encoding", value)];
        assert_eq!(post(&case).run().unwrap_err(), Rejection::NotImplemented, "{value}");
    }
    assert!(Case { version: Version::HTTP_10, ..post(&[HOST, CHUNKED]) }.bad());
    assert!(Case { version: Version::HTTP_2, ..post(&[HOST, CHUNKED]) }.bad());
    assert!(http2("POST /p", &[HOST, ("content-length", "5")]).bad(), "content is missing");
    assert!(http2("POST /p", &[HOST, ("content-length", "0"), ("content-length", "0")]).bad());
}

#[test]
fn framing_that_is_settled() {
    for (case, length) in [
        (Case { body_ended: false, ..http1("POST /p", &[HOST, ("content-length", "005")]) }, Some("5")),
        (http1("POST /p", &[HOST, ("content-length", "0")]), Some("0")),
        (Case { body_ended: false, ..http1("GET /p", &[HOST, ("transfer-encoding", "CHUNKED")]) }, None),
        (Case { body_ended: false, ..http2("GET http://a.test/p", &[]) }, None),
        (Case { body_ended: false, ..http2("POST http://a.test/p", &[]) }, None),
        (post(&[HOST, CHUNKED]), None),
        (http2("GET http://a.test/p", &[]), None),
    ] {
        let (head, _) = case.passes();
        let line = |name| head.headers.get(name).map(|value| value.to_str().unwrap());
        assert_eq!((line("content-length"), line("transfer-encoding")), (length, None), "{}", case.line);
    }
}

#[test]
fn http2_has_no_connection_specific_fields() {
    for line in [
        ("connection", "close"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("upgrade", "websocket"),
        ("te", "gzip"),
        ("te", "Trailers"),
    ] {
        assert!(http2("GET http://a.test/x", &[line]).bad(), "{line:?}");
    }
    let (head, _) = http2("GET http://a.test/x", &[("te", "trailers")]).passes();
    assert_eq!(one(&head, "te"), "trailers");
}

#[test]
fn nominated_fields_go_but_not_the_proxys() {
    let (head, _) = get(&[
        HOST,
        ("connection", "close, X-Hop, Host ,,content-length, te"),
        ("connection", "x-forwarded-for, X-Request-ID, \"x\", a b, traceparent, via"),
        ("x-hop", "1"),
        ("x-end", "2"),
        ("te", "gzip, trailers"),
        ("via", "1.1 before"),
        ("content-length", "0"),
        ("x-request-id", "mine"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("proxy-authorization", "Basic 6"),
        ("http2-settings", "AAMA"),
        ("upgrade", "h2c"),
    ])
    .passes();
    for name in [
        "connection",
        "x-hop",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "http2-settings",
        "upgrade",
    ] {
        assert!(!head.headers.contains_key(name), "{name}");
    }
    assert_eq!(one(&head, "te"), "trailers");
    assert_eq!(one(&head, "x-end"), "2");
    assert_eq!(one(&head, "content-length"), "0");
    assert_eq!(one(&head, "x-request-id"), "mine");
    assert_eq!(one(&head, "x-forwarded-for"), "10.0.0.1");
    assert_eq!(all(&head, "via"), ["1.1 before", "1.1 outrigger"]);
    let long = "x-a, ".repeat(40);
    assert!(get(&[HOST, ("connection", &long)]).bad());
}

const HANDSHAKE: [(&str, &str); 5] = [
    HOST,
    ("connection", "keep-alive, UPGRADE"),
    ("upgrade", "WebSocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

#[test]
fn a_websocket_keeps_its_offer() {
    let (head, inspected) = get(&HANDSHAKE).passes();
    assert!(inspected.websocket);
    assert_eq!(one(&head, "connection"), "upgrade");
    assert_eq!(one(&head, "upgrade"), "websocket");
}

#[test]
fn anything_less_than_a_websocket_is_a_plain_request() {
    let without = |name| HANDSHAKE.into_iter().filter(|line| line.0 != name).collect::<Vec<_>>();
    let with = |line: (&'static str, &'static str)| {
        let mut lines = without(line.0);
        lines.push(line);
        lines
    };
    let mut twice = HANDSHAKE.to_vec();
    twice.push(("upgrade", "h2c"));
    for (case, lines) in [
        ("POST", HANDSHAKE.to_vec()),
        ("GET", without("connection")),
        ("GET", with(("upgrade", "websocket, h2c"))),
        ("GET", with(("upgrade", "h2c"))),
        ("GET", twice),
    ] {
        let line = [case, "/x"].join(" ");
        let (head, inspected) = http1(&line, &lines).passes();
        assert!(!inspected.websocket, "{lines:?}");
        assert!(
            !head.headers.contains_key("upgrade") && !head.headers.contains_key("connection"),
            "{lines:?}"
        );
    }
    let old = Case { version: Version::HTTP_10, ..get(&HANDSHAKE) };
    let mut body = HANDSHAKE.to_vec();
    body.push(("content-length", "40"));
    let body = Case { body_ended: false, ..get(&body) };
    for case in [old, body] {
        let (head, inspected) = case.passes();
        assert!(!inspected.websocket && !head.headers.contains_key("upgrade"));
    }
}

#[test]
fn a_handshake_that_no_worker_could_take_is_refused() {
    let with = |name: &str, value: Option<&'static str>| {
        let mut lines: Vec<_> = HANDSHAKE.into_iter().filter(|line| line.0 != name).collect();
        lines.extend(value.map(|value| {
            if name == "sec-websocket-key" {
                ("sec-websocket-key", value)
            } else {
                ("sec-websocket-version", value)
            }
        }));
        get(lines.leak()).run().unwrap_err()
    };
    for version in [None, Some("8"), Some("13, 8"), Some("")] {
        assert_eq!(with("sec-websocket-version", version), Rejection::WebSocketVersion);
    }
    for key in
        [None, Some(""), Some("short"), Some("AAAAAAAAAAAAAAAAAAAAAAAA"), Some("AAAAAAAAAAAAAAAAAAAAA.==")]
    {
        assert!(matches!(with("sec-websocket-key", key), Rejection::BadRequest(_)), "{key:?}");
    }
}

const SPOOFS: [(&str, &str); 12] = [
    HOST,
    ("x-forwarded-for", "6.6.6.6, 10.9.9.9"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "6.6.6.6"),
    ("x-forwarded-prefix", "6.6.6.6"),
    ("x-forwarded-port", "6.6.6.6"),
    ("x-real-ip", "6.6.6.6"),
    ("forwarded", "for=6.6.6.6"),
    ("x_forwarded_for", "6.6.6.6"),
    ("x-forwarded_for", "6.6.6.6"),
    ("x_real_ip", "6.6.6.6"),
    ("user_id", "7"),
];

#[test]
fn a_peer_that_is_not_trusted_speaks_for_itself_only() {
    let (head, inspected) = get(&SPOOFS).passes();
    assert!(
        !head.headers.values().any(|value| value.to_str().unwrap().contains("6.6.6.6")),
        "{:?}",
        head.headers
    );
    assert_eq!(one(&head, "x-forwarded-proto"), "http");
    assert_eq!(one(&head, "x-forwarded-host"), "a.test");
    assert_eq!(one(&head, "user_id"), "7");
    assert_eq!(inspected.client, Client { address: "10.0.0.1".parse().unwrap(), secure: false });
}

#[test]
fn a_trusted_peer_speaks_for_the_client() {
    let trust = Trust::new(0, vec!["10.0.0.0/8".parse().unwrap()]);
    let (head, inspected) = Case { trust, ..get(&SPOOFS) }.passes();
    for (name, expected) in [
        ("x-forwarded-for", "6.6.6.6, 10.9.9.9, 10.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "6.6.6.6"),
        ("x-forwarded-prefix", "6.6.6.6"),
        ("x-real-ip", "6.6.6.6"),
        ("forwarded", "for=6.6.6.6"),
    ] {
        assert_eq!(one(&head, name), expected, "{name}");
    }
    assert!(!head.headers.keys().any(|name| name.as_str().starts_with("x_")));
    assert!(!head.headers.contains_key("x-forwarded_for"));
    assert_eq!(inspected.client, Client { address: "6.6.6.6".parse().unwrap(), secure: true });
}

#[test]
fn a_trusted_peer_may_be_silent_or_wrong() {
    let trust = || Trust::new(1, Vec::new());
    for (lines, proto) in [
        (&[HOST][..], "https"),
        (&[HOST, ("x-forwarded-proto", "ftp")], "https"),
        (&[HOST, ("x-forwarded-proto", "http")], "http"),
    ] {
        let (head, inspected) = Case { trust: trust(), tls: true, ..get(lines) }.passes();
        assert_eq!(one(&head, "x-forwarded-proto"), proto);
        assert_eq!(inspected.client.secure, proto == "https");
        assert_eq!(one(&head, "x-forwarded-for"), "10.0.0.1");
        assert_eq!(one(&head, "x-forwarded-host"), "a.test");
    }
}

#[test]
fn ids_and_traces() {
    let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let (head, _) = get(&[
        HOST,
        ("x-request-id", "a-1"),
        ("traceparent", good),
        ("tracestate", "a=1"),
        ("baggage", "b=2"),
    ])
    .passes();
    assert_eq!(one(&head, "x-request-id"), "a-1");
    assert_eq!(one(&head, "traceparent"), good);
    assert_eq!(one(&head, "tracestate"), "a=1");
    assert_eq!(one(&head, "baggage"), "b=2");
    let long = "a".repeat(129);
    for bad in ["", "a b", &long] {
        let (head, _) =
            get(&[HOST, ("x-request-id", bad), ("traceparent", bad), ("tracestate", "a=1")]).passes();
        assert_eq!(one(&head, "x-request-id").len(), 32);
        assert!(!head.headers.contains_key("traceparent") && !head.headers.contains_key("tracestate"));
    }
    let (head, _) =
        get(&[HOST, ("tracestate", "a=1"), ("x-request-id", "1"), ("x-request-id", "2")]).passes();
    assert!(!head.headers.contains_key("tracestate"));
    assert_eq!(one(&head, "x-request-id").len(), 32);
}

fn answer(status: u16, version: Version, websocket: bool, lines: Lines<'_>) -> Result<String, Rejection> {
    let answer = Response::builder().status(status).version(version);
    let answer = lines.iter().fold(answer, |answer, (name, value)| answer.header(*name, *value));
    let mut head = answer.body(()).unwrap().into_parts().0;
    super::response(&mut head, websocket)?;
    assert_eq!(head.status, StatusCode::from_u16(status).unwrap());
    let lines = head.headers.iter().map(|(name, value)| [name.as_str(), value.to_str().unwrap()].join(": "));
    Ok(lines.collect::<Vec<_>>().join("|"))
}

#[test]
fn answers_that_pass() {
    for (status, lines, expected) in [
        (200, &[("content-length", "5"), ("server", "x")][..], "content-length: 5|server: x"),
        (200, &[("content-length", "005")], "content-length: 5"),
        (200, &[("content-length", "5"), ("content-length", "5")], "content-length: 5"),
        (200, &[("content-length", "5, 5")], "content-length: 5"),
        (200, &[CHUNKED, ("content-length", "50")], ""),
        (204, &[("content-length", "5")], ""),
        (204, &[CHUNKED], ""),
        (304, &[("content-length", "5")], "content-length: 5"),
        (599, &[], ""),
        (
            426,
            &[
                ("connection", "upgrade, x-hop, content-length"),
                ("upgrade", "h2c"),
                ("x-hop", "1"),
                ("keep-alive", "timeout=5"),
                ("proxy-authenticate", "Basic"),
                ("trailer", "x-sum"),
                ("content-length", "0"),
            ],
            "trailer: x-sum|content-length: 0",
        ),
    ] {
        let mut found: Vec<_> = Vec::new();
        let passed = answer(status, Version::HTTP_11, false, lines).unwrap();
        found.extend(passed.split('|'));
        let mut expected: Vec<_> = expected.split('|').collect();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "{status} {lines:?}");
    }
}

#[test]
fn answers_that_are_refused() {
    let (upgrade, websocket) = (("connection", "Upgrade"), ("upgrade", "websocket"));
    let flood = vec![("x-a", "b"); MAX_HEADERS + 1];
    let long = "x-a, ".repeat(40);
    for (status, asked, lines) in [
        (101, false, &[upgrade, websocket][..]),
        (101, true, &[]),
        (101, true, &[websocket]),
        (101, true, &[upgrade, ("upgrade", "h2c")]),
        (100, false, &[]),
        (103, true, &[]),
        (600, false, &[]),
        (999, false, &[]),
        (200, false, &[("transfer-encoding", "x")]),
        (200, false, &[("transfer-encoding", "gzip, chunked")]),
        (200, false, &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]),
        (200, false, &[("content-length", "5"), ("content-length", "6")]),
        (304, false, &[("content-length", "5, 6")]),
        (200, false, &[("content-length", "")]),
        (200, false, &[("connection", &long)]),
        (200, false, &flood),
    ] {
        let found = answer(status, Version::HTTP_11, asked, lines);
        assert!(matches!(found, Err(Rejection::WorkerProtocol(_))), "{status} {lines:?}: {found:?}");
    }
    assert!(answer(200, Version::HTTP_10, false, &[("transfer-encoding", "chunked")]).is_err());
}

#[test]
fn a_websocket_is_accepted() {
    let lines =
        [("connection", "x-hop, Upgrade"), ("upgrade", "WebSocket"), ("x-hop", "1"), ("content-length", "0")];
    let passed = answer(101, Version::HTTP_11, true, &lines).unwrap();
    assert_eq!(passed, "connection: upgrade|upgrade: websocket");
    assert_eq!(answer(200, Version::HTTP_11, true, &lines[..2]).unwrap(), "");
}

const NAMES: [&str; 20] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "http2-settings",
    "upgrade",
    "te",
    "transfer-encoding",
    "x-forwarded-for",
    "x_forwarded_for",
    "x-real-ip",
    "forwarded",
    "sec-websocket-key",
    "sec-websocket-version",
    "x-hop",
    "x-end",
    "content-length",
    "expect",
    "via",
    "trailer",
];
const VALUES: [&str; 14] = [
    "upgrade",
    "close, x-hop",
    "X-Hop,te,Host",
    "websocket",
    "chunked",
    "trailers",
    "gzip, trailers",
    "13",
    "0",
    "5",
    "100-continue",
    "6.6.6.6",
    "",
    "keep-alive, upgrade",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    #[test]
    fn nothing_of_the_connection_is_left(
        picked in prop::collection::vec((prop::sample::select(&NAMES[..]), prop::sample::select(&VALUES[..])), 0..12),
        version in prop::sample::select(&[Version::HTTP_10, Version::HTTP_11, Version::HTTP_2][..]),
        body_ended: bool,
    ) {
        let mut lines = picked;
        lines.push(HOST);
        let case = Case { version, body_ended, ..get(&lines) };
        let Ok((head, inspected)) = case.run() else { return Ok(()) };
        let has = |name: &str| head.headers.contains_key(name);
        for name in ["keep-alive", "proxy-connection", "proxy-authorization", "http2-settings", "x-real-ip", "x_forwarded_for",
            "forwarded"] {
            prop_assert!(!has(name), "{}", name);
        }
        prop_assert_eq!(has("expect"), inspected.expects);
        prop_assert_eq!(has("connection"), inspected.websocket);
        prop_assert_eq!(has("upgrade"), inspected.websocket);
        prop_assert!(!(inspected.websocket && (!body_ended || has("te"))));
        prop_assert!(!has("te") || one(&head, "te") == "trailers");
        prop_assert!(!has("transfer-encoding"));
        prop_assert!(!(has("content-length") && all(&head, "content-length").len() > 1));
        prop_assert_eq!(one(&head, "host"), "a.test");
        prop_assert_eq!(one(&head, "x-forwarded-for"), "10.0.0.1");
        let nominates = |line: &(&str, &str)| line.0 == "connection" && line.1.to_lowercase().contains("x-hop");
        prop_assert!(!(has("x-hop") && lines.iter().any(nominates)));
    }
}

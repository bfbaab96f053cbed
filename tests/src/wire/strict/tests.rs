use super::*;

fn post(fields: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n\r\n{body}")
}

fn complaint(bytes: &str) -> String {
    match messages(bytes.as_bytes()) {
        Ok(_) => String::new(),
        Err(violations) => violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    }
}

#[test]
fn reads_a_pipeline_byte_exact() {
    let bytes = format!(
        "GET /a HTTP/1.1\r\nHost: a.test\r\n\r\n{}{}",
        post("Content-Length: 3", "abc"),
        post("Transfer-Encoding: Chunked", "2\r\nde\r\n1\r\nf\r\n0\r\nx-sum: 9\r\n\r\n"),
    );
    let found = messages(bytes.as_bytes()).unwrap();
    assert_eq!(
        found.iter().map(|message| message.body.as_slice()).collect::<Vec<_>>(),
        [&b""[..], b"abc", b"def"]
    );
    assert_eq!(found[2].trailers, [Field { name: String::from("x-sum"), value: b"9".to_vec() }]);
}

#[test]
fn every_prefix_is_incomplete_and_never_complete() {
    let bytes = post("Transfer-Encoding: chunked", "a\r\n0123456789\r\n0\r\n\r\n");
    for end in 0..bytes.len() {
        assert_eq!(request(&bytes.as_bytes()[..end]), Step::Incomplete, "{end}");
    }
    assert!(matches!(request(bytes.as_bytes()), Step::Complete(_, length) if length == bytes.len()));
}

#[test]
fn names_what_is_wrong_with_a_head() {
    let cases = [
        ("GET / HTTP/1.1\r\n\r\n", "0 Host fields"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "2 Host fields"),
        ("GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", "malformed Host"),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "three parts"),
        ("GET / HTTP/1.0\r\nHost: a\r\n\r\n", "version"),
        ("GE(T / HTTP/1.1\r\nHost: a\r\n\r\n", "method"),
        ("TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", "TRACE reached"),
        ("GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", "origin form"),
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", "bare LF"),
        ("GET / HTTP/1.1\nHost: a\n\n", "bare LF"),
        ("GET / HTTP/1.1\r\nHost: a\r\nx: a\rb\r\n\r\n", "bare CR"),
        ("GET / HTTP/1.1\r\nHost: a\r\nx: a\0b\r\n\r\n", "NUL"),
        ("GET / HTTP/1.1\r\nHost: a\r\nx: a\r\n b\r\n\r\n", "not a field line"),
        ("GET / HTTP/1.1\r\nHost: a\r\nx : a\r\n\r\n", "not a field line"),
        ("GET / HTTP/1.1\r\nHost: a\r\nx: a\u{1}\r\n\r\n", "control byte"),
    ];
    for (bytes, expected) in cases {
        assert!(complaint(bytes).contains(expected), "{bytes:?}: {}", complaint(bytes));
    }
}

#[test]
fn names_what_is_wrong_with_framing() {
    let cases = [
        ("Content-Length: 1\r\nTransfer-Encoding: chunked", "0\r\n\r\n", "both"),
        ("Content-Length: 1\r\nContent-Length: 1", "a", "more than one Content-Length"),
        ("Content-Length: 01", "a", "Content-Length is 01"),
        ("Content-Length: +1", "a", "Content-Length is"),
        ("Content-Length: 5", "abc", "ends inside"),
        ("Transfer-Encoding: gzip, chunked", "0\r\n\r\n", "not one `chunked`"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "0\r\n\r\n", "not one `chunked`"),
        ("Transfer-Encoding: chunked", "0x1\r\na\r\n0\r\n\r\n", "malformed chunk size"),
        ("Transfer-Encoding: chunked", "1;a=b\r\na\r\n0\r\n\r\n", "malformed chunk size"),
        ("Transfer-Encoding: chunked", "1\r\nab\r\n0\r\n\r\n", "not followed by CRLF"),
        ("Transfer-Encoding: chunked", "1\r\na\r\n0\r\nContent-Length: 2\r\n\r\n", "in the trailers"),
        ("Transfer-Encoding: chunked", "1\r\na\r\n", "ends inside"),
    ];
    for (fields, body, expected) in cases {
        let found = complaint(&post(fields, body));
        assert!(found.contains(expected), "{fields:?} {body:?}: {found}");
    }
}

#[test]
fn names_hop_by_hop_fields() {
    let cases = [
        ("Keep-Alive: timeout=5", "keep-alive"),
        ("Connection: cookie", "nominates cookie"),
        ("TE: gzip", "TE other"),
        ("TE: trailers", "TE other"),
        ("Upgrade: h2c\r\nConnection: upgrade", "Upgrade other"),
        ("X_Forwarded_For: 1.2.3.4", "imitates"),
    ];
    for (fields, expected) in cases {
        assert!(complaint(&post(fields, "")).contains(expected), "{fields}");
    }
    for fields in ["TE: trailers\r\nConnection: TE", "Connection: keep-alive", "X-Forwarded-For: 1.2.3.4"] {
        assert_eq!(complaint(&post(fields, "")), "", "{fields}");
    }
    let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(complaint(upgrade), "");
}

//! curl as the client: versions of HTTP, bodies both ways, what of HTTP is rare.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use system_tests::certificate::Certificate;
use system_tests::proxy::{RunningProxy, start_with};
use system_tests::tools;
use system_tests::wire::recorder::Recorder;
use system_tests::workers::{self, Manner, Worker};
use tempfile::TempDir;

/// A worker, the proxy with and without TLS before it, and curl.
struct Setup {
    _worker: Worker,
    plain: RunningProxy,
    tls: RunningProxy,
    certificate: PathBuf,
    _folder: TempDir,
}

/// What curl saw.
#[derive(Debug)]
struct Seen {
    status: u16,
    /// `1`, `1.1` or `2`.
    version: String,
    /// The heads and trailers as curl notes them.
    head: String,
    body: Vec<u8>,
}

async fn setup() -> Setup {
    let folder = tempfile::tempdir().expect("a folder");
    let certificate = Certificate::write(folder.path());
    let flags = certificate.flags();
    let worker = workers::start("a", Manner::default()).await;
    let plain = start_with(&[worker.address], "{}", &[]);
    let tls = start_with(&[worker.address], "{}", &flags.each_ref().map(String::as_str));
    let certificate = certificate.certificate;
    Setup { _worker: worker, plain, tls, certificate, _folder: folder }
}

/// What curl is told, the address, and the protocol that must come of it.
type Way = (Vec<String>, String, &'static str);

impl Setup {
    /// Every way to speak to the proxy: curl's flags, the URL, the version that must come of it.
    fn ways(&self) -> Vec<Way> {
        let flags = |flags: &[&str]| flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>();
        let ca = self.certificate.display().to_string();
        let (http, https) =
            (url("http", self.plain.data), format!("https://localhost:{}", self.tls.data.port()));
        vec![
            (flags(&["--http1.1"]), http.clone(), "1.1"),
            (flags(&["--http2-prior-knowledge"]), http, "2"),
            (flags(&["--http1.1", "--cacert", &ca]), https.clone(), "1.1"),
            (flags(&["--http2", "--cacert", &ca]), https, "2"),
        ]
    }
}

fn url(scheme: &str, address: SocketAddr) -> String {
    format!("{scheme}://{address}")
}

/// Runs curl with this on its standard input.
async fn curl(flags: &[String], more: &[&str], input: &[u8]) -> Seen {
    let folder = tempfile::tempdir().expect("a folder");
    let (head, body) = (folder.path().join("head"), folder.path().join("body"));
    let mut command = Command::new(tools::program("curl"));
    command.args(["--silent", "--show-error", "--max-time", "60", "--noproxy", "*"]);
    command.args(["--write-out", "%{http_code} %{http_version}"]);
    command.arg("--dump-header").arg(&head).arg("--output").arg(&body).args(flags).args(more);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let input = input.to_vec();
    let run = move || {
        let mut child = command.spawn().expect("curl starts");
        let mut stdin = child.stdin.take().expect("piped");
        let _ = stdin.write_all(&input); // an error: curl did not want it all, and says why
        drop(stdin);
        child.wait_with_output().expect("curl ends")
    };
    let output = tokio::task::spawn_blocking(run).await.expect("no panic");
    assert!(output.status.success(), "curl {flags:?} {more:?}: {}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout).expect("text");
    let (status, version) = told.split_once(' ').expect("two words");
    Seen {
        status: status.parse().expect("a status"),
        version: version.to_owned(),
        head: std::fs::read_to_string(head).expect("a head").to_lowercase(),
        body: std::fs::read(body).unwrap_or_default(), // curl makes no file for no body
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_pass_whole_both_ways_in_every_version() {
    let setup = setup().await;
    let file = workers::file();
    for (flags, url, version) in setup.ways() {
        let down = curl(&flags, &[&format!("{url}/file")], b"").await;
        assert_eq!((down.status, down.version.as_str()), (200, version), "{flags:?}");
        assert!(down.body == file, "{flags:?}: {} bytes came, and not those", down.body.len());
        let echo = format!("{url}/echo");
        let up = curl(&flags, &["--data-binary", "@-", "--header", "expect:", &echo], &file).await;
        assert_eq!((up.status, up.version.as_str()), (200, version), "{flags:?}");
        assert!(up.body == file, "{flags:?}: {} bytes came back, and not those", up.body.len());
        let chunked = curl(&flags, &["--upload-file", "-", &echo], &file).await;
        assert!(chunked.body == file, "{flags:?}: {} bytes of unknown length came back", chunked.body.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_and_heads_are_what_was_asked_for() {
    let setup = setup().await;
    let file = workers::file();
    for (flags, url, version) in setup.ways() {
        let file_url = format!("{url}/file");
        let part = curl(&flags, &["--range", "1000-70000", &file_url], b"").await;
        assert_eq!((part.status, part.version.as_str()), (206, version), "{flags:?}");
        assert!(part.head.contains("content-range: bytes 1000-70000/"), "{}", part.head);
        assert!(part.body == file[1000..=70000], "{flags:?}");
        let head = curl(&flags, &["--head", &file_url], b"").await;
        assert_eq!(head.status, 200, "{flags:?}");
        assert!(head.head.contains(&format!("content-length: {}", file.len())), "{}", head.head);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_waits_for_leave_gets_it() {
    let setup = setup().await;
    let file = workers::file();
    let echo = format!("{}/echo", url("http", setup.plain.data));
    let flags =
        ["--http1.1", "--header", "expect: 100-continue", "--expect100-timeout", "30"].map(str::to_owned);
    let seen = curl(&flags, &["--max-time", "20", "--data-binary", "@-", &echo], &file).await;
    assert!(seen.head.starts_with("http/1.1 100"), "leave comes before curl's patience ends: {}", seen.head);
    assert_eq!(seen.status, 200);
    assert!(seen.body == file);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_reaches_the_worker_as_it_was_typed() {
    let worker = Recorder::start().await.expect("a worker");
    let proxy = start_with(&[worker.address], "{}", &[]);
    for query in ["q=100%", "u=%u20AC", "q=\"x\"", "q=<b>", "q=a|b", "q[]={1}", "q=%00", "q=C:\\x", "q=/../x"]
    {
        let flags = ["--http1.1", "--globoff"].map(str::to_owned);
        let seen = curl(&flags, &[&format!("{}/q?{query}", url("http", proxy.data))], b"").await;
        let told = String::from_utf8(seen.body).expect("text");
        assert_eq!((seen.status, told), (200, format!("GET /q?{query} 0")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_is_served_and_its_connection_closed() {
    let setup = setup().await;
    let flags = ["--http1.0"].map(str::to_owned);
    let base = url("http", setup.plain.data);
    let seen = curl(&flags, &[&format!("{base}/file")], b"").await;
    assert_eq!((seen.status, seen.version.as_str()), (200, "1"), "the answer to 1.0 is 1.0: {}", seen.head);
    assert!(seen.body == workers::file());
    assert!(!seen.head.contains("transfer-encoding"), "1.0 knows no chunks: {}", seen.head);
    let trailer = curl(&flags, &[&format!("{base}/trailer")], b"").await;
    assert_eq!(trailer.body, b"checked", "a body of unknown length ends with the connection");
    assert!(!trailer.head.contains("transfer-encoding"), "{}", trailer.head);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_after_the_body_arrives() {
    let setup = setup().await;
    for (flags, url, _) in setup.ways() {
        let seen = curl(&flags, &["--header", "te: trailers", &format!("{url}/trailer")], b"").await;
        assert_eq!(seen.body, b"checked", "{flags:?}");
        assert!(seen.head.contains("x-checksum: 6f1e"), "{flags:?}: {}", seen.head);
    }
}

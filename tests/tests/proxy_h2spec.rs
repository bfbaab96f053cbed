//! h2spec, the conformance suite of RFC 9113 and RFC 7541, against the listener.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use system_tests::certificate::Certificate;
use system_tests::proxy::start_with;
use system_tests::tools;
use system_tests::workers::{self, Manner};

/// Cases that do not pass over plain TCP, and why; `docs/conformance.md` says it at length.
const SKIPPED: &[(&str, &str)] = &[(
    "Sends invalid connection preface",
    "the port speaks HTTP/1.1 too: what does not begin with the preface is a broken HTTP/1.1 request, answered 400",
)];
/// What h2spec 2.2.1 has, so that a run that tests less does not pass.
const CASES: usize = 145;

/// A case and how it went.
struct Case {
    name: String,
    section: String,
    failure: Option<String>,
    skipped: bool,
}

#[tokio::test(flavor = "multi_thread")]
async fn by_prior_knowledge_all_but_what_is_documented() {
    let worker = workers::start("a", Manner::default()).await;
    let proxy = start_with(&[worker.address], "{}", &[]);
    let cases = h2spec(proxy.data, &[]).await;
    let failed = failed(&cases);
    let names: Vec<_> = failed.iter().map(|case| case.name.as_str()).collect();
    let documented: Vec<_> = SKIPPED.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, documented, "{}", told(&failed));
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let flags = Certificate::write(folder.path()).flags();
    let worker = workers::start("a", Manner::default()).await;
    let proxy = start_with(&[worker.address], "{}", &flags.each_ref().map(String::as_str));
    let cases = h2spec(proxy.data, &["--tls", "--insecure"]).await;
    let failed = failed(&cases);
    assert!(failed.is_empty(), "{}", told(&failed));
}

/// Runs the whole suite.
async fn h2spec(proxy: SocketAddr, flags: &[&str]) -> Vec<Case> {
    let folder = tempfile::tempdir().expect("a folder");
    let report = folder.path().join("report.xml");
    let mut command = Command::new(tools::built("h2spec-2.2.1"));
    command.args(["--host", "127.0.0.1", "--port", &proxy.port().to_string(), "--timeout", "3"]);
    command.args(["--path", "/headers"]); // an answer of some bytes: windows of a few are part of the cases
    command.arg("--junit-report").arg(&report).args(flags);
    let ran = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
    let output = ran.expect("h2spec runs");
    assert!(report.exists(), "h2spec reports nothing: {output:?}");
    let cases = read(&report);
    assert_eq!(cases.len(), CASES, "every case ran");
    cases
}

/// The cases of a JUnit report.
fn read(report: &Path) -> Vec<Case> {
    let text = std::fs::read_to_string(report).expect("a report");
    let mut cases = Vec::new();
    for case in text.split("<testcase ").skip(1) {
        let (attributes, rest) = case.split_once('>').expect("a tag ends");
        let inside =
            if attributes.ends_with('/') { "" } else { rest.split("</testcase>").next().unwrap_or("") };
        let attribute = |name: &str| {
            let value =
                attributes.split_once(&format!("{name}=\"")).and_then(|(_, rest)| rest.split('"').next());
            value.unwrap_or_else(|| panic!("no {name}: {attributes}")).to_owned()
        };
        let broken = inside.contains("<failure") || inside.contains("<error");
        cases.push(Case {
            name: attribute("classname"),
            section: attribute("package"),
            failure: broken.then(|| inside.trim().to_owned()),
            skipped: inside.contains("<skipped"),
        });
    }
    cases
}

/// What failed or was left out.
fn failed(cases: &[Case]) -> Vec<&Case> {
    cases.iter().filter(|case| case.failure.is_some() || case.skipped).collect()
}

fn told(cases: &[&Case]) -> String {
    let lines = cases.iter().map(|case| {
        format!("{}: {}: {}\n", case.section, case.name, case.failure.as_deref().unwrap_or("skipped"))
    });
    lines.collect()
}

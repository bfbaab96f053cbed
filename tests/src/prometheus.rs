//! A real Prometheus that scrapes what a test tells it to, its linter, and a strict parser of OpenMetrics.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::client::{self, get};
use crate::tools::{self, Started};

/// A Prometheus.
pub struct Prometheus {
    address: SocketAddr,
    _process: Started,
    _dir: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes each job's target five times a second, in the format of that name.
    pub async fn start(jobs: &[(&str, SocketAddr, &str)]) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let mut config =
            String::from("global: {scrape_interval: 200ms, scrape_timeout: 200ms}\nscrape_configs:\n");
        for (job, target, format) in jobs {
            config.push_str(&format!(
                "- {{job_name: {job}, scrape_protocols: [{format}], static_configs: [{{targets: ['{target}']}}]}}\n"
            ));
        }
        std::fs::write(dir.path().join("prometheus.yaml"), config).expect("writable");
        let address = tools::free_address();
        let mut command = Command::new(tools::of_cluster("prometheus"));
        command.arg("--config.file").arg(dir.path().join("prometheus.yaml"));
        command.arg("--storage.tsdb.path").arg(dir.path().join("data"));
        command.arg("--web.listen-address").arg(address.to_string()).args(["--log.level", "error"]);
        let process = Started::new(&mut command);
        tools::until_it_accepts(address);
        let started = Self { address, _process: process, _dir: dir };
        while client::send(address, get("/-/ready", &[])).await.is_ok_and(|answer| answer.status != 200) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        started
    }

    /// The value of each series that an expression gives now.
    pub async fn query(&self, expression: &str) -> Vec<f64> {
        let query: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!("/api/v1/query?query={query}");
        let answer = client::send(self.address, get(&path, &[])).await.expect("an answer");
        assert_eq!(answer.status, 200, "{expression}: {}", answer.text());
        let answer: Value = serde_json::from_slice(&answer.body).expect("JSON");
        let series = answer["data"]["result"].as_array().expect("a vector").iter();
        let value = |one: &Value| one["value"][1].as_str().and_then(|value| value.parse().ok());
        series.map(|one| value(one).expect("a number")).collect()
    }

    /// Waits until an expression gives one value, and that is as it should be.
    pub async fn until(&self, expression: &str, is_right: impl Fn(f64) -> bool) -> f64 {
        let started = Instant::now();
        loop {
            let values = self.query(expression).await;
            match values[..] {
                [value] if is_right(value) => return value,
                _ if Duration::from_secs(20) < started.elapsed() => panic!("{expression} is {values:?}"),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// What `promtool check metrics` has to say of a page of text; nothing of a good one.
pub fn lint(page: &str) -> String {
    said(Command::new(tools::of_cluster("promtool")).args(["check", "metrics"]), page)
}

/// What a strict parser of OpenMetrics (Python's `prometheus_client`) has to say of a page; nothing of a good one.
pub fn parse_open_metrics(page: &str) -> String {
    const PARSE: &str =
        "import sys; from prometheus_client.openmetrics.parser import text_fd_to_metric_families as read
families = list(read(sys.stdin)); assert families, 'no families'";
    let package = tools::cached("python/prometheus_client-0.26.0");
    said(Command::new(tools::program("python3")).args(["-c", PARSE]).env("PYTHONPATH", package), page)
}

/// What a program says of its input.
fn said(command: &mut Command, input: &str) -> String {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    let Output { status, stdout, stderr } = child.wait_with_output().expect("it ends");
    let said = [stdout, stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(status.success() || !said.is_empty(), "{status} without a word");
    said
}

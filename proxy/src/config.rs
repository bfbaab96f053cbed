//! The settings of the process, by flag and environment. Never policy: that changes while it runs.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand};
use ipnet::IpNet;
use outrigger_policy::units::{DurationText, NotADuration};

/// The sidecar proxy: balances, pins, breaks and limits among the workers of one pod or machine.
#[derive(Debug, Parser)]
#[command(name = "outrigger-proxy", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve in front of workers that others start.
    Serve(Serve),
    /// Start the workers too: `run --workers 4 -- node server.js`.
    Run(Run),
    /// Say whether policy files are valid, with every violation.
    Check {
        /// Files or directories.
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// Ask a running proxy to drain and end, as SIGTERM does: for a container's preStop hook, without a shell.
    Drain {
        /// The proxy's process.
        #[arg(long, default_value_t = 1)]
        pid: i32,
    },
    /// Started by `run` for each worker: starts the worker, and ends it when the proxy is gone.
    #[command(hide = true)]
    Warden,
}

/// `serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// The workers, `NAME=HOST:PORT` or `NAME=PORT`, separated by commas.
    #[arg(long, env = "OUTRIGGER_WORKERS", value_delimiter = ',', required = true)]
    pub workers: Vec<WorkerAddress>,
    #[command(flatten)]
    pub process: Process,
}

/// `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// How many workers; each gets its own `PORT`. `auto`: one per core.
    #[arg(long, env = "WORKERS", default_value = "auto")]
    pub workers: WorkerCount,
    /// Ports of the workers, counted up from this one: two for each, of which a rolling restart takes the other one. All must
    /// be free. Absent: any that are free.
    #[arg(long, env = "OUTRIGGER_WORKER_PORT")]
    pub worker_port: Option<u16>,
    #[command(flatten)]
    pub process: Process,
    /// The command that starts one worker.
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// What both have.
#[derive(Clone, Debug, Args)]
pub struct Process {
    /// Where clients are served: `PORT`, `IP:PORT` or `localhost:PORT`. Absent: port `PORT` of the environment, or 8000, on
    /// every interface.
    #[arg(long, env = "OUTRIGGER_LISTEN", value_parser = address_everywhere)]
    pub listen: Option<SocketAddr>,
    /// The port of clients, where `--listen` is absent.
    #[arg(long, env = "PORT", default_value_t = 8000)]
    pub port: u16,
    /// Share the address of clients with another process, such as a proxy that is to take over. Otherwise a start fails where
    /// somebody listens already.
    #[arg(long, env = "OUTRIGGER_REUSE_PORT", default_value_t = false)]
    pub reuse_port: bool,
    /// Where proxies of the same workload are served. Absent: nowhere.
    #[arg(long, env = "OUTRIGGER_SIBLING_LISTEN", value_parser = address_everywhere, requires_all = ["operator", "instance"])]
    pub sibling_listen: Option<SocketAddr>,
    /// What tells this proxy from all others of its workload, for sessions: the same for as long as its workers live.
    #[arg(long, env = "OUTRIGGER_INSTANCE")]
    pub instance: Option<String>,
    /// Where health, metrics and the API are served: `PORT` of this machine alone, `IP:PORT` or `localhost:PORT`.
    #[arg(long, env = "OUTRIGGER_ADMIN_LISTEN", value_parser = address_here, default_value = "127.0.0.1:9900")]
    pub admin_listen: SocketAddr,
    /// The file with the token that the API asks for. It is read for each request: rotating it needs no restart.
    #[arg(long, env = "OUTRIGGER_ADMIN_TOKEN_FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// Serve the API without a token to clients on this machine.
    #[arg(long, env = "OUTRIGGER_ADMIN_OPEN", default_value_t = false)]
    pub admin_open: bool,
    /// A policy file, or a directory of them; edits are applied live.
    #[arg(long, env = "OUTRIGGER_POLICY", conflicts_with = "operator")]
    pub policy: Option<PathBuf>,
    /// Whether a proxy of an operator serves nothing until it has a policy. Otherwise it serves with the defaults when
    /// none came within `--policy-timeout`.
    #[arg(long, env = "OUTRIGGER_REQUIRE_POLICY", default_value_t = true, action = ArgAction::Set, requires = "operator")]
    pub require_policy: bool,
    /// How long clients wait at the start for the operator's first policy.
    #[arg(long, env = "OUTRIGGER_POLICY_TIMEOUT", default_value = "10s", value_parser = duration, requires = "operator")]
    pub policy_timeout: Duration,
    /// The operator to take the policy from, `HOST:PORT`.
    #[arg(long, env = "OUTRIGGER_OPERATOR")]
    pub operator: Option<String>,
    /// The certificates, in PEM, that the operator's certificate must come from.
    #[arg(long, env = "OUTRIGGER_OPERATOR_CA", requires = "operator", allow_hyphen_values = true)]
    // PEM begins with them
    pub operator_ca: Option<String>,
    /// The file with the token that tells the operator who this proxy is.
    #[arg(long, env = "OUTRIGGER_TOKEN_FILE", default_value = "/var/run/secrets/outrigger.dev/token")]
    pub token_file: PathBuf,
    /// Where the last good policy and the session keys are kept.
    #[arg(long, env = "OUTRIGGER_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Data threads. Absent: one per core of the process's quota.
    #[arg(long, env = "OUTRIGGER_THREADS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub threads: Option<u16>,
    /// The certificate chain, in PEM, of TLS on the listener; reloaded when the file changes.
    #[arg(long, env = "OUTRIGGER_TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// The key of the certificate, in PEM.
    #[arg(long, env = "OUTRIGGER_TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Proxies before this one whose `X-Forwarded-*` is believed, counted from the nearest.
    #[arg(long, env = "OUTRIGGER_TRUSTED_HOPS", default_value_t = 0)]
    pub trusted_hops: u8,
    /// Networks of proxies whose `X-Forwarded-*` is believed.
    #[arg(long, env = "OUTRIGGER_TRUSTED_NETWORKS", value_delimiter = ',')]
    pub trusted_networks: Vec<IpNet>,
    /// Connections of clients open at once, over all threads. Absent: 10,000, or as many as the limit of open files is
    /// enough for.
    #[arg(long, env = "OUTRIGGER_MAX_CONNECTIONS", value_parser = max_connections)]
    pub max_connections: Option<usize>,
    /// Connections open at once from one address. Absent: as many as there may be in all. Not for a proxy behind another one:
    /// all its clients have that one's address.
    #[arg(long, env = "OUTRIGGER_MAX_CONNECTIONS_PER_ADDRESS", value_parser = max_connections)]
    pub max_connections_per_address: Option<usize>,
    /// The memory that the process may have, as `256Mi` or in bytes. Absent: that of its control group, or of the machine. Near
    /// it, connections that hold much and do not move are ended.
    #[arg(long, env = "OUTRIGGER_MEMORY_LIMIT", value_parser = bytes)]
    pub memory_limit: Option<u64>,
    /// What is logged: `error`, `warn`, `info`, `debug`, or a filter such as `outrigger_proxy=debug`.
    #[arg(long, env = "OUTRIGGER_LOG", default_value = "info", value_parser = log_filter)]
    pub log: String,
}

/// A worker that someone else starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerAddress {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
}

/// How many workers to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerCount {
    /// One per core.
    Auto,
    /// So many.
    Count(usize),
}

impl Serve {
    /// The workers, each once.
    ///
    /// # Errors
    /// Which two have one name or one address.
    pub fn distinct_workers(&self) -> Result<&[WorkerAddress], String> {
        for (i, worker) in self.workers.iter().enumerate() {
            let before = &self.workers[..i];
            if before.iter().any(|other| other.name == worker.name) {
                return Err(format!(
                    "two workers are named '{}' (--workers): names must differ",
                    worker.name
                ));
            }
            if let Some(other) = before.iter().find(|other| other.address == worker.address) {
                let (one, other, address) = (&other.name, &worker.name, worker.address);
                return Err(format!(
                    "'{one}' and '{other}' are both {address} (--workers): a worker has one name, and more requests by its weight"
                ));
            }
        }
        Ok(&self.workers)
    }
}

impl Process {
    /// Where clients are served.
    pub fn listen(&self) -> SocketAddr {
        self.listen.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], self.port)))
    }

    /// How many data threads.
    pub fn threads(&self) -> usize {
        self.threads.map_or_else(cores, usize::from)
    }
}

impl WorkerCount {
    /// The number meant.
    pub fn get(self) -> usize {
        match self {
            Self::Auto => cores(),
            Self::Count(count) => count,
        }
    }
}

/// An address to listen on; a port alone is on every interface.
fn address_everywhere(text: &str) -> Result<SocketAddr, String> {
    address(text, Ipv4Addr::UNSPECIFIED)
}

/// An address of this machine where it is a port alone.
fn address_here(text: &str) -> Result<SocketAddr, String> {
    address(text, Ipv4Addr::LOCALHOST)
}

fn address(text: &str, host: Ipv4Addr) -> Result<SocketAddr, String> {
    let port = |port: &str| port.parse::<u16>().ok();
    if let Some(port) = port(text.strip_prefix(':').unwrap_or(text)) {
        return Ok(SocketAddr::from((host, port)));
    }
    if let Some(port) = text.strip_prefix("localhost:").and_then(port) {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    let wrong =
        || format!("'{text}' is neither PORT nor IP:PORT nor localhost:PORT, with a port from 0 to 65535");
    text.parse().map_err(|_| wrong())
}

/// A level, or a filter with targets. A word that is no level would be a target, and silence all others.
fn log_filter(text: &str) -> Result<String, String> {
    let is_level = |word: &str| {
        ["off", "error", "warn", "info", "debug", "trace"]
            .iter()
            .any(|level| level.eq_ignore_ascii_case(word))
    };
    let mut directives = text.split(',').map(str::trim);
    if let Some(word) = directives.find(|directive| !directive.contains(['=', '[']) && !is_level(directive)) {
        return Err(format!("'{word}' is no level; they are error, warn, info, debug, trace and off"));
    }
    Ok(text.to_owned())
}

fn duration(text: &str) -> Result<Duration, NotADuration> {
    DurationText(text.to_owned()).parse()
}

fn max_connections(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if 0 < count => Ok(count),
        _ => Err("must be a number from 1".to_owned()),
    }
}

/// A number of bytes: whole, with a unit such as `Mi` or without.
fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is no number of bytes; write 268435456, 256Mi or 1Gi");
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "" => 1,
        "k" => 1000,
        "M" => 1000 * 1000,
        "G" => 1000 * 1000 * 1000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return Err(wrong()),
    };
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    count.checked_mul(unit).filter(|bytes| 0 < *bytes).ok_or_else(wrong)
}

/// The cores of the process's quota.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl FromStr for WorkerCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(count) if (1..=256).contains(&count) => Ok(Self::Count(count)),
            _ if text == "auto" => Ok(Self::Auto),
            _ => Err("must be 1 to 256, or 'auto'".to_owned()),
        }
    }
}

impl FromStr for WorkerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, address) = text.split_once('=').ok_or("must be NAME=PORT or NAME=HOST:PORT")?;
        if name.is_empty() {
            return Err("must have a name before the '='".to_owned());
        }
        let address = address_here(address)?;
        if address.port() == 0 {
            return Err("port 0 is no worker's port".to_owned());
        }
        Ok(Self { name: name.to_owned(), address })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_are_named_addresses() {
        let parse = |text: &str| text.parse::<WorkerAddress>().map(|worker| worker.address.to_string());
        assert_eq!(parse("a=8081").as_deref(), Ok("127.0.0.1:8081"));
        assert_eq!(parse("a=[::1]:8081").as_deref(), Ok("[::1]:8081"));
        assert_eq!(parse("a=localhost:8081").as_deref(), Ok("127.0.0.1:8081"));
        for wrong in ["8081", "=8081", "a=", "a=localhost", "a=99999", "a=0", "a=host:1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn memory_is_written_with_a_unit_or_without() {
        assert_eq!(["256Mi", "1Gi", "1k", "5"].map(bytes), [256 << 20, 1 << 30, 1000, 5].map(Ok));
        for wrong in ["", "Mi", "1.5Gi", "-1", "0", "1mi", "99999999999Gi"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_are_written_in_short_too() {
        let listen = |text: &str| address_everywhere(text).map(|address| address.to_string());
        let here = |text: &str| address_here(text).map(|address| address.to_string());
        assert_eq!(listen("8000").as_deref(), Ok("0.0.0.0:8000"));
        assert_eq!(listen(":8000").as_deref(), Ok("0.0.0.0:8000"));
        assert_eq!(here(":8000").as_deref(), Ok("127.0.0.1:8000"));
        assert_eq!(listen("localhost:3000").as_deref(), Ok("127.0.0.1:3000"));
        assert_eq!(listen("[::]:80").as_deref(), Ok("[::]:80"));
        for wrong in [
            "",
            ":",
            "localhost",
            "localhost:",
            "localhost:x",
            "65536",
            "-1",
            "1.2.3.4",
            "host:80",
            "1.2.3.4:",
        ] {
            assert!(
                listen(wrong).is_err_and(|said| said.contains(wrong) && said.contains("IP:PORT")),
                "{wrong}"
            );
        }
    }

    /// Wrong command lines, and what is said of each.
    #[test]
    fn what_is_wrong_on_the_command_line_is_said() {
        let mut wrong = Vec::new();
        for (line, expected) in [
            ("", "Usage: outrigger-proxy <COMMAND>"),
            ("srve", "a similar subcommand exists: 'serve'"),
            ("serve", "--workers"),
            ("serve --worker a=1", "a similar argument exists: '--workers'"),
            ("serve --workers a=1 --lisen 80", "a similar argument exists: '--listen'"),
            ("serve --workers a=1 --polcy x", "a similar argument exists: '--policy'"),
            ("serve --workers a=1 --listen nowhere", "'nowhere' is neither PORT nor IP:PORT"),
            ("serve --workers a=1 --listen 99999", "'99999' is neither PORT"),
            ("serve --workers a=1 --listen localhost", "'localhost' is neither PORT"),
            ("serve --workers a=1 --admin-listen x:1", "--admin-listen"),
            ("serve --workers a", "NAME=PORT or NAME=HOST:PORT"),
            ("serve --workers =1", "must have a name before the '='"),
            ("serve --workers a=", "'' is neither PORT"),
            ("serve --workers a=0", "port 0 is no worker's port"),
            ("serve --workers a=1 --log nonsense", "'nonsense' is no level; they are error, warn, info"),
            ("serve --workers a=1 --log info,nonsense", "'nonsense' is no level"),
            ("serve --workers a=1,b", "NAME=PORT or NAME=HOST:PORT"),
            ("serve --workers a=1 --tls-cert x", "--tls-key"),
            ("serve --workers a=1 --tls-key x", "--tls-cert"),
            ("serve --workers a=1 --threads 0", "0 is not in 1..=256"),
            ("serve --workers a=1 --threads x", "invalid digit"),
            ("serve --workers a=1 --policy x --operator y:1", "cannot be used with"),
            ("serve --workers a=1 --operator-ca x", "--operator"),
            ("serve --workers a=1 --require-policy maybe", "[possible values: true, false]"),
            ("serve --workers a=1 --require-policy true", "--operator"),
            (
                "serve --workers a=1 --operator y:1 --policy-timeout soon",
                "must be a duration such as '250ms'",
            ),
            ("serve --workers a=1 --trusted-hops 300", "300 is not in 0..=255"),
            ("serve --workers a=1 --trusted-networks 10.0.0.0", "invalid IP address syntax"),
            ("serve --workers a=1 --max-connections many", "must be a number from 1"),
            ("serve --workers a=1 --sibling-listen 1", "--operator"),
            ("serve --workers a=1 extra", "unexpected argument 'extra'"),
            ("run", "COMMAND"),
            ("run node server.js", "unexpected argument 'node'"),
            ("run --workers 0 -- node", "must be 1 to 256, or 'auto'"),
            ("run --workers many -- node", "must be 1 to 256, or 'auto'"),
            ("run --worker-port 70000 -- node", "70000 is not in 0..=65535"),
            ("check", "<PATHS>..."),
            ("check --polcy x", "unexpected argument '--polcy'"),
            ("drain --pid x", "invalid digit"),
            ("drain 1", "unexpected argument '1'"),
        ] {
            let error =
                Cli::try_parse_from(std::iter::once("outrigger-proxy").chain(line.split_whitespace()))
                    .map(|_| ())
                    .expect_err(line)
                    .to_string();
            if !error.contains(expected) {
                wrong.push(format!("{line}: {error}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn workers_are_told_apart() {
        let said = |workers: &str| {
            let line = ["outrigger-proxy", "serve", "--workers", workers];
            match Cli::try_parse_from(line).expect("valid flags").command {
                Command::Serve(serve) => serve.distinct_workers().map(<[_]>::len),
                _ => panic!("it is `serve`"),
            }
        };
        assert_eq!(said("a=1,b=2"), Ok(2));
        assert!(said("a=1,a=2").is_err_and(|said| said.contains("two workers are named 'a'")));
        assert!(
            said("a=1,b=localhost:1").is_err_and(|said| said.contains("'a' and 'b' are both 127.0.0.1:1"))
        );
    }

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}

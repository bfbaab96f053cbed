//! The settings of the process, by flag and environment. Never policy: that changes while it runs.

use std::net::SocketAddr;
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
    /// Ports of the workers, counted up from this one. Absent: any that are free.
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
    /// Where clients are served. Absent: port `PORT` of the environment, or 8000, on every interface.
    #[arg(long, env = "OUTRIGGER_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// The port of clients, where `--listen` is absent.
    #[arg(long, env = "PORT", default_value_t = 8000)]
    pub port: u16,
    /// Where proxies of the same workload are served. Absent: nowhere.
    #[arg(long, env = "OUTRIGGER_SIBLING_LISTEN", requires_all = ["operator", "instance"])]
    pub sibling_listen: Option<SocketAddr>,
    /// What tells this proxy from all others of its workload, for sessions: the same for as long as its workers live.
    #[arg(long, env = "OUTRIGGER_INSTANCE")]
    pub instance: Option<String>,
    /// Where health, metrics and the API are served.
    #[arg(long, env = "OUTRIGGER_ADMIN_LISTEN", default_value = "127.0.0.1:9900")]
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
    /// What is logged: `error`, `warn`, `info`, `debug`, or a filter such as `outrigger_proxy=debug`.
    #[arg(long, env = "OUTRIGGER_LOG", default_value = "info")]
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

fn duration(text: &str) -> Result<Duration, NotADuration> {
    DurationText(text.to_owned()).parse()
}

fn max_connections(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if 0 < count => Ok(count),
        _ => Err("must be a number from 1".to_owned()),
    }
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
        let address = match address.parse::<u16>() {
            Ok(port) => SocketAddr::from(([127, 0, 0, 1], port)),
            Err(_) => address.parse().map_err(|_| format!("'{address}' is neither a port nor IP:PORT"))?,
        };
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
        for wrong in ["8081", "=8081", "a=", "a=localhost:1", "a=99999"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}

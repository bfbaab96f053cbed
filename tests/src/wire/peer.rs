//! Stand-ins for the proxy: a relay that forwards every byte, to show that the oracle has teeth, and other proxies, to
//! compare with.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::tools::program;

/// Forwards bytes without a look at them.
pub async fn blind_relay(worker: SocketAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut to = TcpStream::connect(worker).await?;
                copy_bidirectional(&mut from, &mut to).await
            });
        }
    });
    Ok(address)
}

/// Another proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Haproxy,
    Nginx,
    Envoy,
}

impl Peer {
    pub const ALL: [Self; 3] = [Self::Haproxy, Self::Nginx, Self::Envoy];

    pub fn name(self) -> &'static str {
        match self {
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
            Self::Envoy => "Envoy",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy.cfg",
            Self::Nginx => "nginx.conf",
            Self::Envoy => "envoy.yaml",
        }
    }

    /// The program with its configuration in this folder.
    fn command(self, folder: &Path) -> Command {
        let config = folder.join(self.config());
        let mut command = match self {
            Self::Haproxy => Command::new(program("haproxy")),
            Self::Nginx => Command::new(program("nginx")),
            Self::Envoy => Command::new(envoy()),
        };
        match self {
            Self::Haproxy => command.args(["-db", "-f"]).arg(config),
            Self::Nginx => command.arg("-p").arg(folder).arg("-c").arg(config),
            Self::Envoy => command
                .args(["--concurrency", "1", "--disable-hot-restart", "-l", "critical", "-c"])
                .arg(config),
        };
        command
    }

    /// Starts it before one worker, as `tests/corpus/peers` configures it.
    pub async fn start(self, worker: SocketAddr) -> Result<RunningPeer> {
        let folder = tempfile::tempdir()?;
        let (data, alone) = (free().await?, free().await?);
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/peers").join(self.config());
        let config = std::fs::read_to_string(from)?
            .replace("@PORT@", &data.port().to_string())
            .replace("@PORT_H2@", &alone.port().to_string())
            .replace("@WORKER_PORT@", &worker.port().to_string())
            .replace("@WORKER@", &worker.to_string());
        std::fs::write(folder.path().join(self.config()), config)?;
        let mut command = self.command(folder.path());
        let process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let process = process.with_context(|| format!("{command:?}"))?;
        let h2 = if self == Self::Nginx { alone } else { data };
        let started = RunningPeer { data, h2, process, _folder: folder };
        for _ in 0..500 {
            if TcpStream::connect(data).await.is_ok() {
                return Ok(started);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("{} does not listen", self.name())
    }
}

/// Where `bench/install` puts Envoy.
fn envoy() -> PathBuf {
    let cache = std::env::var_os("OUTRIGGER_BENCH_CACHE").map_or_else(
        || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache/outrigger-bench"),
        PathBuf::from,
    );
    cache.join("envoy")
}

async fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind(("127.0.0.1", 0)).await?.local_addr()?)
}

/// A running peer; it ends when it is dropped.
pub struct RunningPeer {
    /// Where it speaks HTTP/1.1.
    pub data: SocketAddr,
    /// Where it speaks HTTP/2 by prior knowledge.
    pub h2: SocketAddr,
    process: Child,
    _folder: tempfile::TempDir,
}

impl Drop for RunningPeer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

//! Stand-ins for the proxy: a relay that forwards every byte, to show that the oracle has teeth, and HAProxy, to
//! compare with.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

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

/// A running HAProxy; it ends when it is dropped.
pub struct Haproxy {
    pub data: SocketAddr,
    process: Child,
    _directory: tempfile::TempDir,
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Haproxy {
    /// Starts `haproxy` of the PATH in front of one worker, with its defaults.
    pub async fn start(worker: SocketAddr) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("haproxy.cfg");
        let data = TcpListener::bind(("127.0.0.1", 0)).await?.local_addr()?;
        std::fs::write(&file, config(data, worker))?;
        let process = Command::new("haproxy")
            .args(["-db", "-f"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("haproxy")?;
        let started = Self { data, process, _directory: directory };
        for _ in 0..100 {
            if TcpStream::connect(data).await.is_ok() {
                return Ok(started);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("haproxy does not listen")
    }
}

fn config(data: SocketAddr, worker: SocketAddr) -> String {
    format!(
        "global\n  nbthread 1\ndefaults\n  mode http\n  timeout connect 2s\n  timeout client 5s\n  timeout server 5s\n\
         frontend in\n  bind {data}\n  default_backend out\nbackend out\n  http-reuse always\n  server one {worker}\n"
    )
}

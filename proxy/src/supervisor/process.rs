//! One worker's process, and the group it leads.

use std::io;
use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::descriptors;
use crate::orphans::{self, Ours};

/// How often is looked whether a port accepts, or a group is gone.
const POLL: Duration = Duration::from_millis(20);

/// A process and its group. Dropped, the whole group is killed.
pub(super) struct Process {
    child: Child,
    group: Option<Pid>,
    /// Where it is to listen.
    pub(super) address: SocketAddr,
    _ours: Ours,
}

impl Process {
    /// Starts worker `slot` of this name.
    pub(super) fn start(command: &[String], slot: usize, address: SocketAddr) -> io::Result<Self> {
        let [program, arguments @ ..] = command else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "there is no command"));
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("HOST", address.ip().to_string())
            .env("PORT", address.port().to_string())
            .env("WORKER_NAME", super::name(slot))
            .env("WORKER_ID", (slot + 1).to_string())
            .env("OUTRIGGER_WORKER", "1")
            .stdin(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        let (child, ours) = orphans::spawn(&mut command)?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        group.into_iter().for_each(descriptors::give_back);
        Ok(Self { child, group, address, _ours: ours })
    }

    /// The leader's process id.
    pub(super) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until the leader has ended.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Waits until it accepts connections.
    ///
    /// # Errors
    /// When it ends before.
    pub(super) async fn accepts(&mut self) -> io::Result<()> {
        let address = self.address;
        let accepts = async {
            while TcpStream::connect(address).await.is_err() {
                sleep(POLL).await;
            }
        };
        tokio::select! {
            status = self.child.wait() => Err(io::Error::other(format!("it ended with {}", status?))),
            () = accepts => Ok(()),
        }
    }

    /// Asks the group to end, and kills what is left of it after a while.
    pub(super) async fn stop(&mut self, patience: Duration) {
        self.signal(Signal::TERM);
        let gone = async {
            let _ = self.child.wait().await; // an error: it is not ours any more
            while self.group_exists() {
                sleep(POLL).await;
            }
        };
        if timeout(patience, gone).await.is_err() {
            tracing::warn!(id = self.id(), "the worker did not end in time: it is killed");
            self.kill().await;
        }
    }

    /// Kills the group.
    pub(super) async fn kill(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.wait().await; // an error: it is not ours any more
    }

    fn group_exists(&self) -> bool {
        self.group.is_some_and(|group| test_kill_process_group(group).is_ok())
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            let _ = kill_process_group(group, signal); // an error: the group is gone
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // What the leader left behind must not outlive it.
        if self.group_exists() {
            self.signal(Signal::KILL);
        }
    }
}

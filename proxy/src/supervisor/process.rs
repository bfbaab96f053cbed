//! One worker's process, its warden, and where it listens.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Pair;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::port::{self, Owner, Stranger};
use super::warden::{self, Told};
use crate::descriptors;
use crate::orphans::{self, Ours};
use crate::processes::{self, Process as Seen};
use crate::worker::socket::Held;

/// This very program, even where another one is in its place by now.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// The arguments with which it is a warden.
#[cfg(not(test))]
const WARDEN: [&str; 1] = ["warden"];
#[cfg(test)]
const WARDEN: [&str; 5] = super::tests::WARDEN;
/// How often is tried whether a port accepts.
const POLL: Duration = Duration::from_millis(20);
/// How often is looked whether a process listens elsewhere.
const LOOK: Duration = Duration::from_millis(250);
/// A process that listens elsewhere for so long is not about to listen where it was told to.
const ELSEWHERE: Duration = Duration::from_secs(1);

/// Why a process cannot serve.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotStarted {
    #[error("'{program}' cannot be executed: {error}")]
    NotExecutable { program: String, error: Errno },
    #[error("{address} is taken by {stranger}")]
    Taken { address: SocketAddr, stranger: Stranger },
    #[error("it ended with {0}")]
    Ended(String),
    #[error("it accepts no connection in time")]
    Silent,
    #[error("it is not ready in time")]
    NotReady,
    #[error("{0}")]
    Machine(#[from] io::Error),
}

impl NotStarted {
    /// Whether the command is to blame, and no later try will find another one.
    pub(super) fn is_the_commands(&self) -> bool {
        let commands = [
            Errno::NOENT,
            Errno::ACCESS,
            Errno::PERM,
            Errno::NOEXEC,
            Errno::NOTDIR,
            Errno::LOOP,
            Errno::NAMETOOLONG,
            Errno::TOOBIG,
            Errno::INVAL,
        ];
        matches!(self, Self::NotExecutable { error, .. } if commands.contains(error))
    }
}

/// A process that its warden ends when this is dropped, with all that came of it.
pub(super) struct Process {
    warden: Child,
    told: Lines<BufReader<OwnedReadHalf>>,
    /// The worker lives for as long as this is open.
    orders: Option<OwnedWriteHalf>,
    family: Family,
    ended: Option<ExitStatus>,
    /// Where it is to listen.
    address: SocketAddr,
    _ours: Ours,
}

/// The processes of a worker.
#[derive(Clone, Copy)]
pub(super) struct Family {
    /// The ancestor of all of them.
    warden: Pid,
    /// The one that executes the command, and leads a group.
    leader: Pid,
}

/// Where a process listens.
pub(super) struct Listens {
    pub(super) address: SocketAddr,
    /// The process that does. `None`: `/proc` does not tell.
    pub(super) held: Option<Held>,
}

impl Family {
    /// Those that there are now.
    pub(super) fn members(self) -> Vec<Seen> {
        processes::descendants(&processes::all().unwrap_or_default(), self.warden)
    }
}

impl Process {
    /// Starts worker `slot`, which is to listen on this address.
    ///
    /// # Errors
    /// Why there is no process.
    pub(super) async fn start(
        command: &[String],
        slot: usize,
        address: SocketAddr,
    ) -> Result<Self, NotStarted> {
        if let Some((address, stranger)) = port::taken(&[address]) {
            return Err(NotStarted::Taken { address, stranger });
        }
        let (ours, theirs) = Pair::pair()?;
        ours.set_nonblocking(true)?;
        let (told, mut orders) = UnixStream::from_std(ours)?.into_split();
        let (warden, ours) = start_warden(theirs, slot, address)?;
        let id = warden.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let Some(id) = id else { return Err(io::Error::other("its warden has ended").into()) };
        descriptors::give_back(id); // it starts the worker after the order only
        orders.write_all(&warden::order(command)?).await?;
        let mut told = BufReader::new(told).lines();
        let leader = match told.next_line().await?.as_deref().and_then(Told::read) {
            Some(Told::Started(leader)) => leader,
            Some(Told::NotStarted(error)) => {
                let program = command.first().cloned().unwrap_or_default();
                return Err(NotStarted::NotExecutable { program, error });
            }
            Some(Told::Ended(_)) | None => {
                return Err(io::Error::other("its warden does not start it").into());
            }
        };
        let family = Family { warden: id, leader };
        Ok(Self { warden, told, orders: Some(orders), family, ended: None, address, _ours: ours })
    }

    /// The process that executes the command.
    pub(super) fn id(&self) -> i32 {
        self.family.leader.as_raw_nonzero().get()
    }

    /// The command's process and all that came of it.
    pub(super) fn family(&self) -> Family {
        self.family
    }

    /// Waits until the command's process has ended.
    ///
    /// # Errors
    /// Its warden is gone, and nobody knows; it is killed.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        if let Ok(Some(line)) = self.told.next_line().await
            && let Some(Told::Ended(status)) = Told::read(&line)
        {
            self.ended = Some(status);
            return Ok(status);
        }
        self.kill_group();
        Err(io::Error::other("its warden was killed, and it with it"))
    }

    /// Waits until it accepts connections. `elsewhere` is called once if it seems to listen elsewhere.
    ///
    /// # Errors
    /// It ends before, or another process listens in its place.
    pub(super) async fn listens(&mut self, elsewhere: impl Fn(Elsewhere)) -> Result<Listens, NotStarted> {
        let (address, family) = (self.address, self.family);
        tokio::select! {
            status = self.ended() => Err(match port::taken(&[address]) {
                Some((address, stranger)) => NotStarted::Taken { address, stranger }, // which may be why
                None => NotStarted::Ended(exit(&status)),
            }),
            found = find(address, family, elsewhere) => found,
        }
    }

    /// Asks it to end, with its process group, and kills what is left of it after a while.
    pub(super) async fn stop(&mut self, patience: Duration) {
        if let Some(orders) = &mut self.orders {
            let line = [warden::STOP, "\n"].concat();
            let _ = orders.write_all(line.as_bytes()).await; // an error: the warden has ended
        }
        match timeout(patience, self.warden.wait()).await {
            Ok(Ok(status)) if status.success() => {}
            Ok(_) => self.kill_group(), // the warden was killed
            Err(_) => {
                tracing::warn!(id = self.id(), "the worker did not end in time: it is killed");
                self.kill().await;
            }
        }
    }

    /// Kills it and all that came of it.
    pub(super) async fn kill(&mut self) {
        self.orders = None;
        let _ = kill_process(self.family.warden, Signal::CONT); // should somebody have stopped it; it is not waited for yet
        if !self.warden.wait().await.is_ok_and(|status| status.success()) {
            self.kill_group();
        }
    }

    /// Where there is no warden that does it.
    fn kill_group(&self) {
        let _ = kill_process_group(self.family.leader, Signal::KILL); // an error: it is gone
    }
}

fn start_warden(proxy: Pair, slot: usize, address: SocketAddr) -> io::Result<(Child, Ours)> {
    let mut command = Command::new(THIS_PROGRAM);
    command
        .arg0(warden::NAME)
        .args(WARDEN)
        .env("HOST", address.ip().to_string())
        .env("PORT", address.port().to_string())
        .env("WORKER_NAME", super::name(slot))
        .env("WORKER_ID", (slot + 1).to_string())
        .env("OUTRIGGER_WORKER", "1")
        .stdin(Stdio::from(OwnedFd::from(proxy)))
        .process_group(0); // a Ctrl-C in the terminal is for the proxy
    orphans::spawn(&mut command)
}

/// Where a process listens, and where it was told to.
pub(super) struct Elsewhere {
    pub(super) listens: String,
    pub(super) told: SocketAddr,
}

/// Waits until one of these processes accepts connections to an address, or to `[::1]` with the same port: that is what
/// `localhost` is to some programs.
async fn find(
    address: SocketAddr,
    family: Family,
    elsewhere: impl Fn(Elsewhere),
) -> Result<Listens, NotStarted> {
    let over_ipv6 = SocketAddr::from((Ipv6Addr::LOCALHOST, address.port()));
    let (mut looked, mut since, mut said) = (Instant::now(), None, false);
    loop {
        if accepts(address).await {
            match port::owner(address, &family.members()) {
                Owner::Own(held) => return Ok(Listens { address, held }),
                Owner::Stranger(stranger) => return Err(NotStarted::Taken { address, stranger }),
                Owner::Nobody => {} // not any more
            }
        }
        if LOOK <= looked.elapsed() {
            looked = Instant::now();
            let members = family.members();
            if let Owner::Own(Some(held)) = port::owner(over_ipv6, &members)
                && !accepts(address).await
                && accepts(over_ipv6).await
            {
                return Ok(Listens { address: over_ipv6, held: Some(held) });
            }
            let listening = port::listened_on(&members);
            let is_elsewhere =
                !listening.is_empty() && !listening.iter().any(|listens| port::reaches(address, *listens));
            since = is_elsewhere.then(|| since.unwrap_or(looked));
            if since.is_some_and(|since: Instant| ELSEWHERE <= since.elapsed()) && !said {
                said = true;
                let listens: Vec<_> = listening.iter().map(SocketAddr::to_string).collect();
                elsewhere(Elsewhere { listens: listens.join(", "), told: address });
            }
        }
        sleep(POLL).await;
    }
}

async fn accepts(address: SocketAddr) -> bool {
    TcpStream::connect(address).await.is_ok()
}

/// How a process ended, in words.
pub(super) fn exit(status: &io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::process::ExitStatusExt;

    use rustix::process::test_kill_process;

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    async fn start(script: &str) -> (Process, SocketAddr) {
        let address =
            TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
        let command = ["sh", "-c", script].map(String::from);
        (Process::start(&command, 0, address).await.expect("there is a shell"), address)
    }

    async fn until_gone(process: Pid) {
        let gone = async {
            while test_kill_process(process).is_ok() && !is_zombie(process) {
                sleep(POLL).await;
            }
        };
        timeout(SOON, gone).await.expect("it is gone");
    }

    fn is_zombie(process: Pid) -> bool {
        processes::all().expect("there is /proc").iter().any(|seen| seen.id == process && seen.zombie)
    }

    #[tokio::test]
    async fn another_process_on_its_port_does_not_make_it_a_worker() {
        let (mut process, address) = start("exec sleep 1000").await;
        let listener = TcpListener::bind(address).expect("the port is free");
        let listens = timeout(SOON, process.listens(|_| ())).await.expect("it is seen at once");
        let said = listens.map(|_| ()).expect_err("it is a stranger").to_string();
        assert_eq!(said, format!("{address} is taken by this proxy itself"));
        process.kill().await;
        until_gone(process.family.leader).await;
        let again = Process::start(&[String::from("true")], 0, address).await.map(|_| ());
        assert!(matches!(again, Err(NotStarted::Taken { .. })), "it is not even started");
        drop(listener);
    }

    #[tokio::test]
    async fn how_a_process_ended_is_told_by_its_warden() {
        let (mut process, _) = start("exit 3").await;
        assert_eq!(process.ended().await.expect("its warden knows").code(), Some(3));
        assert_eq!(process.ended().await.expect("and says it again").code(), Some(3));
        let (mut process, _) = start("kill -9 $$").await;
        assert_eq!(process.ended().await.expect("its warden knows").signal(), Some(9));
    }

    #[tokio::test]
    async fn without_its_warden_a_process_does_not_live_on() {
        let (mut process, _) = start("sleep 1000 & exec sleep 1000").await;
        let members = process.family.members();
        kill_process(process.family.warden, Signal::KILL).expect("it runs");
        process.ended().await.expect_err("nobody knows how it ends");
        for member in members {
            until_gone(member.id).await;
        }
        process.stop(SOON).await; // which has nobody to ask
    }

    #[tokio::test]
    async fn dropped_it_is_ended_with_all_that_came_of_it() {
        let (process, _) =
            start("setsid sleep 1000 & (setsid sleep 1000 &) ; sleep 1000 & exec sleep 1000").await;
        let members = async {
            loop {
                let members = process.family.members();
                if members.len() == 4 {
                    return members;
                }
                sleep(POLL).await;
            }
        };
        let members = timeout(SOON, members).await.expect("four of them run");
        kill_process(process.family.warden, Signal::TERM).expect("it runs"); // as one who ends a whole service does
        drop(process);
        for member in members {
            until_gone(member.id).await;
        }
    }
}

//! The warden of one worker (`outrigger-proxy warden`): it starts the worker's process, and outlives a proxy that is killed.
//!
//! Its standard input is one end of a socket pair. While the proxy has the other end the worker lives; when that is closed,
//! however the proxy ended, the warden kills the worker and all that came of it. Orphans of the worker become children of
//! the warden and not of the first process of the container, so that none is out of its reach.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as Pair;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, kill_process_group, set_child_subreaper,
    test_kill_process_group, wait,
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use crate::processes;

/// How often is looked whether what a worker left behind is gone.
const POLL: Duration = Duration::from_millis(20);
/// Apart from the proxy's name: who kills all processes of that name does not mean its warden.
pub(super) const NAME: &str = "worker-warden";
/// The line by which the proxy asks the worker to end.
pub(super) const STOP: &str = "stop";

/// A line by which the warden tells the proxy how the worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// The command is executed, by this process, which leads a process group.
    Started(Pid),
    /// The command cannot be executed.
    NotStarted(Errno),
    /// The process has ended.
    Ended(ExitStatus),
}

impl Told {
    fn line(self) -> String {
        match self {
            Self::Started(process) => format!("started {}\n", process.as_raw_nonzero()),
            Self::NotStarted(error) => format!("not-started {}\n", error.raw_os_error()),
            Self::Ended(status) => format!("ended {}\n", status.into_raw()),
        }
    }

    /// Reads such a line.
    pub(super) fn read(line: &str) -> Option<Self> {
        let (word, number) = line.split_once(' ')?;
        let number = number.parse().ok()?;
        match word {
            "started" => Pid::from_raw(number).map(Self::Started),
            "not-started" => Some(Self::NotStarted(Errno::from_raw_os_error(number))),
            "ended" => Some(Self::Ended(ExitStatus::from_raw(number))),
            _ => None,
        }
    }
}

/// The line by which the proxy says what to execute: JSON, for an argument may have any character.
///
/// # Errors
/// Never for text.
pub(super) fn order(command: &[String]) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(command)?;
    line.push(b'\n');
    Ok(line)
}

/// The program: returns when nothing is left of the worker.
///
/// # Errors
/// Standard input is no socket on which a proxy gives orders.
pub fn run() -> io::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let _ = fs::write("/proc/self/comm", NAME); // only a name: it does without
        let proxy = Pair::from(io::stdin().as_fd().try_clone_to_owned()?);
        proxy.set_nonblocking(true)?;
        let (orders, proxy) = UnixStream::from_std(proxy)?.into_split();
        let mut orders = BufReader::new(orders).lines();
        outlive_signals()?;
        set_child_subreaper(Some(getpid()))?;
        match orders.next_line().await {
            Ok(Some(order)) => guard(&serde_json::from_str::<Vec<String>>(&order)?, orders, proxy).await,
            Ok(None) => Ok(()), // the proxy has ended already
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()), // the same
            Err(error) => Err(error),
        }
    })
}

/// Who ends a whole service tells each of its processes: the warden ends when its worker has, and not before. A handler,
/// unlike a signal that is ignored, is not passed on to the worker.
fn outlive_signals() -> io::Result<()> {
    let kinds = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
        SignalKind::quit(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ];
    kinds.into_iter().try_for_each(|kind| signal(kind).map(drop)) // what was installed stays
}

async fn guard(
    command: &[String],
    mut orders: Lines<BufReader<OwnedReadHalf>>,
    mut proxy: OwnedWriteHalf,
) -> io::Result<()> {
    let mut ends = signal(SignalKind::child())?;
    let started = start(command);
    let told = started.map_or_else(Told::NotStarted, Told::Started);
    let _ = proxy.write_all(told.line().as_bytes()).await; // an error: it has ended, as is seen below
    let Ok(worker) = started else { return Ok(()) };
    let mut ended = None;
    loop {
        tokio::select! {
            _ = ends.recv() => {}
            () = sleep(POLL), if ended.is_some() => {}
            order = orders.next_line() => match order {
                Ok(Some(order)) if order == STOP => drop(kill_process_group(worker, Signal::TERM)), // an error: it is gone
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        if let Some(status) = reap(worker) {
            ended = Some(status);
            let _ = proxy.write_all(Told::Ended(status).line().as_bytes()).await; // as above
        }
        if ended.is_some() && test_kill_process_group(worker).is_err() {
            break; // what left the group is not waited for
        }
    }
    if ended.is_none() {
        let _ = kill_process_group(worker, Signal::KILL); // at once, so that none of them sees another one end
    }
    end_all();
    Ok(())
}

/// Starts the worker's process, as the leader of a group of its own.
fn start(command: &[String]) -> Result<Pid, Errno> {
    let [program, arguments @ ..] = command else { return Err(Errno::INVAL) };
    let started = Command::new(program).args(arguments).stdin(Stdio::null()).process_group(0).spawn();
    let child = started.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))?;
    Pid::from_raw(child.id().cast_signed()).ok_or(Errno::INVAL)
}

/// Waits for all children that have ended, and returns how the worker has, if it is one of them.
fn reap(worker: Pid) -> Option<ExitStatus> {
    let mut ended = None;
    while let Ok(Some((child, status))) = wait(WaitOptions::NOHANG) {
        if child == worker {
            ended = Some(exit_status(status));
        }
    }
    ended
}

fn exit_status(status: WaitStatus) -> ExitStatus {
    let code = status.exit_status().map(|code| code << 8);
    ExitStatus::from_raw(code.or_else(|| status.terminating_signal()).unwrap_or_default())
}

/// Kills all that came of the worker, and returns when nothing is left of it.
fn end_all() {
    loop {
        let all = processes::all().unwrap_or_default(); // an error: there is no `/proc`, and the group was killed
        for process in processes::descendants(&all, getpid()) {
            let _ = kill_process(process.id, Signal::KILL); // an error: it has ended
        }
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return, // there is no child
            }
        }
        std::thread::sleep(POLL / 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_read() {
        let pid = Pid::from_raw(4711).expect("not 0");
        let (exit, killed) = (ExitStatus::from_raw(3 << 8), ExitStatus::from_raw(9));
        for told in
            [Told::Started(pid), Told::NotStarted(Errno::NOENT), Told::Ended(exit), Told::Ended(killed)]
        {
            assert_eq!(Told::read(told.line().trim_end()), Some(told));
        }
        assert_eq!((exit.code(), killed.signal()), (Some(3), Some(9)));
        for wrong in ["", "started", "started 0", "started x", "running 1"] {
            assert_eq!(Told::read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_command_may_have_any_text() {
        let command = ["node".to_owned(), "two\nlines \"and\" more".to_owned()];
        let line = order(&command).expect("JSON");
        let (end, text) = line.split_last().expect("a line");
        assert!(*end == b'\n' && !text.contains(end), "it is one line");
        assert_eq!(serde_json::from_slice::<Vec<String>>(text).expect("JSON"), command);
    }
}

//! File descriptors: how many this process may have, and for how many connections of clients they are enough.
//!
//! A client's connection takes one, and the connection to a worker that its request needs another. What the process
//! needs besides is set aside, so that a crowd of clients never keeps it from answering a probe, checking a worker or
//! reading its policy.

use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// A client's connection, and one to a worker.
const PER_CONNECTION: usize = 2;
/// The standard streams, files of policies and certificates while they are read, and the operator's streams.
const FILES: usize = 24;
/// A runtime's `epoll` and wakers, and two listeners.
const PER_THREAD: usize = 8;
/// Two connections of health checks, and the handle of a process.
const PER_WORKER: usize = 3;
/// The socket to the warden of a worker that the proxy starts.
const PER_WARDEN: usize = 1;

/// The limits with which the process was started.
static INHERITED: OnceLock<Rlimit> = OnceLock::new();

/// What the process needs descriptors for besides connections of clients.
#[derive(Clone, Copy, Debug)]
pub struct Reserve {
    /// Data threads.
    pub threads: usize,
    /// Workers.
    pub workers: usize,
    /// Those of them that the proxy starts.
    pub wardens: usize,
    /// Connections to the admin port.
    pub admin: usize,
}

/// The limit is too low to serve anybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the process may open {limit} files, and needs {least}: raise its hard limit (`ulimit -Hn`, or RLIMIT_NOFILE)"
)]
pub struct TooFew {
    limit: usize,
    least: usize,
}

/// Raises the soft limit to the hard one, and returns what then holds. The soft limit is there for programs that call
/// `select`, which this one does not.
pub fn raise() -> usize {
    let inherited = *INHERITED.get_or_init(|| getrlimit(Resource::Nofile));
    let raised = Rlimit { current: inherited.maximum, ..inherited };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the soft limit of open files cannot be raised to the hard one");
    }
    getrlimit(Resource::Nofile)
        .current
        .map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// Gives a process that this one started the limit that this one was started with: it may call `select`.
pub fn give_back(process: Pid) {
    if let Some(inherited) = INHERITED.get() {
        let _ = prlimit(Some(process), Resource::Nofile, *inherited); // an error: it has ended
    }
}

/// For how many connections of clients a limit is enough.
///
/// # Errors
/// For none.
pub fn connections(limit: usize, reserve: Reserve) -> Result<usize, TooFew> {
    let Reserve { threads, workers, wardens, admin } = reserve;
    let reserved = FILES + PER_THREAD * threads + PER_WORKER * workers + PER_WARDEN * wardens + admin;
    match limit.saturating_sub(reserved) / PER_CONNECTION {
        0 => Err(TooFew { limit, least: reserved + PER_CONNECTION }),
        enough => Ok(enough),
    }
}

/// Whether an error says that this process or this machine is out of descriptors, memory or ports, which is no peer's
/// doing.
pub fn exhausted(error: &std::io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESERVE: Reserve = Reserve { threads: 2, workers: 4, wardens: 0, admin: 64 };

    #[test]
    fn what_the_process_needs_is_set_aside() {
        assert_eq!(connections(256, RESERVE), Ok(70));
        assert_eq!(connections(20_000, RESERVE), Ok(9_942));
        assert_eq!(connections(20_000, Reserve { wardens: 4, ..RESERVE }), Ok(9_940));
        let many = Reserve { threads: 16, workers: 256, wardens: 0, admin: 64 };
        assert_eq!(connections(1_024, many), Ok(20));
        assert_eq!(connections(usize::MAX, RESERVE), Ok((usize::MAX - 116) / 2));
    }

    #[test]
    fn a_limit_that_is_enough_for_nobody_says_what_it_must_be() {
        let least = connections(64, RESERVE).expect_err("too few").least;
        assert!(connections(least - 1, RESERVE).is_err());
        assert_eq!(connections(least, RESERVE), Ok(1));
    }

    #[test]
    fn only_this_machines_lack_is_exhaustion() {
        let is = |errno: Errno| exhausted(&std::io::Error::from(errno));
        let lacks = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
        assert!(lacks.into_iter().all(is));
        assert!(![Errno::CONNABORTED, Errno::CONNREFUSED, Errno::PROTO].into_iter().any(is));
        assert!(!exhausted(&std::io::Error::other("no number")));
    }
}

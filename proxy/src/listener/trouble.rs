//! What to do where the kernel has a client and cannot hand it over.

use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;

/// How long nothing is accepted after an error that the next connection would meet too. Those that are open go on, and
/// one of them may end.
const PAUSE: Duration = Duration::from_millis(50);
/// How often it is said that nothing can be accepted.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// The errors of one listener.
#[derive(Default)]
pub(super) struct Trouble {
    said: Option<Instant>,
    unsaid: u64,
}

impl Trouble {
    /// How long to wait before another connection is accepted; `None` after an error that is that one connection's own
    /// (accept(2)).
    pub(super) fn pause(&mut self, error: &io::Error, now: Instant) -> Option<Duration> {
        if is_the_connections(error) {
            return None;
        }
        if self.said.is_some_and(|said| now.saturating_duration_since(said) < SAID_EVERY) {
            self.unsaid += 1;
            return Some(PAUSE);
        }
        let before = std::mem::take(&mut self.unsaid);
        tracing::warn!(%error, before, "cannot accept connections; those that are open go on");
        self.said = Some(now);
        Some(PAUSE)
    }
}

fn is_the_connections(error: &io::Error) -> bool {
    let of_the_network = [
        Errno::CONNABORTED,
        Errno::PROTO,
        Errno::NETDOWN,
        Errno::NOPROTOOPT,
        Errno::HOSTDOWN,
        Errno::NONET,
        Errno::HOSTUNREACH,
        Errno::OPNOTSUPP,
        Errno::NETUNREACH,
        Errno::PERM, // a firewall's word
        Errno::INTR,
    ];
    Errno::from_io_error(error).is_some_and(|errno| of_the_network.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exhaustion_waits_and_is_said_rarely() {
        let mut trouble = Trouble::default();
        let start = Instant::now();
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::BADF] {
            assert_eq!(trouble.pause(&errno.into(), start), Some(PAUSE), "{errno}");
        }
        assert_eq!((trouble.said, trouble.unsaid), (Some(start), 4));
        let later = start + SAID_EVERY;
        trouble.pause(&Errno::MFILE.into(), later);
        assert_eq!((trouble.said, trouble.unsaid), (Some(later), 0));
    }

    #[test]
    fn a_connection_that_is_gone_keeps_no_other_waiting() {
        let mut trouble = Trouble::default();
        for errno in [Errno::CONNABORTED, Errno::PROTO, Errno::PERM, Errno::NETDOWN] {
            assert_eq!(trouble.pause(&errno.into(), Instant::now()), None, "{errno}");
        }
        assert_eq!(trouble.said, None);
    }
}

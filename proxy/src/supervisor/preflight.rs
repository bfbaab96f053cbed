//! What is looked at before the first worker starts: whether the ports that were asked for can be theirs.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::Settings;
use super::port::{self, Stranger};

/// How long a port that is taken is waited for. Workers of a proxy that was just killed are ended by their wardens, which
/// takes a few milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_millis(20);

/// Why `--worker-port` cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Some would be no ports.
    #[error(
        "--worker-port {base}: {workers} workers take {count} ports, half of them in rolling restarts, and ports are 1 to 65535"
    )]
    OutOfRange {
        /// The first.
        base: u16,
        /// How many workers.
        workers: usize,
        /// How many ports.
        count: usize,
    },
    /// Another process listens on one.
    #[error(
        "{address} is taken by {stranger}: end it, or choose another --worker-port; from there {workers} workers take {count} \
         ports, half of them in rolling restarts"
    )]
    Taken {
        /// Which.
        address: SocketAddr,
        /// Who.
        stranger: Stranger,
        /// How many workers.
        workers: usize,
        /// How many ports.
        count: usize,
    },
}

/// Looks whether the workers' ports are free.
///
/// # Errors
/// One is not.
pub fn preflight(settings: &Settings) -> Result<(), Conflict> {
    let Some(base) = settings.base_port else { return Ok(()) };
    let workers = settings.workers;
    let count = 2 * workers;
    let last = u16::try_from(count).ok().and_then(|count| base.checked_add(count - 1));
    let Some(last) = last.filter(|_| base != 0) else {
        return Err(Conflict::OutOfRange { base, workers, count });
    };
    let addresses: Vec<_> = (base..=last).map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))).collect();
    let began = Instant::now();
    loop {
        match port::taken(&addresses) {
            None => return Ok(()),
            Some((address, stranger)) if PATIENCE <= began.elapsed() => {
                return Err(Conflict::Taken { address, stranger, workers, count });
            }
            Some(_) => std::thread::sleep(POLL),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn settings(base: Option<u16>, workers: usize) -> Settings {
        Settings::new(Vec::new(), workers, base)
    }

    #[test]
    fn what_is_no_port_is_no_workers_port() {
        assert_eq!(preflight(&settings(None, 256)), Ok(()));
        for (base, workers) in [(0, 1), (65535, 1), (65025, 256)] {
            let conflict = Conflict::OutOfRange { base, workers, count: 2 * workers };
            assert_eq!(preflight(&settings(Some(base), workers)), Err(conflict));
        }
        assert!(!matches!(preflight(&settings(Some(65534), 1)), Err(Conflict::OutOfRange { .. })));
    }

    #[test]
    fn a_port_of_the_second_half_is_looked_at_too() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let Err(conflict) = preflight(&settings(Some(address.port() - 1), 1)) else { panic!("it is taken") };
        assert!(matches!(conflict, Conflict::Taken { workers: 1, count: 2, .. }), "{conflict}");
    }
}

//! Who listens on a port of this machine, as `/proc` shows it.
//!
//! The kernel lists the listening sockets (`/proc/net/tcp`), each with its number, and the descriptors of each process
//! (`/proc/PID/fd`), those of sockets with the same number. Where `/proc` does not tell, nothing is held against anybody.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::process::{Pid, getpid};

use crate::processes::{self, Process};
use crate::worker::socket::Held;

/// The state of a socket that listens, in `/proc/net/tcp`.
const LISTENS: &str = "0A";

/// A socket that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listener {
    /// Where.
    pub(super) address: SocketAddr,
    inode: u64,
    /// Who made it.
    user: u32,
}

/// Who gets the connections to an address.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// Nobody listens.
    Nobody,
    /// One of the processes that were asked about, by this descriptor. `None`: `/proc` does not tell, and no other process
    /// was found.
    Own(Option<Held>),
    /// Another process.
    Stranger(Stranger),
}

/// A process that listens where a worker is to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    process: Option<Pid>,
    name: String,
    user: u32,
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.process {
            Some(process) if process == getpid() => f.write_str("this proxy itself"),
            Some(process) => write!(f, "process {} ({})", process.as_raw_nonzero(), self.name),
            None => write!(f, "a process of user {} that the proxy may not look at", self.user),
        }
    }
}

/// All sockets of this network that listen.
///
/// # Errors
/// There is no `/proc`.
pub(super) fn listeners() -> io::Result<Vec<Listener>> {
    let mut listeners: Vec<_> = fs::read_to_string("/proc/net/tcp")?.lines().filter_map(parse).collect();
    if let Ok(table) = fs::read_to_string("/proc/net/tcp6") {
        listeners.extend(table.lines().filter_map(parse)); // an error: there is no IPv6
    }
    Ok(listeners)
}

/// Reads `0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 1000 0 4711 …`.
fn parse(line: &str) -> Option<Listener> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (address, _, state) = (fields.next()?, fields.next()?, fields.next()?);
    if state != LISTENS {
        return None;
    }
    let (user, _, inode) = (fields.nth(3)?.parse().ok()?, fields.next()?, fields.next()?.parse().ok()?);
    let (ip, port) = address.split_once(':')?;
    Some(Listener {
        address: SocketAddr::new(ip_address(ip)?, u16::from_str_radix(port, 16).ok()?),
        inode,
        user,
    })
}

/// Each four bytes are written as the number that they are to this machine.
fn ip_address(hexadecimal: &str) -> Option<IpAddr> {
    let mut bytes = Vec::new();
    for start in (0..hexadecimal.len()).step_by(8) {
        let word = u32::from_str_radix(hexadecimal.get(start..start + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(Ipv4Addr::from).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(Ipv6Addr::from).map(IpAddr::from)).ok()
}

/// Those that share the connections to this address: the kernel gives them to the sockets that name it most closely.
fn receivers(listeners: &[Listener], address: SocketAddr) -> Vec<Listener> {
    let at_port = listeners.iter().filter(|listener| listener.address.port() == address.port());
    let ranked: Vec<_> = at_port
        .filter_map(|listener| Some((rank(listener.address.ip(), address.ip())?, *listener)))
        .collect();
    let Some(closest) = ranked.iter().map(|(rank, _)| *rank).min() else { return Vec::new() };
    ranked.into_iter().filter(|(rank, _)| *rank == closest).map(|(_, listener)| listener).collect()
}

/// How closely what a socket listens on names an address; `None` when it does not get its connections. A socket of IPv6
/// that listens everywhere may get those of IPv4 too: the table does not tell.
fn rank(listens: IpAddr, address: IpAddr) -> Option<u8> {
    match (listens, address) {
        (listens, address) if listens == address => Some(0),
        (IpAddr::V6(listens), IpAddr::V4(address)) if listens.to_ipv4_mapped() == Some(address) => Some(1),
        (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(_)) => Some(2),
        (IpAddr::V6(listens), _) if listens.is_unspecified() => Some(3),
        (IpAddr::V6(listens), IpAddr::V4(_)) if listens.to_ipv4_mapped() == Some(Ipv4Addr::UNSPECIFIED) => {
            Some(3)
        }
        _ => None,
    }
}

/// The first of these addresses that somebody listens on, and who. `None`: nobody on any, or `/proc` does not tell.
pub(super) fn taken(addresses: &[SocketAddr]) -> Option<(SocketAddr, Stranger)> {
    let listeners = listeners().ok()?;
    let mut first = addresses.iter().map(|address| (*address, receivers(&listeners, *address)));
    first.find_map(|(address, receivers)| Some((address, stranger(receivers.first()?))))
}

/// Whether connections to an address may reach a socket that listens on `listens`.
pub(super) fn reaches(address: SocketAddr, listens: SocketAddr) -> bool {
    address.port() == listens.port() && rank(listens.ip(), address.ip()).is_some()
}

/// Who gets the connections to an address; `own` are the processes that are no strangers.
pub(super) fn owner(address: SocketAddr, own: &[Process]) -> Owner {
    let Ok(listeners) = listeners() else { return Owner::Own(None) };
    let receivers = receivers(&listeners, address);
    let Some(first) = receivers.first() else { return Owner::Nobody };
    let sockets = Sockets::of(own.iter().map(|process| process.id));
    let Some(other) = receivers.iter().find(|listener| !sockets.held.contains_key(&listener.inode)) else {
        return Owner::Own(sockets.held.get(&first.inode).cloned());
    };
    match stranger(other) {
        // Whoever changed its user may not be looked at by the proxy; nor may, then, who is found nowhere.
        Stranger { process: None, .. } if !sockets.complete => Owner::Own(None),
        stranger => Owner::Stranger(stranger),
    }
}

/// All addresses that these processes listen on.
pub(super) fn listened_on(own: &[Process]) -> Vec<SocketAddr> {
    let sockets = Sockets::of(own.iter().map(|process| process.id));
    let listeners = listeners().unwrap_or_default();
    let own = listeners.into_iter().filter(|listener| sockets.held.contains_key(&listener.inode));
    own.map(|listener| listener.address).collect()
}

fn stranger(listener: &Listener) -> Stranger {
    let all = processes::all().unwrap_or_default();
    let has = |process: &&Process| Sockets::of([process.id]).held.contains_key(&listener.inode);
    let process = all.iter().find(has).map(|process| process.id);
    let name = process.and_then(processes::name).unwrap_or_default();
    Stranger { process, name, user: listener.user }
}

/// The sockets of some processes.
struct Sockets {
    /// By their numbers; of several that have one, the first.
    held: HashMap<u64, Held>,
    /// Whether every one of the processes could be looked at.
    complete: bool,
}

impl Sockets {
    fn of(processes: impl IntoIterator<Item = Pid>) -> Self {
        let mut sockets = Self { held: HashMap::new(), complete: true };
        for process in processes {
            match fs::read_dir(format!("/proc/{}/fd", process.as_raw_nonzero())) {
                Ok(descriptors) => sockets.add(process, descriptors),
                Err(error) => sockets.complete &= error.kind() != io::ErrorKind::PermissionDenied,
            }
        }
        sockets
    }

    fn add(&mut self, process: Pid, descriptors: fs::ReadDir) {
        for entry in descriptors.flatten() {
            let Some(descriptor) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let Ok(target) = fs::read_link(entry.path()) else { continue }; // it was closed meanwhile
            let number = target.to_str().and_then(|target| target.strip_prefix("socket:["));
            let inode = number.and_then(|number| number.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                self.held.entry(inode).or_insert_with(|| Held::new(process, descriptor, inode));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_line_of_the_table_is_read() {
        let v4 = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1 ffff 100 0";
        let listener = Listener { address: at("127.0.0.1:8080"), inode: 4711, user: 1000 };
        assert_eq!(parse(v4), Some(listener));
        let v6 = "  12: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 \
                  00:00000000 00000000     0        0 5 1 ffff 100 0";
        assert_eq!(parse(v6), Some(Listener { address: at("[::1]:80"), inode: 5, user: 0 }));
        assert_eq!(parse(&v4.replace(" 0A ", " 01 ")), None, "it is connected");
        assert_eq!(parse("  sl  local_address rem_address   st tx_queue rx_queue"), None);
    }

    #[test]
    fn the_closest_listener_gets_the_connection() {
        let closest = |listening: &[&str], address: &str| -> Vec<String> {
            let listeners: Vec<_> = listening
                .iter()
                .map(|listens| Listener { address: at(listens), inode: 0, user: 0 })
                .collect();
            receivers(&listeners, at(address)).iter().map(|found| found.address.to_string()).collect()
        };
        let all = [
            "[::]:1",
            "0.0.0.0:1",
            "[::ffff:127.0.0.1]:1",
            "127.0.0.1:1",
            "127.0.0.1:2",
            "[::1]:1",
            "10.0.0.1:1",
        ];
        assert_eq!(closest(&all, "127.0.0.1:1"), ["127.0.0.1:1"]);
        assert_eq!(closest(&all, "[::1]:1"), ["[::1]:1"]);
        assert_eq!(closest(&all[..3], "127.0.0.1:1"), ["[::ffff:127.0.0.1]:1"]);
        assert_eq!(closest(&all[..2], "127.0.0.1:1"), ["0.0.0.0:1"]);
        assert_eq!(closest(&all[..2], "[::1]:1"), ["[::]:1"]);
        assert_eq!(closest(&all[..1], "127.0.0.1:1"), ["[::]:1"], "it may get both");
        assert_eq!(closest(&["127.0.0.1:1", "127.0.0.1:1"], "127.0.0.1:1").len(), 2, "they share");
        assert!(closest(&["127.0.0.1:2", "10.0.0.1:1", "[::1]:1"], "127.0.0.1:1").is_empty());
    }

    #[test]
    fn the_owner_of_a_port_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let all = processes::all().expect("there is /proc");
        let this: Vec<_> = all.iter().filter(|process| process.id == getpid()).copied().collect();
        let Owner::Own(Some(held)) = owner(address, &this) else { panic!("it is this process") };
        assert!(held.is_held());
        assert!(listened_on(&this).contains(&address));
        let Owner::Stranger(stranger) = owner(address, &[]) else { panic!("it is a stranger to nobody") };
        assert_eq!((stranger.process, stranger.to_string().as_str()), (Some(getpid()), "this proxy itself"));
        assert_eq!(taken(&[at("127.0.0.1:0"), address]), Some((address, stranger)));
        drop(listener);
        assert!(!held.is_held());
        let now = owner(address, &this);
        assert!(!matches!(now, Owner::Own(Some(now)) if now == held), "another test may listen there by now");
    }
}

//! The socket on which a worker listens, where the proxy started its process: nobody else may answer in its place.
//!
//! A process that ends gives its port to whoever comes next. A connection is used only if the worker's process has its
//! listening socket still once the connection is there: as long as one process has it, no other one gets the port.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustix::process::Pid;
use tokio::net::TcpStream;

use super::Worker;

/// A descriptor of a process, and the socket that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    descriptor: PathBuf,
    socket: PathBuf,
}

impl Held {
    /// The descriptor `descriptor` of a process, for the socket of this number.
    pub fn new(process: Pid, descriptor: u32, inode: u64) -> Self {
        Self {
            descriptor: PathBuf::from(format!("/proc/{}/fd/{descriptor}", process.as_raw_nonzero())),
            socket: PathBuf::from(format!("socket:[{inode}]")),
        }
    }

    /// Whether the process has the socket still. A socket's number is used again only when nobody has the socket any more.
    pub fn is_held(&self) -> bool {
        fs::read_link(&self.descriptor).is_ok_and(|socket| socket == self.socket)
    }
}

/// Where it is known which process listens for a worker.
#[derive(Default)]
pub struct Listening(ArcSwapOption<Held>);

impl Listening {
    /// It is this process from now on; `None`: whoever listens is the worker.
    pub fn set(&self, held: Option<Held>) {
        self.0.store(held.map(Arc::new));
    }

    /// Whether the process that listened does not have its socket any more.
    pub fn is_lost(&self) -> bool {
        self.0.load().as_ref().is_some_and(|held| !held.is_held())
    }
}

impl Worker {
    /// Connects to it.
    ///
    /// # Errors
    /// It does not accept the connection, or who accepted it is not the process that the proxy started.
    pub async fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(self.address).await?;
        if self.listening.is_lost() {
            let reason = "the worker's process does not listen there any more";
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, reason));
        }
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// A listener of this process, and where it is listed.
    fn listen() -> (TcpListener, SocketAddr, Held) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (address, number) = (listener.local_addr().expect("bound"), listener.as_raw_fd().cast_unsigned());
        let this = rustix::process::getpid();
        let socket = fs::metadata(format!("/proc/self/fd/{number}")).expect("it is open");
        (listener, address, Held::new(this, number, socket.ino()))
    }

    #[tokio::test]
    async fn who_took_a_workers_port_gets_no_connection() {
        let (listener, address, held) = listen();
        let worker = Worker::new("a", address);
        worker.listening.set(Some(held.clone()));
        worker.connect().await.expect("it listens");
        drop(listener);
        assert!(!held.is_held());
        let stranger = TcpListener::bind(address).expect("the port is free");
        let refused = worker.connect().await.expect_err("it is a stranger");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "as if nobody listened");
        stranger.set_nonblocking(true).expect("a socket");
        let (mut stream, _) = stranger.accept().expect("the kernel had accepted it");
        stream.set_nonblocking(false).expect("a socket");
        let read = io::Read::read(&mut stream, &mut [0; 1]).expect("its end");
        assert_eq!(read, 0, "nothing was sent on it");
        worker.listening.set(None);
        worker.connect().await.expect("where nothing is known, who listens is the worker");
    }
}

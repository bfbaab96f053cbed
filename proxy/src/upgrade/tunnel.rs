//! Bytes both ways between two ends that speak WebSocket, until both have ended, or are told that the proxy or the
//! worker is going away: then each gets a close frame with status 1001, between two frames, and nothing after it.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::{Rc, Weak};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::frames::{Frames, going_away};
use crate::connection::Watched;

/// How long the two ends of a tunnel have to close it after they were told.
pub const GOODBYE: Duration = Duration::from_secs(1);
const BUFFER: usize = 8 << 10;

/// The tunnels of one data thread.
#[derive(Default)]
pub struct Tunnels(RefCell<Vec<Open>>);

/// A worker's id and the end of a tunnel to it.
type Open = (u32, Weak<End>);

/// Whether a tunnel was told to end.
#[derive(Default)]
pub struct End {
    told: Cell<bool>,
    wake: Notify,
}

impl Tunnels {
    /// One more, to the worker of this id.
    pub fn open(&self, worker: u32) -> Rc<End> {
        let end = Rc::<End>::default();
        let mut tunnels = self.0.borrow_mut();
        if tunnels.len() == tunnels.capacity() {
            tunnels.retain(|(_, end)| 0 < end.strong_count()); // before it grows
        }
        tunnels.push((worker, Rc::downgrade(&end)));
        end
    }

    /// Tells those that are open to end: all, or those to one worker.
    pub fn tell(&self, worker: Option<u32>) {
        for (of, end) in self.0.borrow().iter() {
            if worker.is_none_or(|worker| worker == *of)
                && let Some(end) = end.upgrade()
            {
                end.told.set(true);
                end.wake.notify_waiters();
            }
        }
    }
}

impl End {
    async fn told(&self) {
        while !self.told.get() {
            self.wake.notified().await; // told on this thread, so never between the two
        }
    }
}

/// Carries bytes both ways. Returns how many went to the client.
pub(super) async fn run(
    client: oneshot::Receiver<Watched>,
    worker: OnUpgrade,
    end: &End,
    idle: Duration,
) -> io::Result<u64> {
    let client = client.await.map_err(io::Error::other)?;
    let worker = worker.await.map_err(io::Error::other)?;
    let (client_read, client_write) = split(client);
    let (worker_read, worker_write) = split(TokioIo::new(worker));
    let moved = Cell::new(Instant::now());
    let down = Way { end, moved: &moved, mask: None };
    let up = Way { end, moved: &moved, mask: Some(fastrand::u32(..).to_be_bytes()) };
    let both = async {
        let (sent, _) =
            tokio::try_join!(down.carry(worker_read, client_write), up.carry(client_read, worker_write))?;
        Ok(sent)
    };
    let told = async {
        end.told().await;
        tokio::time::sleep(GOODBYE).await;
    };
    tokio::select! {
        carried = both => carried,
        () = standstill(&moved, idle) => Err(io::ErrorKind::TimedOut.into()),
        () = told => Ok(0), // an end that does not close is cut
    }
}

async fn standstill(moved: &Cell<Instant>, idle: Duration) {
    loop {
        let until = moved.get() + idle;
        if until <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(until).await;
    }
}

/// One direction.
struct Way<'a> {
    end: &'a End,
    /// When something moved last, either way.
    moved: &'a Cell<Instant>,
    /// What masks the proxy's own frame, on the way to a worker.
    mask: Option<[u8; 4]>,
}

impl Way<'_> {
    async fn carry(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) -> io::Result<u64> {
        let (mut frames, mut buffer, mut carried) = (Frames::default(), vec![0; BUFFER], 0);
        loop {
            let told = self.end.told.get();
            if told && frames.between() {
                break;
            }
            let read = tokio::select! {
                read = from.read(&mut buffer) => read?,
                () = self.end.told(), if !told => continue,
            };
            self.moved.set(Instant::now());
            let bytes = &buffer[..read];
            if bytes.is_empty() {
                to.shutdown().await?;
                return Ok(carried);
            }
            let boundary = frames.advance(bytes);
            match boundary.filter(|_| told) {
                Some(boundary) => {
                    to.write_all(&bytes[..boundary]).await?;
                    break;
                }
                None => to.write_all(bytes).await?,
            }
            carried += read as u64;
        }
        to.write_all(&going_away(self.mask)).await?;
        while from.read(&mut buffer).await? != 0 {} // nothing follows a close frame (RFC 6455 §5.5.1)
        to.shutdown().await?;
        Ok(carried)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    /// What comes out at the other end when this goes in and the tunnel is told after it.
    async fn told_after(bytes: &[u8], rest: &[u8]) -> Vec<u8> {
        let (mut sender, from) = duplex(1 << 16);
        let (to, mut receiver) = duplex(1 << 16);
        let (end, moved) = (End::default(), Cell::new(Instant::now()));
        let way = Way { end: &end, moved: &moved, mask: None };
        let tell = async {
            sender.write_all(bytes).await?;
            tokio::time::sleep(Duration::from_millis(10)).await;
            end.told.set(true);
            end.wake.notify_waiters();
            tokio::time::sleep(Duration::from_millis(10)).await;
            sender.write_all(rest).await?;
            drop(sender);
            Ok::<_, io::Error>(())
        };
        let (carried, told) = tokio::join!(way.carry(from, to), tell);
        assert!(carried.is_ok() && told.is_ok());
        let mut out = Vec::new();
        receiver.read_to_end(&mut out).await.expect("read");
        out
    }

    #[tokio::test(start_paused = true)]
    async fn the_close_frame_stands_between_two_frames_and_nothing_follows() {
        let close = [0x88, 2, 0x03, 0xe9];
        assert_eq!(told_after(b"", b"\x81\x01x").await, close);
        assert_eq!(told_after(b"\x81\x01x", b"\x81\x01y").await, [b"\x81\x01x", &close[..]].concat());
        let whole = told_after(b"\x81\x03ab", b"c\x81\x01").await;
        assert_eq!(whole, [b"\x81\x03abc", &close[..]].concat(), "the frame that had begun is finished");
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_in_which_nothing_moves_ends_when_that_was_so_for_long_enough() {
        let idle = Duration::from_secs(300);
        let (mut client, from) = duplex(1 << 10);
        let (to, mut worker) = duplex(1 << 10);
        let (end, moved) = (End::default(), Cell::new(Instant::now()));
        let began = Instant::now();
        let way = Way { end: &end, moved: &moved, mask: None };
        let says = async {
            for _ in 0..3 {
                tokio::time::sleep(idle / 3 * 2).await;
                client.write_all(b"\x81\x01x").await.expect("open");
                worker.read_exact(&mut [0; 3]).await.expect("it comes");
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            _ = way.carry(from, to) => panic!("neither end closes"),
            () = says => unreachable!(),
            () = standstill(&moved, idle) => assert_eq!(began.elapsed(), idle * 3),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_of_one_worker_are_told() {
        let tunnels = Tunnels::default();
        let (a, b) = (tunnels.open(1), tunnels.open(2));
        tunnels.tell(Some(1));
        assert!(a.told.get() && !b.told.get());
        drop(a);
        (0..100).for_each(|_| drop(tunnels.open(3)));
        assert!(tunnels.0.borrow().len() < 10, "those that ended are forgotten");
        tunnels.tell(None);
        assert!(b.told.get());
    }
}

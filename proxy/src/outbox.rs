//! What the tasks of a data thread send in one turn leaves together, when the turn ends.
//!
//! A turn is what a thread does between two looks at its sockets: it runs each task that one of them woke. Whoever waits
//! at the other end of a socket is woken when something comes, does what he is asked, and waits again before the next
//! task sends. To wake somebody costs a sender several microseconds on a virtual machine; of those that are written to
//! one right after the other, all but the first are awake. `docs/decisions/0015-outbox.md` has the figures.
//!
//! Many bytes do not wait, and are not copied. Neither does anything wait in a thread that has little to do: then those
//! who are woken begin at once, and their work and the thread's overlap.

mod stream;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::future::poll_fn;
use std::io::{self, ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use smallvec::SmallVec;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

pub use self::stream::Stream;

/// As many bytes are copied, and wait for the end of the turn. For so few one `send` and a copy cost less than `writev`
/// besides: 0.2 µs of some 8 (Linux 6.18, 430 bytes).
const FEW: usize = 2048;
/// As many wait in one socket.
const MOST: usize = 16 << 10;
/// So often a turn writes when there is much to do.
const MANY: usize = 8;
/// As many sockets wait: a long turn is cut into several, so that nobody waits for all of it.
const SOCKETS: usize = 32;

/// The kernel holds as many bytes of a socket that it has not sent yet, and not the megabytes that it would take for a peer who
/// does not read (`TCP_NOTSENT_LOWAT`). What is under way to a peer who reads is not bounded by it.
pub const UNSENT: u32 = 64 << 10;

/// Whoever has the socket.
type Holder = Weak<dyn AsRef<Socket>>;

/// What waits to be sent in one data thread.
#[derive(Default)]
pub struct Outbox {
    /// For the end of the turn.
    waiting: RefCell<Vec<Holder>>,
    /// For the kernel, which takes no more for now.
    blocked: RefCell<Vec<Holder>>,
    /// Buffers that nothing waits in.
    spare: RefCell<Vec<Vec<u8>>>,
    /// Sends at the end of the turn.
    sender: RefCell<Option<Waker>>,
    /// Sends when the kernel takes more.
    resumer: RefCell<Option<Waker>>,
    /// How often something was written in this turn.
    writes: Cell<usize>,
    /// Whether what is written in this turn waits: so it is where the turn before it had much to send.
    waits: Cell<bool>,
}

/// A socket whose bytes may wait.
pub struct Socket(RefCell<State>);

struct State {
    stream: TcpStream,
    unsent: Vec<u8>,
    /// The kernel takes no more for now.
    blocked: bool,
    /// Its owner waits for that, and sends what waits: nobody else may ask to be woken, for the kernel wakes one.
    claimed: bool,
    /// What waited could not be sent.
    failed: Option<ErrorKind>,
}

impl Outbox {
    /// Sends what waits at the end of each turn: to be run beside those who send, as `resume` is.
    pub async fn run(self: Rc<Self>) -> Infallible {
        let _runs = Runs(&self);
        poll_fn(|cx| {
            *self.sender.borrow_mut() = Some(cx.waker().clone());
            self.waits.set(MANY <= self.writes.replace(0));
            self.send();
            Poll::Pending
        })
        .await
    }

    /// Sends what the kernel did not take at the end of a turn. It is looked at only when the kernel takes more: there may
    /// be many clients who do not read.
    pub async fn resume(self: Rc<Self>) -> Infallible {
        poll_fn(|cx| {
            *self.resumer.borrow_mut() = Some(cx.waker().clone());
            self.blocked.borrow_mut().retain(|socket| {
                let Some(socket) = socket.upgrade() else { return false };
                let mut state = (*socket).as_ref().0.borrow_mut();
                if state.claimed {
                    return false;
                }
                let sent = state.poll_send(&self, cx);
                state.note(sent)
            });
            Poll::Pending
        })
        .await
    }

    /// Writes what it can of `slices`, in their order, or lets them wait. Returns how many bytes that was.
    pub fn poll_write<S: AsRef<Socket> + 'static>(
        &self,
        to: &Rc<S>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let socket: &Socket = (**to).as_ref();
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        let waits = bytes <= FEW && self.waits.get();
        self.count();
        let mut state = socket.0.borrow_mut();
        if let Some(failed) = state.failed {
            return Poll::Ready(Err(failed.into()));
        }
        if !waits || state.blocked || MOST < state.unsent.len() + bytes {
            ready!(state.poll_send_own(self, cx))?;
        }
        if !waits || bytes == 0 {
            return state.poll_write(cx, slices, bytes);
        }
        let first = state.unsent.is_empty();
        if first && state.unsent.capacity() == 0 {
            state.unsent = self.spare.borrow_mut().pop().unwrap_or_default();
        }
        slices.iter().for_each(|slice| state.unsent.extend_from_slice(slice));
        drop(state);
        if first {
            let to: Rc<dyn AsRef<Socket>> = to.clone();
            self.wait(Rc::downgrade(&to));
        }
        Poll::Ready(Ok(bytes))
    }

    fn wait(&self, socket: Holder) {
        self.waiting.borrow_mut().push(socket);
        if SOCKETS <= self.waiting.borrow().len() {
            self.send();
        }
    }

    fn count(&self) {
        let writes = self.writes.get();
        self.writes.set(writes + 1);
        if writes == 0
            && let Some(sender) = &*self.sender.borrow()
        {
            sender.wake_by_ref(); // it runs after all that were woken before it
        }
    }

    /// Sends what waits and is still held by somebody.
    fn send(&self) {
        for holder in self.waiting.borrow_mut().drain(..) {
            let Some(socket) = holder.upgrade() else { continue };
            let mut state = (*socket).as_ref().0.borrow_mut();
            let sent = state.try_send(self);
            if state.note(sent) {
                self.blocked.borrow_mut().push(holder);
                if let Some(resumer) = &*self.resumer.borrow() {
                    resumer.wake_by_ref();
                }
            }
        }
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SOCKETS && buffer.capacity() <= MOST {
            spare.push(buffer);
        }
    }
}

/// The sender is there as long as this is.
struct Runs<'a>(&'a Outbox);

impl Drop for Runs<'_> {
    fn drop(&mut self) {
        self.0.sender.take();
        self.0.waits.set(false);
        self.0.send();
    }
}

impl Socket {
    /// A socket of which nothing waits.
    pub fn new(stream: TcpStream) -> Self {
        Self(RefCell::new(State { stream, unsent: Vec::new(), blocked: false, claimed: false, failed: None }))
    }

    /// Whether the other end left it open and has sent nothing, as far as is known without asking the kernel.
    pub fn is_quiet(&self) -> bool {
        let read = self.0.borrow().stream.try_read(&mut [0]);
        read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// The same as of now, by the kernel's word: something may have come since this thread last looked.
    pub fn is_quiet_now(&self) -> bool {
        let peeked = SockRef::from(&self.0.borrow().stream).peek(&mut [MaybeUninit::uninit()]);
        peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// Takes this many bytes back, if none of them has left: they are all that was written since the last of what was
    /// before them left.
    pub fn take_back(&self, bytes: usize) -> bool {
        let unsent = &mut self.0.borrow_mut().unsent;
        let all = unsent.len() == bytes;
        if all {
            unsent.clear();
        }
        all
    }

    /// How many bytes wait, or could not be sent.
    pub fn unsent(&self) -> usize {
        self.0.borrow().unsent.len()
    }

    /// The connection ends with a reset: its other end must not take the end for a good one.
    pub fn reset_when_dropped(&self) {
        let _ = SockRef::from(&self.0.borrow().stream).set_linger(Some(Duration::ZERO)); // it may have ended by itself
    }

    /// Ends both directions at once. Whoever waits for it wakes up.
    pub fn shut_down(&self) {
        let _ = SockRef::from(&self.0.borrow().stream).shutdown(Shutdown::Both); // it may have ended by itself
    }
}

impl AsRef<Socket> for Socket {
    fn as_ref(&self) -> &Socket {
        self
    }
}

impl AsyncRead for &Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_read(cx, buf)
    }
}

impl State {
    /// Sends what waits, as far as the kernel takes it.
    fn try_send(&mut self, outbox: &Outbox) -> Poll<io::Result<()>> {
        let mut sent = 0;
        while sent < self.unsent.len() {
            match self.stream.try_write(&self.unsent[sent..]) {
                Ok(n) if 0 < n => sent += n,
                stopped => {
                    self.unsent.drain(..sent);
                    return match stopped {
                        Err(error) if error.kind() == ErrorKind::WouldBlock => Poll::Pending,
                        Err(error) => Poll::Ready(Err(error)),
                        Ok(_) => Poll::Ready(Err(ErrorKind::WriteZero.into())),
                    };
                }
            }
        }
        self.blocked = false;
        if 0 < self.unsent.capacity() {
            self.unsent.clear();
            outbox.give_back(std::mem::take(&mut self.unsent));
        }
        Poll::Ready(Ok(()))
    }

    /// Notes what became of what waited for the end of the turn. Whether the kernel is to take more first.
    fn note(&mut self, sent: Poll<io::Result<()>>) -> bool {
        self.blocked = sent.is_pending();
        if let Poll::Ready(Err(error)) = sent {
            self.failed = Some(error.kind());
        }
        self.blocked
    }

    /// Sends all that waits.
    fn poll_send(&mut self, outbox: &Outbox, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.try_send(outbox) {
                Poll::Pending => ready!(self.stream.poll_write_ready(cx))?,
                sent => return sent,
            }
        }
    }

    /// The same for the socket's owner.
    fn poll_send_own(&mut self, outbox: &Outbox, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = self.poll_send(outbox, cx);
        self.claimed = sent.is_pending();
        sent
    }

    /// Writes what the kernel takes of slices that have so many bytes.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        bytes: usize,
    ) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        match slices {
            [slice] => stream.poll_write(cx, slice),
            _ if bytes <= FEW => {
                let mut gathered = SmallVec::<[u8; FEW]>::new();
                slices.iter().for_each(|slice| gathered.extend_from_slice(slice));
                stream.poll_write(cx, &gathered)
            }
            _ => stream.poll_write_vectored(cx, slices),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;

//! Accepts clients: one listener per data thread, and TLS where there is a certificate.

mod trouble;

use std::io;
use std::iter;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::client::Peer;
use crate::connection::{Client, Holding, Transport, Watched, is_http2};
use crate::drain::{Lifecycle, Phase};
use crate::outbox::{self, Stream};
use crate::rejection::Rejection;
use crate::siblings::{Arrival, Identity};
use crate::thread::DataThread;
use crate::tls::Reloading;
use crate::{http1, http2};
use trouble::Trouble;

/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 4096;

/// What TLS takes of memory besides what every connection takes: its keys and buffers of records.
const TLS: usize = 8 << 10;

/// Binds one socket of several that share an address: the kernel spreads connections over them.
///
/// # Errors
/// That the address cannot be bound; where it is not `shared`, that somebody listens there.
pub fn bind(address: SocketAddr, shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_notsent_lowat(outbox::UNSENT)?;
    socket.bind(&address.into())?;
    // What was bound alone is shared with the process's other sockets; another process was refused, or will be.
    socket.set_reuse_port(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The same for several threads, one listener for each.
///
/// # Errors
/// Those of `bind`.
pub fn bind_all(
    wanted: SocketAddr,
    shared: bool,
    threads: usize,
) -> io::Result<(SocketAddr, Vec<std::net::TcpListener>)> {
    let first = bind(wanted, shared)?;
    let address = first.local_addr()?;
    let others = (1..threads).map(|_| bind(address, true));
    Ok((address, iter::once(Ok(first)).chain(others).collect::<io::Result<_>>()?))
}

/// Whom a listener serves.
#[derive(Clone)]
pub enum Front {
    /// Clients, with TLS where there is a certificate.
    Clients(Option<Arc<Reloading>>),
    /// Siblings, who show that they are.
    Siblings(Arc<Identity>),
}

/// Accepts connections from when the process serves until it is about to stop. Until then they wait in the kernel.
pub async fn accept(thread: Rc<DataThread>, listener: Rc<TcpListener>, front: Front, lifecycle: Lifecycle) {
    lifecycle.reached(Phase::Serving).await;
    let closing = lifecycle.reached(Phase::Closing);
    tokio::pin!(closing);
    let mut trouble = Trouble::default();
    loop {
        if thread.connections.is_full() {
            tokio::task::yield_now().await; // those that gave way end first
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut closing => break,
        };
        match accepted {
            Ok(accepted) => take(&thread, accepted, &front),
            Err(error) => {
                if let Some(pause) = trouble.pause(&error, Instant::now()) {
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
    // What the kernel has accepted already is served too: closing the socket would reset it.
    while let Ok(Ok(accepted)) = tokio::time::timeout(Duration::from_millis(1), listener.accept()).await {
        take(&thread, accepted, &front);
        thread.connections.close_all();
    }
}

fn take(thread: &Rc<DataThread>, (stream, address): (TcpStream, SocketAddr), front: &Front) {
    let _ = stream.set_nodelay(true); // it may be gone already; reading will tell
    let (tls, arrival) = match front {
        Front::Clients(tls) => (tls.as_ref().map(|tls| tls.config()), Arrival::Client),
        Front::Siblings(identity) => match identity.current(Instant::now()) {
            Some(credentials) => (Some(credentials.server().clone()), Arrival::Sibling),
            None => return, // nobody can be told from a stranger yet
        },
    };
    let place = match thread.connections.admit(address.ip().to_canonical()) {
        Ok(place) => place,
        Err(rejection) => return thread.shed(rejection, address.ip().to_canonical()),
    };
    thread.shard.accepted.add(1);
    let tls = tls.map(TlsAcceptor::from);
    let (thread, connections) = (thread.clone(), &thread.connections);
    let peer = Peer::new(address, tls.is_some());
    let stream = Stream::new(stream, thread.outbox.clone());
    connections.spawn(peer, arrival, Some(place), |client| converse(thread, client, stream, tls));
}

/// A connection from its first byte to its last.
async fn converse(thread: Rc<DataThread>, client: Rc<Client>, stream: Stream, tls: Option<TlsAcceptor>) {
    let _open = Open::new(&thread, &client);
    let served = match tls {
        None => plain(&thread, &client, stream).await,
        // In a box: a plain connection needs no room for a handshake.
        Some(acceptor) => Box::pin(encrypted(&thread, &client, stream, acceptor)).await,
    };
    if let Err(error) = served {
        tracing::debug!(client = %client.peer.address, error, "connection ended");
    }
}

/// Counts a connection while it is open.
struct Open {
    thread: Rc<DataThread>,
    client: Rc<Client>,
}

impl Open {
    fn new(thread: &Rc<DataThread>, client: &Rc<Client>) -> Self {
        thread.shard.connections.add(1);
        Self { thread: thread.clone(), client: client.clone() }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.thread.shard.connections.sub(1);
        self.client.upgrade.take(); // whoever waits for the connection waits in vain
        if let Some(why) = self.client.activity.tell_why_shed() {
            self.thread.shed(why, self.client.peer.ip());
        }
    }
}

async fn plain(thread: &Rc<DataThread>, client: &Rc<Client>, mut stream: Stream) -> Result<(), String> {
    let begun = client.activity.unless_closing(is_http2(&mut stream)).await;
    let Some(begun) = begun else { return Ok(()) };
    let (is_http2, read) = begun.map_err(|error| error.to_string())?;
    let transport = Transport::Plain(stream);
    if is_http2 {
        return over_http2(thread, client, transport, read).await;
    }
    over_http1(thread, client, transport, read).await
}

async fn over_http1(
    thread: &Rc<DataThread>,
    client: &Rc<Client>,
    transport: Transport,
    read: Bytes,
) -> Result<(), String> {
    let stream = Watched::new(transport, client.activity.clone(), Bytes::new());
    http1::server::serve(thread, client, stream, read).await.map_err(|error| error.to_string())
}

async fn over_http2(
    thread: &Rc<DataThread>,
    client: &Rc<Client>,
    transport: Transport,
    read: Bytes,
) -> Result<(), String> {
    let stream = Watched::new(transport, client.activity.clone(), read);
    // In a box: a connection over HTTP/1.1 needs no room for it.
    Box::pin(http2::serve(thread, client, stream)).await.map_err(|error| error.to_string())
}

async fn encrypted(
    thread: &Rc<DataThread>,
    client: &Rc<Client>,
    stream: Stream,
    acceptor: TlsAcceptor,
) -> Result<(), String> {
    let Some(first) = client.activity.unless_closing(stream.first_byte()).await else { return Ok(()) };
    let first = first.map_err(|error| error.to_string())?;
    if client.arrival == Arrival::Client && first.is_some_and(|byte| byte.is_ascii_uppercase()) {
        return refuse_plain_http(thread, client, stream).await;
    }
    let Some(accepted) = client.activity.unless_closing(acceptor.accept(stream)).await else { return Ok(()) };
    let accepted = accepted.map_err(|error| {
        if client.arrival == Arrival::Sibling {
            thread.shard.strangers.add(1);
        }
        error.to_string()
    });
    let stream = Box::new(accepted?);
    let _holding = Holding::of_protocol(client.activity.clone(), TLS);
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let transport = Transport::Tls(stream);
    if is_http2 {
        return over_http2(thread, client, transport, Bytes::new()).await;
    }
    over_http1(thread, client, transport, Bytes::new()).await
}

/// Whoever speaks plain HTTP to a port that speaks TLS is told so, in plain HTTP: a record of TLS does not begin with a letter.
async fn refuse_plain_http(
    thread: &Rc<DataThread>,
    client: &Rc<Client>,
    stream: Stream,
) -> Result<(), String> {
    let stream = Watched::new(Transport::Plain(stream), client.activity.clone(), Bytes::new());
    let refused = http1::server::refuse(thread, client, stream, Rejection::PlainHttp);
    refused.await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Trust;
    use crate::connection::{Bounds, Limits};
    use crate::control::Control;
    use crate::metrics::Metrics;

    /// What a connection keeps while it rests is this and a few hundred bytes: thousands may rest at once.
    #[tokio::test]
    async fn a_connection_is_small() {
        let limits = Limits {
            head: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            stall: Duration::from_secs(60),
        };
        let thread = DataThread::new(
            Control::new(Vec::new()),
            Metrics::default().shard(),
            Trust::default(),
            Bounds::of_one_thread(limits),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let stream = TcpStream::connect(address).await.expect("connects");
        let mut size = 0;
        let local = tokio::task::LocalSet::new();
        let _in = local.enter();
        thread.connections.spawn(Peer::new(address, false), Arrival::Client, None, |client| {
            let stream = Stream::new(stream, thread.outbox.clone());
            let served = converse(thread.clone(), client, stream, None);
            size = size_of_val(&served);
            served
        });
        assert!(0 < size && size <= 1024, "{size} bytes");
    }
}

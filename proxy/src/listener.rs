//! Accepts clients: one listener per data thread, TLS where there is a certificate, HTTP/1.1 or HTTP/2.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::client::Peer;
use crate::connection::{Client, Drive, Graceful, Peeked, Watched};
use crate::drain::{Lifecycle, Phase};
use crate::guard;
use crate::pool::LocalExecutor;
use crate::request;
use crate::siblings::{Arrival, Identity};
use crate::thread::DataThread;
use crate::tls::Reloading;

/// A head may have this many bytes, over HTTP/1.1 as over HTTP/2.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Requests one HTTP/2 connection may have in flight.
const MAX_STREAMS: u32 = 100;
/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 4096;

/// Binds one socket of several that share an address: the kernel spreads connections over them.
///
/// # Errors
/// That the address cannot be bound.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Whom a listener serves.
#[derive(Clone)]
pub enum Front {
    /// Clients, with TLS where there is a certificate.
    Clients(Option<Arc<Reloading>>),
    /// Siblings, who show that they are.
    Siblings(Arc<Identity>),
}

/// Accepts connections until the process is about to stop.
pub async fn accept(thread: Rc<DataThread>, listener: TcpListener, front: Front, lifecycle: Lifecycle) {
    let closing = lifecycle.reached(Phase::Closing);
    tokio::pin!(closing);
    loop {
        if !thread.connections.room() {
            tracing::warn!("as many connections as the proxy takes: accepting no more until one ends");
            tokio::select! {
                () = room(&thread) => {}
                () = &mut closing => return,
            }
        }
        tokio::select! {
            accepted = listener.accept() => take(&thread, accepted, &front).await,
            () = &mut closing => break,
        }
    }
    // What the kernel has accepted already is served too: closing the socket would reset it.
    while let Ok(accepted) = tokio::time::timeout(Duration::from_millis(1), listener.accept()).await {
        take(&thread, accepted, &front).await;
        thread.connections.close_all();
    }
}

async fn room(thread: &DataThread) {
    while !thread.connections.room() {
        tokio::time::sleep(Duration::from_millis(50)).await;
        thread.connections.tick(std::time::Instant::now());
    }
}

async fn take(thread: &Rc<DataThread>, accepted: io::Result<(TcpStream, SocketAddr)>, front: &Front) {
    let (stream, address) = match accepted {
        Ok(accepted) => accepted,
        Err(error) => {
            // Mostly out of file descriptors: the connections that are open go on, and one will end.
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(Duration::from_millis(50)).await;
            return;
        }
    };
    let _ = stream.set_nodelay(true); // it may be gone already; reading will tell
    let (tls, arrival) = match front {
        Front::Clients(tls) => (tls.as_ref().map(|tls| tls.config()), Arrival::Client),
        Front::Siblings(identity) => match identity.current(Instant::now()) {
            Some(credentials) => (Some(credentials.server().clone()), Arrival::Sibling),
            None => return, // nobody can be told from a stranger yet
        },
    };
    thread.shard.accepted.add(1);
    let tls = tls.map(TlsAcceptor::from);
    let (thread, connections) = (thread.clone(), &thread.connections);
    connections.spawn(Peer::new(address, tls.is_some()), arrival, |client| async move {
        let _open = OpenCount::new(&thread);
        let served = match tls {
            None => plain(&thread, &client, stream).await,
            // In a box: a plain connection needs no room for a handshake.
            Some(acceptor) => Box::pin(encrypted(&thread, &client, stream, acceptor)).await,
        };
        if let Err(error) = served {
            tracing::debug!(client = %client.peer.address, error, "connection ended");
        }
    });
}

/// Counts a connection while it is open.
struct OpenCount(Rc<DataThread>);

impl OpenCount {
    fn new(thread: &Rc<DataThread>) -> Self {
        thread.shard.connections.add(1);
        Self(thread.clone())
    }
}

impl Drop for OpenCount {
    fn drop(&mut self) {
        self.0.shard.connections.sub(1);
    }
}

async fn plain(thread: &Rc<DataThread>, client: &Rc<Client>, mut stream: TcpStream) -> Result<(), String> {
    let mut peeked = Peeked::default();
    let http2 = peeked.is_http2(&mut stream).await.map_err(|error| error.to_string())?;
    let stream = Watched::new(stream, client.activity.clone(), peeked);
    serve(thread, client, stream, http2).await.map_err(|error| error.to_string())
}

async fn encrypted(
    thread: &Rc<DataThread>,
    client: &Rc<Client>,
    stream: TcpStream,
    acceptor: TlsAcceptor,
) -> Result<(), String> {
    let accepted = acceptor.accept(stream).await.map_err(|error| {
        if client.arrival == Arrival::Sibling {
            thread.shard.strangers.add(1);
        }
        error.to_string()
    });
    let stream = Box::new(accepted?);
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let stream = Watched::new(stream, client.activity.clone(), Peeked::default());
    serve(thread, client, stream, http2).await.map_err(|error| error.to_string())
}

async fn serve<S>(
    thread: &Rc<DataThread>,
    client: &Rc<Client>,
    stream: Watched<S>,
    http2: bool,
) -> hyper::Result<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn({
        let (thread, client) = (thread.clone(), client.clone());
        // In a box of its own: hyper keeps room for it in every connection, and an idle one needs none.
        move |request: hyper::Request<Incoming>| {
            Box::pin(request::serve(thread.clone(), client.clone(), request))
        }
    });
    let io = TokioIo::new(stream);
    if http2 {
        client.activity.speaks_http2();
        let connection = http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
            .initial_stream_window_size(256 * 1024)
            .initial_connection_window_size(1024 * 1024)
            .keep_alive_interval(Duration::from_secs(20))
            .serve_connection(io, service);
        return Drive::new(connection, client.activity.clone()).await;
    }
    let connection = http1::Builder::new()
        .half_close(false)
        .max_headers(guard::MAX_HEADERS)
        .max_header_size(MAX_HEAD_BYTES)
        .serve_connection(io, service)
        .with_upgrades();
    Drive::new(connection, client.activity.clone()).await
}

impl<I, S, B> Graceful for http1::UpgradeableConnection<I, S>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn shut_down(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<I, S, B> Graceful for http2::Connection<I, S, LocalExecutor>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: hyper::service::HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: 'static,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn shut_down(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

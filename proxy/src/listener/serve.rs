//! Serves one connection, over HTTP/1.1 or HTTP/2.
//!
//! hyper holds some 20 KiB for a connection over HTTP/1.1, whether or not a request is on it. So one that has rested
//! for a while is parked: its stream is taken back from hyper, and given to it again with the next request.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;

use crate::body::ResponseBody;
use crate::connection::{Activity, Client, Duplex, Watched};
use crate::pool::LocalExecutor;
use crate::request;
use crate::thread::DataThread;

/// A head may have this many bytes, over HTTP/1.1 as over HTTP/2.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Requests one HTTP/2 connection may have in flight.
const MAX_STREAMS: u32 = 100;

/// Serves a connection over HTTP/1.1 until it ends.
///
/// # Errors
/// What broke it off.
pub(super) async fn http1<S: Duplex + 'static>(
    thread: &Rc<DataThread>,
    client: &Rc<Client>,
    mut stream: Watched<S>,
) -> Result<(), String> {
    let mut builder = http1::Builder::new();
    builder.half_close(false).max_header_size(MAX_HEAD_BYTES);
    loop {
        let connection = builder.serve_connection(TokioIo::new(stream), service(thread, client));
        stream = converse(Box::new(connection), &client.activity).await.map_err(|error| error.to_string())?;
        if let Some(upgrade) = client.upgrade.take() {
            let _ = upgrade.send(Box::new(stream)); // its tunnel may have been given up
            return Ok(());
        }
        if !client.activity.is_parked() {
            return Ok(());
        }
        let more = stream.wait().await;
        client.activity.park(false);
        if !more.map_err(|error| error.to_string())? {
            return stream.shutdown().await.map_err(|error| error.to_string());
        }
    }
}

type Http1<S, V> = http1::Connection<TokioIo<Watched<S>>, V>;

/// Runs a connection over HTTP/1.1 until it ends, and gives its stream back.
async fn converse<S, V>(mut connection: Box<Http1<S, V>>, activity: &Activity) -> hyper::Result<Watched<S>>
where
    S: Duplex + 'static,
    V: Service<Request<Incoming>, Response = Response<ResponseBody>, Error = Infallible>,
{
    let mut told = false;
    poll_fn(|cx| drive(Pin::new(&mut *connection), activity, &mut told, cx)).await?;
    let parts = connection.into_parts();
    Ok(parts.io.into_inner().put_back(parts.read_buf))
}

/// Serves a connection over HTTP/2 until it ends.
///
/// # Errors
/// What broke it off.
pub(super) async fn http2<S: Duplex + 'static>(
    thread: &Rc<DataThread>,
    client: &Rc<Client>,
    stream: Watched<S>,
) -> Result<(), String> {
    client.activity.speaks_http2();
    let service = service(thread, client);
    // hyper hands the future of a request on several times before it begins: it is large.
    let service = service_fn(move |request| Box::pin(service.call(request)));
    let connection = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .keep_alive_interval(Duration::from_secs(20))
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = Box::pin(connection);
    let mut told = false;
    poll_fn(|cx| drive(connection.as_mut(), &client.activity, &mut told, cx))
        .await
        .map_err(|error| error.to_string())
}

fn service(
    thread: &Rc<DataThread>,
    client: &Rc<Client>,
) -> impl Service<
    Request<Incoming>,
    Response = Response<ResponseBody>,
    Error = Infallible,
    Future: Future<Output = Result<Response<ResponseBody>, Infallible>> + 'static,
> + use<> {
    let (thread, client) = (thread.clone(), client.clone());
    service_fn(move |request| request::serve(thread.clone(), client.clone(), request))
}

/// Runs a connection, and passes on the wish to close it or to park it.
fn drive<C: Graceful>(
    mut connection: Pin<&mut C>,
    activity: &Activity,
    told: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<hyper::Result<()>> {
    activity.listen(cx);
    if activity.is_closing() && !*told {
        *told = true;
        connection.as_mut().shut_down();
    }
    let parks = activity.may_park();
    if parks {
        // One that rests ends at once, and `Watched` keeps its stream open.
        activity.park(true);
        connection.as_mut().shut_down();
    }
    let ended = connection.poll(cx);
    if parks && ended.is_pending() {
        activity.park(false); // it did not rest: it closes after the request that it is about
    }
    ended
}

/// A hyper connection that can be asked to end after what is in flight.
trait Graceful: Future<Output = hyper::Result<()>> {
    fn shut_down(self: Pin<&mut Self>);
}

impl<I, S, B> Graceful for http1::Connection<I, S>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: HttpService<Incoming, ResBody = B>,
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
    S: HttpService<Incoming, ResBody = B>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: 'static,
    B: http_body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn shut_down(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

#[cfg(test)]
mod tests;

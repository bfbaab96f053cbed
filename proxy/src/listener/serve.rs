//! Serves one connection over HTTP/2.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::{HttpService, Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};

use crate::body::{ClientBody, ResponseBody};
use crate::connection::{Activity, Client, Watched};
use crate::interim::Interim;
use crate::pool::LocalExecutor;
use crate::request;
use crate::thread::DataThread;

/// A head may have this many bytes, over HTTP/1.1 as over HTTP/2.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Requests one HTTP/2 connection may have in flight.
const MAX_STREAMS: u32 = 100;

/// Serves a connection over HTTP/2 until it ends.
///
/// # Errors
/// What broke it off.
pub(super) async fn http2(
    thread: &Rc<DataThread>,
    client: &Rc<Client>,
    stream: Watched,
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
    service_fn(move |request: Request<Incoming>| {
        let (thread, client) = (thread.clone(), client.clone());
        async move {
            let request = request.map(ClientBody::Http2);
            Ok(request::serve(thread, client, request, Interim::to_nobody()).await)
        }
    })
}

/// Runs a connection, and passes on the wish to close it.
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
    connection.poll(cx)
}

/// A hyper connection that can be asked to end after what is in flight.
trait Graceful: Future<Output = hyper::Result<()>> {
    fn shut_down(self: Pin<&mut Self>);
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
mod tests {
    use bytes::Bytes;
    use futures_util::future::join_all;
    use http_body_util::Empty;
    use tokio::task::LocalSet;

    use super::*;
    use crate::client::{Peer, Trust};
    use crate::connection::{Limits, Transport};
    use crate::control::Control;
    use crate::metrics::Metrics;
    use crate::outbox::Stream;
    use crate::outbox::tests::sockets;
    use crate::siblings::Arrival;

    const LIMITS: Limits = Limits {
        head: Duration::from_secs(10),
        idle: Duration::from_secs(75),
        stall: Duration::from_secs(60),
        connections: 9,
    };

    /// A panic costs the request that it happens in, and nothing else on its connection.
    #[tokio::test]
    async fn where_a_request_panics_the_streams_beside_it_are_served() {
        let test = async {
            let control = Control::new(Vec::new());
            let thread = DataThread::new(control, Metrics::default().shard(), Trust::default(), LIMITS);
            let (stream, other) = sockets().await;
            let peer = Peer::new(([127, 0, 0, 1], 9).into(), false);
            thread.connections.spawn(peer, Arrival::Client, |client| {
                let thread = thread.clone();
                async move {
                    let transport = Transport::Plain(Stream::new(other, thread.outbox.clone()));
                    let stream = Watched::new(transport, client.activity.clone(), Bytes::new());
                    http2(&thread, &client, stream).await.expect("no error");
                }
            });
            let handshake = hyper::client::conn::http2::handshake(LocalExecutor, TokioIo::new(stream));
            let (mut sender, connection) = handshake.await.expect("it speaks HTTP/2");
            tokio::task::spawn_local(connection);
            let send = |panics: bool| {
                let name = if panics { "x-panic" } else { "x-other" };
                let request = Request::get("http://a.test/").header(name, "1");
                sender.send_request(request.body(Empty::<Bytes>::new()).expect("a request"))
            };
            let answers = join_all([false, true, false].map(send)).await;
            let statuses = answers.into_iter().map(|answer| answer.expect("an answer").status().as_u16());
            assert_eq!(statuses.collect::<Vec<_>>(), [503, 500, 503]);
        };
        LocalSet::new().run_until(test).await;
    }
}

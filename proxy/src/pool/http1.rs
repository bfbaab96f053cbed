//! A connection to a worker over HTTP/1.1.
//!
//! It has no task of its own: the request that uses it runs it, so that a request and its answer go through one task,
//! which is woken once for each. Only where a client still sends while it is answered must the two directions move
//! independently: the connection then gets a task, and keeps it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::{Rc, Weak};
use std::task::{Context, Waker};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use tokio::task::{AbortHandle, unconstrained};

use super::Wire;
use crate::body::RequestBody;
use crate::guard::MAX_RESPONSE_HEADERS;

/// A connection to a worker over HTTP/1.1.
pub struct Http1 {
    sender: http1::SendRequest<RequestBody>,
    /// What moves its bytes; `None` when a task does, or nothing is left to move.
    driver: Option<Box<Driver>>,
    cut: Rc<Cut>,
}

type Driver = http1::Connection<TokioIo<Wire>, RequestBody>;

/// Ends a connection, whatever runs on it. It lives as long as the connection does.
#[derive(Default)]
pub(super) struct Cut {
    done: Cell<bool>,
    /// Of who ran the connection last.
    waker: RefCell<Option<Waker>>,
    task: RefCell<Option<AbortHandle>>,
}

impl Http1 {
    /// A connection over a new stream.
    ///
    /// # Errors
    /// hyper's.
    pub(super) async fn new(stream: Wire) -> hyper::Result<Self> {
        let (sender, connection) =
            http1::Builder::new().max_headers(MAX_RESPONSE_HEADERS).handshake(TokioIo::new(stream)).await?;
        Ok(Self { sender, driver: Some(Box::new(connection)), cut: Rc::default() })
    }

    /// What ends it from outside.
    pub(super) fn cut(&self) -> Weak<Cut> {
        Rc::downgrade(&self.cut)
    }

    /// Whether it can take a request. Notices what became of it while nobody used it.
    pub fn is_ready(&mut self) -> bool {
        self.run(&mut Context::from_waker(Waker::noop()));
        self.sender.is_ready()
    }

    /// Whether it can take no further request, as far as was noticed.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// hyper's, with the request where nothing of it has left.
    pub async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        // The answer comes out of the driver, and the driver knows whom to wake, so `sent` need wake nobody. It is
        // unconstrained, because tokio would wake through it when the task has used up its turn.
        let mut sent = pin!(unconstrained(self.sender.try_send_request(request)));
        let (driver, cut) = (&mut self.driver, &self.cut);
        poll_fn(|cx| {
            run(driver, cut, cx);
            match driver {
                Some(_) => sent.as_mut().poll(&mut Context::from_waker(Waker::noop())),
                None => sent.as_mut().poll(cx),
            }
        })
        .await
    }

    /// Moves what there is to send and to read, unless a task does.
    pub fn run(&mut self, cx: &mut Context<'_>) {
        run(&mut self.driver, &self.cut, cx);
    }

    /// Gives the connection a task of its own.
    pub fn detach(&mut self) {
        let Some(driver) = self.driver.take() else { return };
        let cut = self.cut.clone();
        let task = tokio::task::spawn_local(async move {
            let _cut = cut; // it lives as long as the connection
            let _ = driver.await; // whoever uses it learns of the error by the request
        });
        *self.cut.task.borrow_mut() = Some(task.abort_handle());
    }
}

fn run(driver: &mut Option<Box<Driver>>, cut: &Cut, cx: &mut Context<'_>) {
    let Some(running) = driver else { return };
    if cut.done.get() || Pin::new(&mut **running).poll(cx).is_ready() {
        *driver = None; // whoever uses it learns of the error by the request
        return;
    }
    let mut waker = cut.waker.borrow_mut();
    match &mut *waker {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *waker = Some(cx.waker().clone()),
    }
}

impl Cut {
    /// Ends the connection.
    pub(super) fn now(&self) {
        self.done.set(true);
        if let Some(task) = &*self.task.borrow() {
            task.abort();
        }
        let waker = self.waker.borrow().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};
    use std::task::Poll;
    use std::time::Duration;

    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::LocalSet;

    use super::*;

    /// A connection, and the worker's side of it.
    async fn pair() -> (Http1, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (stream, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let connection = Http1::new(Wire::Plain(stream.expect("connects"))).await.expect("a connection");
        (connection, accepted.expect("accepts").0)
    }

    fn request() -> Request<RequestBody> {
        Request::get("/").header("host", "a.test").body(RequestBody::empty()).expect("a request")
    }

    async fn worker(stream: &mut TcpStream, answer: &[u8]) {
        let mut head = [0; 1024];
        let n = stream.read(&mut head).await.expect("open");
        assert!(head[..n].ends_with(b"\r\n\r\n"));
        stream.write_all(answer).await.expect("open");
    }

    async fn body_of(connection: &mut Http1, response: Response<Incoming>) -> Vec<u8> {
        let mut body = pin!(response.into_body().collect());
        let collected = poll_fn(|cx| {
            connection.run(cx);
            body.as_mut().poll(cx)
        });
        collected.await.expect("whole").to_bytes().to_vec()
    }

    async fn ready(connection: &mut Http1) -> bool {
        let mut waits = 0;
        while !connection.is_ready() && !connection.is_closed() && waits < 1000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            waits += 1;
        }
        connection.is_ready()
    }

    #[tokio::test]
    async fn one_request_after_the_other_and_no_task() {
        let (mut connection, mut stream) = pair().await;
        for _ in 0..3 {
            let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
            let (response, ()) = tokio::join!(connection.send(request()), worker(&mut stream, answer));
            let Ok(response) = response else { panic!("no answer") };
            assert_eq!(body_of(&mut connection, response).await, b"abc");
            assert!(ready(&mut connection).await);
        }
        assert!(connection.driver.is_some());
    }

    #[tokio::test]
    async fn what_the_worker_closed_takes_no_request() {
        let (mut connection, stream) = pair().await;
        assert!(ready(&mut connection).await);
        drop(stream);
        while connection.is_ready() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(connection.is_closed());
        let Err(mut error) = connection.send(request()).await else { panic!("it is closed") };
        assert!(error.take_message().is_some(), "nothing of it has left");
    }

    /// With a task or without one.
    #[tokio::test]
    async fn a_cut_ends_a_request_under_way() {
        LocalSet::new()
            .run_until(async {
                for detached in [false, true] {
                    let (mut connection, stream) = pair().await;
                    if detached {
                        connection.detach();
                    }
                    let cut = connection.cut();
                    let sent = connection.send(request());
                    let cutter = async {
                        tokio::task::yield_now().await;
                        cut.upgrade().expect("it is open").now();
                        pending::<()>().await;
                    };
                    tokio::select! {
                        sent = sent => assert!(sent.is_err()),
                        () = cutter => {}
                    }
                    assert!(connection.is_closed());
                    drop(connection);
                    poll_fn(|cx| match cut.upgrade() {
                        None => Poll::Ready(()),
                        Some(_) => {
                            cx.waker().wake_by_ref();
                            Poll::Pending
                        }
                    })
                    .await;
                    drop(stream);
                }
            })
            .await;
    }
}

//! A worker that records every byte it receives, answers what a strict reader takes, and plays a hostile answer
//! when the target begins with `/hostile`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use shared::Shared;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::corpus::Then;
use super::grammar::{Violation, members};
use super::strict::{Message, Step, request, waits_for_continue};

/// What came over one connection since the last look.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    pub bytes: Vec<u8>,
    pub messages: Vec<Message>,
    pub violations: Vec<Violation>,
    /// The front of a message whose end has not come.
    pub partial: usize,
    pub closed: bool,
}

/// The answer to `/hostile`.
#[derive(Clone, Debug, Default)]
pub struct Script {
    pub writes: Vec<Vec<u8>>,
    pub then: Then,
}

#[derive(Default)]
struct State {
    connections: Vec<Arc<Shared<Recorded>>>,
    script: Script,
    /// Whether the script was played to its end.
    played: bool,
}

/// A recording worker; it stops when it is dropped.
pub struct Recorder {
    pub address: SocketAddr,
    state: Arc<Shared<State>>,
    listener: JoinHandle<()>,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Recorder {
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(Shared::<State>::default());
        let shared = Arc::clone(&state);
        let listener = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let recorded = Arc::new(Shared::<Recorded>::default());
                shared.with(|state| state.connections.push(Arc::clone(&recorded)));
                tokio::spawn(serve(stream, recorded, Arc::clone(&shared)));
            }
        });
        Ok(Self { address, state, listener })
    }

    pub fn play(&self, script: Script) {
        self.state.with(|state| {
            state.script = script;
            state.played = false;
        });
    }

    /// Waits until the script was played to its end, or for `patience`. A request that is sent before takes what
    /// is left of the script for its answer, through any proxy: nothing tells it from one.
    pub async fn played(&self, patience: Duration) {
        self.wait_until(patience, |state| state.played).await;
    }

    /// Takes what was recorded; a partial message stays for the next look.
    pub fn take(&self) -> Vec<Recorded> {
        self.state.with(|state| {
            let taken = state.connections.iter().map(|connection| connection.with(take_one)).collect();
            state.connections.retain(|connection| connection.with(|recorded| !recorded.closed));
            taken
        })
    }

    /// Waits until no open connection holds a partial message, or for `patience`, and takes.
    pub async fn settle(&self, patience: Duration) -> Vec<Recorded> {
        let unfinished = |recorded: &mut Recorded| recorded.partial > 0 && !recorded.closed;
        let settled = |state: &State| !state.connections.iter().any(|connection| connection.with(unfinished));
        self.wait_until(patience, settled).await;
        self.take()
    }

    async fn wait_until(&self, patience: Duration, reached: impl Fn(&State) -> bool) {
        let step = Duration::from_millis(10);
        let mut waited = Duration::ZERO;
        while waited < patience && !self.state.with(|state| reached(state)) {
            tokio::time::sleep(step).await;
            waited += step;
        }
    }
}

fn take_one(recorded: &mut Recorded) -> Recorded {
    let keep = recorded.bytes.split_off(recorded.bytes.len() - recorded.partial);
    let mut taken = std::mem::take(recorded);
    taken.bytes.extend_from_slice(&keep);
    recorded.partial = keep.len();
    recorded.bytes = keep;
    recorded.closed = taken.closed;
    taken
}

async fn serve(mut stream: TcpStream, recorded: Arc<Shared<Recorded>>, state: Arc<Shared<State>>) {
    let worker = stream.local_addr().map(|address| address.to_string()).unwrap_or_default();
    let mut unread = Vec::new();
    let mut continued = false;
    loop {
        let before = unread.len();
        if !matches!(stream.read_buf(&mut unread).await, Ok(1..)) {
            break;
        }
        recorded.with(|recorded| {
            recorded.bytes.extend_from_slice(&unread[before..]);
            // What has not been read yet stays for the next look, should one come before it is.
            recorded.partial = unread.len();
        });
        if !continued && waits_for_continue(&unread) && request(&unread) == Step::Incomplete {
            continued = stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.is_ok();
        }
        while let Some(message) = next(&mut unread, &recorded) {
            continued = false;
            let script =
                message.target.starts_with("/hostile").then(|| state.with(|state| state.script.clone()));
            let goes_on = match script {
                Some(script) => {
                    let goes_on = play(&mut stream, &script).await;
                    state.with(|state| state.played = true);
                    goes_on
                }
                None => answer(&mut stream, &message, &worker).await,
            };
            if !goes_on {
                recorded.with(|recorded| recorded.closed = true);
                return;
            }
        }
        if recorded.with(|recorded| !recorded.violations.is_empty()) {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
            break;
        }
    }
    recorded.with(|recorded| recorded.closed = true);
}

/// Cuts one message off the front of `unread` and notes what it is.
fn next(unread: &mut Vec<u8>, recorded: &Shared<Recorded>) -> Option<Message> {
    let step = if unread.is_empty() { Step::Incomplete } else { request(unread) };
    recorded.with(|recorded| match step {
        Step::Complete(message, length) => {
            unread.drain(..length);
            recorded.messages.push(message.clone());
            recorded.partial = unread.len();
            Some(message)
        }
        Step::Incomplete => {
            recorded.partial = unread.len();
            None
        }
        Step::Broken(violations) => {
            recorded.violations.extend(violations);
            recorded.partial = 0;
            None
        }
    })
}

/// What a worker says to a well-formed request: method, target and body length, so that an answer to another
/// request is seen to be one.
pub fn echo(method: &str, target: &str, body: usize) -> String {
    format!("{method} {target} {body}")
}

async fn answer(stream: &mut TcpStream, message: &Message, worker: &str) -> bool {
    let asked = members(&message.fields, "upgrade") == ["websocket"];
    if asked && !message.target.starts_with("/refuse") {
        return tunnel(stream).await.is_ok();
    }
    let body = echo(&message.method, &message.target, message.body.len());
    let mut bytes =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nX-Worker: {worker}\r\n\r\n", body.len())
            .into_bytes();
    if message.method != "HEAD" {
        bytes.extend_from_slice(body.as_bytes());
    }
    stream.write_all(&bytes).await.is_ok()
}

/// The key of the corpus is that of RFC 6455 §1.3, and so is this answer to it.
const SWITCHING: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

async fn tunnel(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(SWITCHING).await?;
    let (mut from, mut to) = stream.split();
    tokio::io::copy(&mut from, &mut to).await?;
    Err(std::io::ErrorKind::ConnectionAborted.into())
}

async fn play(stream: &mut TcpStream, script: &Script) -> bool {
    for (at, bytes) in script.writes.iter().enumerate() {
        if at > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if stream.write_all(bytes).await.is_err() {
            return false;
        }
    }
    match script.then {
        Then::Keep => true,
        Then::Close => false,
        Then::Reset => {
            // the bytes leave before the reset does
            tokio::time::sleep(Duration::from_millis(50)).await;
            let _ = stream.set_zero_linger();
            false
        }
    }
}

/// A mutex whose guard cannot be held across an await.
mod shared {
    use std::sync::{Mutex, PoisonError};

    #[derive(Default)]
    pub(super) struct Shared<T>(Mutex<T>);

    impl<T> Shared<T> {
        pub(super) fn with<R>(&self, look: impl FnOnce(&mut T) -> R) -> R {
            look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn send(recorder: &Recorder, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(recorder.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    #[tokio::test]
    async fn records_messages_violations_and_partials() {
        let recorder = Recorder::start().await.unwrap();
        let mut good = send(&recorder, b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut bad = send(&recorder, b"GET /b HTTP/1.1\r\n\r\n").await;
        let cut = send(&recorder, b"POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc").await;
        let mut answer = [0; 512];
        let length = good.read(&mut answer).await.unwrap();
        assert!(String::from_utf8_lossy(&answer[..length]).ends_with("GET /a 0"));
        assert!(bad.read(&mut answer).await.unwrap() > 0);
        drop(cut);
        let taken = recorder.settle(Duration::from_secs(1)).await;
        assert_eq!(taken.iter().map(|recorded| recorded.messages.len()).sum::<usize>(), 1);
        assert_eq!(taken.iter().map(|recorded| recorded.violations.len()).sum::<usize>(), 1);
        assert!(taken.iter().any(|recorded| recorded.partial > 0 && recorded.closed));
        assert!(recorder.take().iter().all(|recorded| recorded.bytes.is_empty()));
    }

    #[tokio::test]
    async fn plays_a_script() {
        let recorder = Recorder::start().await.unwrap();
        recorder.play(Script { writes: vec![b"ab".to_vec(), b"c".to_vec()], then: Then::Close });
        let mut stream = send(&recorder, b"GET /hostile HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"abc");
    }
}

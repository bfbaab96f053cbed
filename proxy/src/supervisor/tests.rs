//! The workers are this test program itself, started again to run `serve_as_worker` alone.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use outrigger_policy::merge::Merged;
use outrigger_policy::wire::{KeyRing, Update};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::*;
use crate::drain::Delay;
use crate::snapshot::Source;
use crate::worker::Worker;

const PATIENCE: Duration = Duration::from_secs(30);

/// A worker: tells its environment, ends when asked, is slow when asked, and does not start when a file says so.
#[test]
#[ignore = "it is the worker of the other tests"]
fn serve_as_worker() {
    let variable = |name| std::env::var(name).unwrap_or_default();
    if Path::new(&variable("BROKEN")).exists() {
        std::process::exit(3);
    }
    let (host, port) = (variable("HOST"), variable("PORT"));
    let listener = TcpListener::bind(format!("{host}:{port}")).expect("the port is free");
    for stream in listener.incoming() {
        std::thread::spawn(move || {
            let mut stream = stream.expect("accepted");
            let mut request = [0; 1024];
            let read = stream.read(&mut request).unwrap_or(0);
            match &request[..read] {
                [] => return,
                [b'G', b'E', b'T', b' ', b'/', b'e', ..] => std::process::exit(4),
                [b'G', b'E', b'T', b' ', b'/', b's', ..] => std::thread::sleep(Duration::from_millis(150)),
                _ => {}
            }
            let variable = |name| std::env::var(name).unwrap_or_default();
            let body =
                format!("{} {} {}", variable("WORKER_NAME"), variable("WORKER_ID"), std::process::id());
            let head =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(format!("{head}{body}").as_bytes());
        });
    }
}

/// The arguments with which this program is a warden.
pub(super) const WARDEN: [&str; 5] =
    ["supervisor::tests::serve_as_warden", "--exact", "--ignored", "--nocapture", "-q"];

/// A warden of those workers.
#[test]
#[ignore = "it is the warden of the other tests' workers"]
fn serve_as_warden() {
    warden::run().expect("it is started by a supervisor");
}

struct Supervising {
    control: Arc<Control>,
    lifecycle: Lifecycle,
    restart: mpsc::Sender<()>,
    running: tokio::task::JoinHandle<()>,
    dir: tempfile::TempDir,
}

impl Supervising {
    /// Starts workers; `wrap` is what the shell does around the worker's command `"$@"`.
    async fn start(workers: usize, wrap: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let control = Control::new(Vec::new());
        apply(&control, "{drain: {delay: 0s, timeout: 5s}}");
        let lifecycle = Lifecycle::default();
        let broken = dir.path().join("broken").display().to_string();
        let this = std::env::current_exe().expect("this program").display().to_string();
        let script = format!("BROKEN='{broken}'; export BROKEN; {wrap}");
        let test = concat!(module_path!(), "::serve_as_worker").split_once("::").expect("a path").1;
        let command = ["sh", "-c", &script, "sh", &this, test, "--exact", "--ignored", "--nocapture", "-q"];
        let settings = Settings::new(command.map(String::from).to_vec(), workers, None);
        let patience = Patience { restart: [Duration::from_millis(10); 2], ..Patience::default() };
        let (restart, restarts) = mpsc::channel(1);
        let tasks = Tasks::new(lifecycle.clone());
        let shared =
            Supervised { control: control.clone(), settings, lifecycle: lifecycle.clone(), patience, tasks };
        let running = tokio::spawn(supervise(shared, restarts));
        let this = Self { control, lifecycle, restart, running, dir };
        this.until("all workers serve", |this| this.usable().len() == workers).await;
        this
    }

    fn usable(&self) -> Vec<Arc<Worker>> {
        let now = Instant::now();
        self.control.snapshot().workers.iter().filter(|worker| worker.usable(now)).cloned().collect()
    }

    fn ids(&self) -> Vec<u32> {
        self.usable().iter().map(|worker| worker.id).collect()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let until = async {
            while !holds(self) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, until).await.unwrap_or_else(|_| panic!("not in time: {what}"));
    }

    async fn end(self) {
        self.lifecycle.drain(&self.control, Delay::Whole, || async {}).await;
        timeout(PATIENCE, self.running).await.expect("it ends").expect("no panic");
    }
}

fn apply(control: &Control, spec: &str) {
    let spec = serde_yaml::from_str(spec).expect("a spec");
    let update = Update::new(Merged { spec, ..Merged::default() }, KeyRing::default());
    assert_eq!(control.apply(&update, Source::File), Ok(true));
}

/// What the worker says of itself: name, number, process.
async fn ask(worker: &Worker, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(worker.address).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    body.ok_or_else(|| std::io::Error::other("no answer"))
}

fn lives(process: &str) -> bool {
    Path::new("/proc").join(process).exists()
}

fn process_of(told: &str) -> String {
    told.split(' ').next_back().expect("three words").to_owned()
}

#[tokio::test]
async fn workers_know_who_they_are_and_end_with_the_proxy() {
    let supervising =
        Supervising::start(2, r#"sleep 1000 & echo $! > "$BROKEN.$WORKER_ID"; exec "$@""#).await;
    let mut processes = Vec::new();
    for (i, worker) in supervising.usable().iter().enumerate() {
        let told = ask(worker, "/").await.expect("it serves");
        let number = i + 1;
        assert!(told.starts_with(&format!("worker-{number} {number} ")), "{told}");
        assert_eq!(worker.name, format!("worker-{number}"));
        let child = supervising.dir.path().join(format!("broken.{number}"));
        let child = fs::read_to_string(child).expect("written");
        processes.extend([process_of(&told), child.trim().to_owned()]);
    }
    assert!(processes.iter().all(|process| lives(process)));
    supervising.end().await;
    let left = processes.iter().filter(|process| {
        // One that was killed and that nobody has waited for yet is gone all the same.
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        !status.is_empty() && !status.contains("State:\tZ")
    });
    assert_eq!(left.count(), 0);
}

#[tokio::test]
async fn a_worker_that_dies_is_out_at_once_and_started_again() {
    let supervising = Supervising::start(2, r#"exec "$@""#).await;
    let before = supervising.usable();
    let _ = ask(&before[0], "/exit").await; // it answers nothing
    supervising.until("it is out", |_| before[0].draining()).await;
    supervising.until("it is back", |this| this.usable().len() == 2).await;
    let after = supervising.usable();
    assert_ne!(after[0].id, before[0].id, "it is a new worker");
    assert_eq!((after[0].name.as_str(), after[1].id), ("worker-1", before[1].id));
    ask(&after[0], "/").await.expect("it serves");
    supervising.end().await;
}

#[tokio::test]
async fn a_rolling_restart_loses_no_request() {
    let supervising = Supervising::start(2, r#"exec "$@""#).await;
    let before = supervising.usable();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut clients = JoinSet::new();
    for client in 0..4_usize {
        let (control, stopped) = (supervising.control.clone(), stopped.clone());
        clients.spawn(async move {
            let mut served = 0_usize;
            while !*stopped.borrow() {
                let now = Instant::now();
                let snapshot = control.snapshot();
                let usable: Vec<_> = snapshot.workers.iter().filter(|worker| worker.usable(now)).collect();
                let permit = usable[(client + served) % usable.len()].acquire(now).expect("a closed breaker");
                ask(permit.worker(), "/slow").await.expect("no request is lost");
                served += 1;
            }
            served
        });
    }
    supervising.restart.send(()).await.expect("it listens");
    supervising
        .until("every worker is replaced", |this| {
            let ids = this.ids();
            ids.len() == 2 && before.iter().all(|old| !ids.contains(&old.id))
        })
        .await;
    for old in &before {
        let gone = async { while TcpStream::connect(old.address).await.is_ok() {} };
        timeout(PATIENCE, gone).await.expect("the old process ends");
    }
    stop.send(true).expect("clients listen");
    let served: usize = clients.join_all().await.into_iter().sum();
    assert!(4 < served, "{served}");
    supervising.end().await;
}

#[tokio::test]
async fn where_a_new_process_does_not_start_the_old_one_stays() {
    let supervising = Supervising::start(2, r#"exec "$@""#).await;
    let before = supervising.ids();
    let broken = supervising.dir.path().join("broken");
    fs::write(&broken, "").expect("written");
    supervising.restart.send(()).await.expect("it listens");
    supervising.restart.send(()).await.expect("it listens"); // taken when the first is over
    supervising.restart.reserve().await.expect("the second is taken");
    assert_eq!(supervising.ids(), before);
    fs::remove_file(&broken).expect("removed");
    supervising
        .until("the third goes well", |this| {
            let _ = this.restart.try_send(());
            this.ids().iter().all(|id| !before.contains(id)) && this.ids().len() == 2
        })
        .await;
    supervising.end().await;
}

#[test]
fn ports_alternate_between_two_ranges() {
    let settings = Settings::new(Vec::new(), 3, Some(8081));
    let port = |slot, turn| address(&settings, slot, turn).expect("a port").port();
    assert_eq!([port(0, 0), port(2, 0), port(0, 1), port(2, 1), port(0, 2)], [8081, 8083, 8084, 8086, 8081]);
    let high = Settings { base_port: Some(65535), ..settings };
    assert!(address(&high, 1, 0).is_err());
}

//! Log lines that never block whoever writes them, and that no client can make many of.
//!
//! A line is JSON. It goes to a bounded queue, and a thread of its own writes the queue to stdout: a reader that stands
//! still stops that thread alone. Lines that find the queue full are lost, counted, and said when lines flow again.
//! Lines of one place in the code are bounded in number (`limit`): what is over is counted, and said once a second.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::panic::PanicHookInfo;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tracing::Level;
use tracing_subscriber::filter::{EnvFilter, FilterExt, ParseError};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt};

use self::limit::Limit;
use self::queue::Queue;

mod limit;
mod queue;

/// How long the end of a process waits for its last lines to be read.
const FLUSH: Duration = Duration::from_secs(1);

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter is none.
    #[error("the log filter is not valid: {0}")]
    Filter(#[from] ParseError),
    /// There is one already.
    #[error(transparent)]
    Twice(#[from] TryInitError),
    /// Stdout or the thread that writes to it is not to be had.
    #[error("cannot write the log: {0}")]
    Io(#[from] io::Error),
}

/// What became of lines that nobody read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lines that stdout did not take.
    pub lost: u64,
    /// Lines over the limit of their place in the code.
    pub suppressed: u64,
}

struct Log {
    queue: Queue,
    limit: Limit,
}

static LOG: OnceLock<Arc<Log>> = OnceLock::new();

/// Sends the log of this process to stdout from now on, panics included: every event that the filter lets through, and
/// of those no more from one place in the code than its limit. Events of the targets `limited` are bounded by who
/// writes them.
///
/// # Errors
/// The filter is not valid, or it was called before.
pub fn start(filter: &str, limited: &'static [&'static str]) -> Result<(), Error> {
    let filter = EnvFilter::try_new(filter)?;
    let stdout = io::stdout().as_fd().try_clone_to_owned()?;
    let log = Arc::new(Log { queue: Queue::default(), limit: Limit::new(limited) });
    let lines = fmt::layer().json().flatten_event(true).with_writer(Lines(log.clone()));
    tracing_subscriber::registry().with(lines.with_filter(filter.and(Limiting(log.clone())))).try_init()?;
    let writing = log.clone();
    std::thread::Builder::new()
        .name(String::from("log"))
        .spawn(move || writing.queue.write_to(std::fs::File::from(stdout), || writing.limit.said()))?;
    std::panic::set_hook(Box::new(panicked));
    let _ = LOG.set(log); // `try_init` succeeds only once
    Ok(())
}

/// Waits a second at most until what was logged has been written: the last thing that a process does.
pub fn flush() {
    if let Some(log) = LOG.get() {
        log.queue.flush(FLUSH);
    }
}

/// Says on stderr why the process ends, to people at a terminal and to those who read both. Where stderr is not read
/// either, the end comes after a second all the same.
pub fn last_words(words: String) {
    let (said, heard) = std::sync::mpsc::channel();
    let saying = move || {
        let _ = writeln!(io::stderr(), "{words}"); // nobody else could be told
        let _ = said.send(()); // nobody waits any more
    };
    if std::thread::Builder::new().spawn(saying).is_ok() {
        let _ = heard.recv_timeout(FLUSH);
    }
}

/// What became of lines that nobody read, since the process started.
pub fn counts() -> Counts {
    LOG.get().map_or_else(Counts::default, |log| Counts {
        lost: log.queue.lost(),
        suppressed: log.limit.suppressed(),
    })
}

/// As a line of the log: stderr may be as blocked as stdout.
fn panicked(panic: &PanicHookInfo<'_>) {
    let (payload, thread) = (panic.payload_as_str().unwrap_or_default(), std::thread::current());
    let backtrace = std::backtrace::Backtrace::capture(); // empty unless RUST_BACKTRACE asks for it
    tracing::error!(
        panic = payload,
        location = panic.location().map(tracing::field::display),
        thread = thread.name(),
        %backtrace,
        "a thread panicked"
    );
}

/// A line of the log's own, with a number.
fn own_line(level: Level, message: &str, (name, number): (&str, u64), of: Option<String>) -> String {
    let mut now = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut now)); // a String takes it
    let mut line = serde_json::json!({
        "timestamp": now, "level": level.as_str(), "message": message, name: number, "target": module_path!(),
    });
    if let Some(of) = of {
        line["of"] = of.into();
    }
    format!("{line}\n")
}

struct Lines(Arc<Log>);

struct Line<'a>(&'a Queue);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0.queue)
    }
}

impl Write for Line<'_> {
    /// The subscriber writes each line whole.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Limiting(Arc<Log>);

impl tracing_subscriber::layer::Filter<Registry> for Limiting {
    fn enabled(
        &self,
        _: &tracing::Metadata<'_>,
        _: &tracing_subscriber::layer::Context<'_, Registry>,
    ) -> bool {
        true
    }

    fn event_enabled(
        &self,
        event: &tracing::Event<'_>,
        _: &tracing_subscriber::layer::Context<'_, Registry>,
    ) -> bool {
        self.0.limit.admits(event.metadata(), Instant::now())
    }
}

//! The essential tasks: what must run for as long as the process does, besides requests and connections.
//!
//! Each is started by `Tasks::keep` and by nothing else. One that ends or panics is logged, counted and started again, after
//! ever longer waits. `/livez` fails where that does not help: a task that clients' requests need ends again and again, or
//! a thread stands still (`pulse`) or has ended. A thread that has ended ends the process, which is not whole without it.

mod panics;
mod pulse;

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

pub use self::panics::{caught, counted as panics, log_panics};
pub use self::pulse::Alive;
use self::pulse::Threads;
use crate::backoff::Backoff;
use crate::drain::{Lifecycle, Phase};

/// The shortest and the longest wait before a task is started again.
const WAITS: [Duration; 2] = [Duration::from_millis(10), Duration::from_secs(5)];
/// A task that has run for so long is well: its next end is a first one.
const STEADY: Duration = Duration::from_secs(60);
/// As many ends in a row of a task that requests need fail `/livez`.
const TOO_OFTEN: u32 = 10;

/// Declares the tasks, each with its name in metrics and messages, and whether clients' requests need it.
macro_rules! tasks {
    ($($(#[$doc:meta])* $task:ident = $name:literal, requests need it: $needed:literal;)*) => {
        /// An essential task.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Task { $($(#[$doc])* $task),* }

        impl Task {
            /// All of them.
            pub const ALL: [Self; [$(Self::$task),*].len()] = [$(Self::$task),*];

            /// The label of the metrics.
            pub fn name(self) -> &'static str {
                match self { $(Self::$task => $name),* }
            }

            /// Whether clients' requests need it. What only keeps the proxy up to date never fails `/livez`: a policy that
            /// brought it down everywhere would have every pod started again and again.
            fn requests_need_it(self) -> bool {
                match self { $(Self::$task => $needed),* }
            }
        }
    };
}

tasks! {
    /// Accepts clients, in each data thread.
    Clients = "clients", requests need it: true;
    /// Accepts siblings, in each data thread.
    Siblings = "siblings", requests need it: true;
    /// Ends what waits for too long, in each data thread.
    Alarms = "alarms", requests need it: true;
    /// Sends what waits for the end of a turn, in each data thread.
    OutboxSend = "outbox_send", requests need it: true;
    /// Sends what the kernel did not take at once, in each data thread.
    OutboxResume = "outbox_resume", requests need it: true;
    /// Looks after the connections of each data thread.
    Connections = "connections", requests need it: true;
    /// Shows that a thread does not stand still, in each thread.
    Heartbeat = "heartbeat", requests need it: true;
    /// Looks whether threads stand still.
    Watch = "watch", requests need it: true;
    /// Serves the admin port.
    Admin = "admin", requests need it: true;
    /// Waits for the first policy, and serves.
    Startup = "startup", requests need it: true;
    /// Follows the policy file.
    PolicyFile = "policy_file", requests need it: false;
    /// Follows the operator.
    OperatorStream = "operator_stream", requests need it: false;
    /// Follows the files of the listener's certificate.
    Certificate = "certificate", requests need it: false;
    /// Ends switches of the strategy.
    Switches = "switches", requests need it: false;
    /// Starts a health check for each worker.
    HealthChecks = "health_checks", requests need it: false;
    /// Checks one worker.
    HealthCheck = "health_check", requests need it: false;
    /// Keeps the workers' scores.
    Scores = "scores", requests need it: false;
    /// Looks at the breakers now and then.
    Breakers = "breakers", requests need it: false;
    /// Follows the drains of workers.
    Drains = "drains", requests need it: false;
    /// Starts the workers.
    Workers = "workers", requests need it: false;
    /// Waits for processes that others left behind.
    Orphans = "orphans", requests need it: false;
    /// Compares the memory that is used with its limit.
    Memory = "memory", requests need it: false;
    /// Keeps one worker's process.
    Worker = "worker", requests need it: false;
}

/// Why `/livez` fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Dead {
    /// A thread has done nothing for a while.
    #[error("thread {thread} stands still for {seconds} s")]
    StandsStill {
        /// Its name.
        thread: String,
        /// For how long.
        seconds: u64,
    },
    /// A thread is gone.
    #[error("thread {0} has ended")]
    ThreadEnded(String),
    /// A task that requests need.
    #[error("task {0} ends again and again")]
    Again(&'static str),
}

/// The essential tasks of a process.
pub struct Tasks {
    lifecycle: Lifecycle,
    threads: Threads,
    restarts: [AtomicU64; Task::ALL.len()],
    /// How many of a task end again and again.
    failing: [AtomicU32; Task::ALL.len()],
    #[cfg(test)]
    hook: tests::Hook,
}

impl Tasks {
    /// None yet, of a process with this lifecycle.
    pub fn new(lifecycle: Lifecycle) -> Arc<Self> {
        Arc::new(Self {
            threads: Threads::new(lifecycle.clone()),
            lifecycle,
            restarts: std::array::from_fn(|_| AtomicU64::new(0)),
            failing: std::array::from_fn(|_| AtomicU32::new(0)),
            #[cfg(test)]
            hook: tests::Hook::default(),
        })
    }

    /// Keeps a task running on this thread: `run` makes it, at first and whenever it has ended.
    pub fn keep<F: Future + 'static>(
        self: &Arc<Self>,
        task: Task,
        run: impl Fn() -> F + 'static,
    ) -> AbortHandle {
        tokio::task::spawn_local(self.clone().kept(task, run)).abort_handle()
    }

    /// The same, to be run by the caller. Ends when the task returns and the process takes no new connections.
    pub async fn kept<F: Future>(self: Arc<Self>, task: Task, run: impl Fn() -> F) {
        let mut course = Course::new(&self, task);
        loop {
            let began = Instant::now();
            let running = AssertUnwindSafe(async { self.run(task, run()).await }).catch_unwind();
            let mut running = pin!(running);
            let ended = match timeout(STEADY, &mut running).await {
                Ok(ended) => ended,
                Err(_) => {
                    course.is_steady();
                    running.await
                }
            };
            let how = match ended {
                Ok(()) if Phase::Closing <= self.lifecycle.phase() => return,
                Ok(()) => String::from("it returned"),
                Err(panic) => format!("it panicked: {}", caught(&*panic)),
            };
            let wait = course.ended();
            let (name, times, life) = (task.name(), course.times, began.elapsed().as_secs_f64());
            tracing::error!(
                task = name,
                how,
                times,
                life_seconds = life,
                wait_seconds = wait.as_secs_f64(),
                "an essential task ended: it is started again"
            );
            sleep(wait).await;
            self.restarts[task as usize].fetch_add(1, Relaxed);
        }
    }

    #[cfg(not(test))]
    async fn run<F: Future>(&self, _task: Task, running: F) {
        running.await;
    }

    /// A thread of this name begins. To be held for as long as it runs.
    pub fn thread(self: &Arc<Self>, name: &str) -> Alive {
        self.threads.begins(name)
    }

    /// Looks whether threads stand still. Never ends.
    pub async fn watch(self: Arc<Self>) {
        self.threads.watch().await;
    }

    /// Waits until a thread has ended, and returns its name.
    pub async fn thread_ended(&self) -> String {
        self.threads.ended().await
    }

    /// How often a task was started again.
    pub fn restarts(&self, task: Task) -> u64 {
        self.restarts[task as usize].load(Relaxed)
    }

    /// What `/livez` says.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn alive(&self) -> Result<(), Vec<Dead>> {
        let mut dead = self.threads.dead();
        let again = Task::ALL
            .into_iter()
            .filter(|task| task.requests_need_it() && 0 < self.failing[*task as usize].load(Relaxed));
        dead.extend(again.map(|task| Dead::Again(task.name())));
        if dead.is_empty() { Ok(()) } else { Err(dead) }
    }
}

/// How one task goes.
struct Course<'a> {
    failing: &'a AtomicU32,
    /// Its ends in a row.
    times: u32,
    backoff: Backoff,
}

impl<'a> Course<'a> {
    fn new(tasks: &'a Tasks, task: Task) -> Self {
        let [first, longest] = WAITS;
        Self { failing: &tasks.failing[task as usize], times: 0, backoff: Backoff::new(first, longest) }
    }

    /// It has run for a while.
    fn is_steady(&mut self) {
        if TOO_OFTEN <= self.times {
            self.failing.fetch_sub(1, Relaxed);
        }
        self.times = 0;
        self.backoff.reset();
    }

    /// It has ended; how long to wait until it is started again.
    fn ended(&mut self) -> Duration {
        self.times += 1;
        if self.times == TOO_OFTEN {
            self.failing.fetch_add(1, Relaxed);
        }
        self.backoff.wait()
    }
}

impl Drop for Course<'_> {
    fn drop(&mut self) {
        self.is_steady(); // nobody waits for it any more
    }
}

/// Goes on with what a task on another thread came to; its panic is this task's.
pub fn joined<T>(ended: Result<T, tokio::task::JoinError>) -> Option<T> {
    match ended {
        Ok(value) => Some(value),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => None, // the runtime is going away
        },
    }
}

#[cfg(test)]
mod tests;

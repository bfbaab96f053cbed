//! What becomes of the start: which workers are not up and why, and whether the command can be executed at all.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::process::NotStarted;

/// As many workers are named to who asks why.
const NAMED: usize = 4;

/// How the start of the workers stands.
#[derive(Debug, Default)]
pub struct Beginning {
    /// Whether the command was ever executed.
    executed: AtomicBool,
    /// Why the command cannot be.
    failed: watch::Sender<Option<String>>,
    /// Why workers are not up, by their places.
    reasons: Mutex<BTreeMap<usize, String>>,
}

impl Beginning {
    /// A process executes the command.
    pub(super) fn executes(&self) {
        self.executed.store(true, Relaxed);
    }

    /// A worker serves.
    pub(super) fn is_up(&self, slot: usize) {
        self.reasons.lock().remove(&slot);
    }

    /// A worker is not up for this reason.
    pub(super) fn is_not_up(&self, slot: usize, reason: String) {
        self.reasons.lock().insert(slot, reason);
    }

    /// A worker did not start. A command that was never executed and cannot be ends the start: whoever mistyped it waits at
    /// a terminal. One that was executed before may be back soon, and other workers serve.
    pub(super) fn does_not_start(&self, slot: usize, error: &NotStarted) {
        self.is_not_up(slot, error.to_string());
        if error.is_the_commands() && !self.executed.load(Relaxed) {
            self.failed.send_replace(Some(error.to_string()));
        }
    }

    /// Waits until it is certain that there will be no worker; why.
    pub async fn failed(&self) -> String {
        match self.failed.subscribe().wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await, // the sender lives as long as `self`
        }
    }

    /// Why workers are not up, as `; worker-1: …`; nothing where all are.
    pub fn reasons(&self) -> String {
        let reasons = self.reasons.lock();
        let named =
            reasons.iter().take(NAMED).map(|(slot, reason)| format!("; {}: {reason}", super::name(*slot)));
        let rest = reasons.len().saturating_sub(NAMED);
        let more = (rest != 0).then(|| format!("; and {rest} more"));
        named.chain(more).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::io::Errno;
    use tokio::time::timeout;

    use super::*;

    fn not_executable(error: Errno) -> NotStarted {
        NotStarted::NotExecutable { program: String::from("nod"), error }
    }

    async fn ends(beginning: &Beginning) -> Option<String> {
        timeout(Duration::from_secs(1), beginning.failed()).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_command_that_was_never_executed_ends_the_start() {
        let beginning = Beginning::default();
        beginning.does_not_start(0, &NotStarted::Ended(String::from("exit status: 3")));
        beginning.does_not_start(0, &not_executable(Errno::NOMEM));
        assert_eq!(ends(&beginning).await, None, "it may start the next time");
        beginning.does_not_start(0, &not_executable(Errno::NOENT));
        let said = ends(&beginning).await.expect("no later try finds it");
        assert!(said.starts_with("'nod' cannot be executed: No such file"), "{said}");

        let beginning = Beginning::default();
        beginning.executes();
        beginning.does_not_start(0, &not_executable(Errno::NOENT));
        assert_eq!(ends(&beginning).await, None, "somebody puts another one in its place");
    }

    #[test]
    fn the_first_of_those_that_are_not_up_are_named() {
        let beginning = Beginning::default();
        assert_eq!(beginning.reasons(), "");
        beginning.is_not_up(1, String::from("a"));
        beginning.is_not_up(0, String::from("b"));
        beginning.is_not_up(0, String::from("c"));
        assert_eq!(beginning.reasons(), "; worker-1: c; worker-2: a");
        (2..6).for_each(|slot| beginning.is_not_up(slot, String::from("d")));
        assert_eq!(beginning.reasons(), "; worker-1: c; worker-2: a; worker-3: d; worker-4: d; and 2 more");
        (1..6).for_each(|slot| beginning.is_up(slot));
        assert_eq!(beginning.reasons(), "; worker-1: c");
    }
}

//! Where the policy in force is kept, and the only way to change it.
//!
//! Policy comes from a file (`file`), from the operator (`stream`), or, at a start without it, from disk
//! (`last_good`). Whatever its source it is compiled here; what does not compile changes nothing.

pub mod file;
pub mod keys;
pub mod last_good;
pub mod report;
pub mod stream;
pub mod switch;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use outrigger_policy::Violation;
use outrigger_policy::siblings::{NotApplicable, SiblingsChange};
use outrigger_policy::wire::Update;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::essential::caught;
use crate::siblings::Siblings;
use crate::snapshot::{Snapshot, Source, Switch};
use crate::worker::Worker;

/// The policy in force and the workers it is in force over.
pub struct Control {
    current: ArcSwap<Snapshot>,
    /// Serialises changes, so that none is lost; never taken by a request.
    changing: Mutex<()>,
    /// Apart from it: who asks for them does not wait for a policy that is being compiled.
    refusals: Mutex<Refusals>,
    changed: watch::Sender<u64>,
}

/// What was last refused, for `/api/snapshot`.
#[derive(Clone, Debug, Default)]
pub struct Refusals {
    /// How many updates were refused.
    pub count: u64,
    /// Why the last one was, unless a later one was accepted.
    pub last: Vec<Violation>,
}

impl Control {
    /// Starts with the default policy over these workers.
    pub fn new(workers: Vec<Arc<Worker>>) -> Arc<Self> {
        Self::beside(workers, Siblings::none(None, Arc::default()), Source::Default)
    }

    /// Starts over these workers, where there can be siblings: with the default policy, or awaiting the first one.
    pub fn beside(workers: Vec<Arc<Worker>>, siblings: Siblings, source: Source) -> Arc<Self> {
        let mut first = Snapshot::initial(workers, siblings);
        first.source = source;
        Self::of(first)
    }

    /// Starts without workers, where this process starts those of these names: a policy that names them means them from
    /// the start.
    pub fn awaiting(names: Vec<String>, siblings: Siblings, source: Source) -> Arc<Self> {
        let mut first = Snapshot::initial(Vec::new(), siblings);
        first.source = source;
        first.awaited = names.into();
        Self::of(first)
    }

    fn of(first: Snapshot) -> Arc<Self> {
        Arc::new(Self {
            current: ArcSwap::from_pointee(first),
            changing: Mutex::default(),
            refusals: Mutex::default(),
            changed: watch::Sender::new(0),
        })
    }

    /// What is in force. Requests take theirs through a cache of their thread instead.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// For the threads' caches.
    pub fn current(&self) -> &ArcSwap<Snapshot> {
        &self.current
    }

    /// Puts a policy in force. Returns whether anything changed: the version in force pushed again changes nothing.
    ///
    /// # Errors
    /// Every violation; the policy in force stays.
    pub fn apply(&self, update: &Update, source: Source) -> Result<bool, Vec<Violation>> {
        let _changing = self.changing.lock();
        let previous = self.current.load();
        if previous.version == update.version && previous.source == source {
            return Ok(false);
        }
        match compile(&previous, update, source) {
            Ok(next) => {
                for switch in &previous.switches {
                    tracing::info!(route = switch.route, "another policy ends the switch of the strategy");
                }
                self.refusals.lock().last.clear();
                self.publish(next);
                Ok(true)
            }
            Err(violations) => {
                self.refuse(&violations);
                Err(violations)
            }
        }
    }

    /// Puts the defaults in force if no policy came: from now on there is none. Returns whether it was so.
    pub fn settle_for_defaults(&self) -> bool {
        let _changing = self.changing.lock();
        let previous = self.current.load();
        if previous.source != Source::Awaited {
            return false;
        }
        let mut next = previous.with_workers(previous.workers.clone());
        next.source = Source::Default;
        self.publish(next);
        true
    }

    /// Waits until a policy is in force, or it is settled that there is none.
    pub async fn first_policy(&self) {
        let mut changes = self.changes();
        while self.snapshot().source == Source::Awaited {
            if changes.changed().await.is_err() {
                break; // the sender lives as long as `self`
            }
        }
    }

    /// Notes that a policy is refused: also one that could not be read at all.
    pub fn refuse(&self, violations: &[Violation]) {
        let mut refusals = self.refusals.lock();
        refusals.count += 1;
        refusals.last = violations.to_vec();
    }

    /// Puts the policy in force over other workers: those that `change` makes of the present ones.
    pub fn change_workers(&self, change: impl FnOnce(&[Arc<Worker>]) -> Vec<Arc<Worker>>) {
        let _changing = self.changing.lock();
        let previous = self.current.load();
        self.publish(previous.with_workers(change(&previous.workers)));
    }

    /// Puts a strategy in force over the policy's, until it ends or another policy comes.
    pub fn switch(&self, switch: Switch) {
        let _changing = self.changing.lock();
        let previous = self.current.load();
        let others = previous.switches.iter().filter(|other| !other.is_replaced_by(&switch));
        let switches = others.cloned().chain([switch.clone()]).collect();
        self.publish(previous.with_switches(switches));
    }

    /// Ends the switches that `ends` says, and returns how many. What the policy says is then in force again.
    pub fn end_switches(&self, ends: impl Fn(&Switch) -> bool) -> usize {
        let _changing = self.changing.lock();
        let previous = self.current.load();
        let left: Vec<_> = previous.switches.iter().filter(|switch| !ends(switch)).cloned().collect();
        let ended = previous.switches.len() - left.len();
        if ended != 0 {
            self.publish(previous.with_switches(left));
        }
        ended
    }

    /// When the next switch ends.
    pub fn next_end(&self) -> Option<Instant> {
        self.current.load().switches.iter().map(|switch| switch.until).min()
    }

    /// Puts the policy in force beside other siblings.
    ///
    /// # Errors
    /// It is a change of another list than the one that is held.
    pub fn change_siblings(&self, change: SiblingsChange) -> Result<(), NotApplicable> {
        let _changing = self.changing.lock();
        let previous = self.current.load();
        let siblings = previous.siblings.after(change)?;
        siblings.admit_listed();
        self.publish(previous.with_siblings(siblings));
        Ok(())
    }

    /// What was refused.
    pub fn refusals(&self) -> Refusals {
        self.refusals.lock().clone()
    }

    /// Wakes after each change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn publish(&self, next: Snapshot) {
        if next.warnings != self.current.load().warnings {
            for warning in &next.warnings {
                tracing::warn!(
                    path = warning.path,
                    reason = warning.reason,
                    "what is asked for is valid but not for these workers"
                );
            }
        }
        self.current.store(Arc::new(next));
        self.changed.send_modify(|count| *count += 1);
    }
}

/// Makes what is to be in force. A policy that makes the proxy panic is refused like any other that cannot be in force.
fn compile(previous: &Snapshot, update: &Update, source: Source) -> Result<Snapshot, Vec<Violation>> {
    let next = || previous.next(update, source, previous.workers.clone());
    catch_unwind(AssertUnwindSafe(next)).unwrap_or_else(|panic| {
        let reason = format!("the proxy panics over it, which is a fault of the proxy: {}", caught(&*panic));
        Err(vec![Violation { path: String::from("spec"), reason }])
    })
}

//! Which part of a connection's task has something to do: its frames or its answers. Each is looked at only then, and what
//! one does for the other is done in the same turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};

use futures_util::task::AtomicWaker;

/// A part of a task.
pub(super) struct Part {
    signal: Arc<Signal>,
    waker: Waker,
}

struct Signal {
    woken: AtomicBool,
    task: Arc<Task>,
}

/// The task of both.
#[derive(Default)]
pub(super) struct Task {
    waker: AtomicWaker,
    /// It runs: whoever is woken meanwhile is looked at before it waits.
    running: AtomicBool,
}

impl Task {
    /// A part that has something to do.
    pub(super) fn part(self: &Arc<Self>) -> Part {
        let signal = Arc::new(Signal { woken: AtomicBool::new(true), task: self.clone() });
        Part { waker: Waker::from(signal.clone()), signal }
    }

    pub(super) fn runs(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
        self.running.store(true, Ordering::Relaxed);
    }

    pub(super) fn waits(&self) {
        self.running.store(false, Ordering::Relaxed);
    }
}

impl Part {
    /// Whether it has something to do, which is being done now.
    pub(super) fn begin(&self) -> bool {
        self.signal.woken.swap(false, Ordering::Relaxed)
    }

    /// What wakes it.
    pub(super) fn waker(&self) -> &Waker {
        &self.waker
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Relaxed);
        if !self.task.running.load(Ordering::Relaxed) {
            self.task.waker.wake();
        }
    }
}

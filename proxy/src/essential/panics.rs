//! Panics: each is a fault of the proxy, and costs the request, the connection or the run of a task that it happened in.

use std::any::Any;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Of the process: a hook has no other place for it.
static PANICS: AtomicU64 = AtomicU64::new(0);

/// From now on panics are counted, and logged like everything else.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        PANICS.fetch_add(1, Relaxed);
        log(info);
    }));
}

/// How many panics there were.
pub fn counted() -> u64 {
    PANICS.load(Relaxed)
}

fn log(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let location = info.location().map(ToString::to_string);
    let backtrace = std::backtrace::Backtrace::capture(); // where RUST_BACKTRACE asks for one
    let shown = matches!(backtrace.status(), std::backtrace::BacktraceStatus::Captured);
    tracing::error!(
        thread = thread.name(),
        location,
        panic = caught(info.payload()),
        backtrace = shown.then(|| backtrace.to_string()),
        "a panic: this is a fault of the proxy, please report it"
    );
}

/// The message of a panic.
pub fn caught(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

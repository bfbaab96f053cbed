//! How a process begins: nothing is served before a policy is in force, or before it is settled that there is none.
//!
//! A policy file is in force before the first thread starts (`control::file`). The operator's policy is waited for here.

use std::time::Duration;

use tokio::time::timeout;

use crate::control::Control;
use crate::drain::Lifecycle;

/// What becomes of a process to which no policy comes.
#[derive(Clone, Copy, Debug)]
pub struct Startup {
    /// Whether nothing is served without a policy. Otherwise the defaults are, after `timeout`.
    pub require_policy: bool,
    /// How long clients wait for the first policy, from the process's start.
    pub timeout: Duration,
}

/// Waits for the first policy, and then serves.
pub async fn serve_with_policy(control: &Control, lifecycle: &Lifecycle, startup: Startup) {
    if timeout(startup.timeout, control.first_policy()).await.is_err() {
        let waited_seconds = startup.timeout.as_secs_f64();
        if startup.require_policy {
            tracing::error!(
                waited_seconds,
                "no policy came: not ready, and every request is refused until one is in force (--require-policy)"
            );
        } else if control.settle_for_defaults() {
            tracing::warn!(
                waited_seconds,
                "no policy came: the defaults are in force (--require-policy=false)"
            );
        }
    }
    lifecycle.serve();
}

#[cfg(test)]
mod tests;

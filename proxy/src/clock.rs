//! The time by which the request path waits. In tests it is the runtime's, so that an hour passes in no time.

use std::time::Instant;

/// Now, as the timers of the runtime have it.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

//! Sticky sessions without a store: the worker a client is pinned to travels in a cookie that only the proxies can
//! read and write.

mod cookie;
mod opened;
mod seal;

use aws_lc_rs::digest;

pub use cookie::Cookie;
pub use opened::Opened;

/// What a session cookie says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// The worker, as `worker_id` names it.
    pub worker: u64,
    /// When the session ends, in seconds since 1970.
    pub expires: u64,
}

/// What sessions know a worker by: the same in every process, pod and release, whatever its address.
pub fn worker_id(name: &str) -> u64 {
    let hash = digest::digest(&digest::SHA256, name.as_bytes());
    hash.as_ref().iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte))
}

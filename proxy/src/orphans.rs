//! Waits for processes that nobody else waits for.
//!
//! The first process of a container is made the parent of every process whose own parent has ended. Until it waits for
//! those that end they stay as zombies, and in the end no process can be started any more. The children that this program starts
//! have a handle that waits for them; it alone may, or it would not learn how they ended.

use std::collections::BTreeSet;
use std::io;

use parking_lot::Mutex;
use rustix::process::{Pid, WaitOptions, child_subreaper, getpid, waitpid};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::processes;

/// The children that have a handle. Locked while one is started: until it is listed it would be taken for an orphan.
static OURS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// A child that its handle waits for, for as long as this is held.
pub struct Ours(i32);

impl Drop for Ours {
    fn drop(&mut self) {
        OURS.lock().remove(&self.0);
    }
}

/// Starts a child that its handle waits for.
///
/// # Errors
/// It cannot be started.
pub fn spawn(command: &mut Command) -> io::Result<(Child, Ours)> {
    let mut ours = OURS.lock();
    let child = command.spawn()?;
    let id = child.id().map_or(0, u32::cast_signed); // 0: it was waited for already
    ours.insert(id);
    drop(ours);
    Ok((child, Ours(id)))
}

/// Waits for orphans as they end, where this process gets them. Never ends.
pub async fn reap() {
    if !adopts() {
        return std::future::pending().await;
    }
    let mut ended = match signal(SignalKind::child()) {
        Ok(ended) => ended,
        Err(error) => {
            tracing::error!(%error, "SIGCHLD cannot be waited for: orphans stay as zombies");
            return std::future::pending().await;
        }
    };
    loop {
        reap_all();
        ended.recv().await;
    }
}

/// Whether orphans become children of this process: it is the first one, or was made to be a subreaper.
fn adopts() -> bool {
    getpid() == Pid::INIT || child_subreaper().is_ok_and(|by| by.is_some())
}

fn reap_all() {
    let ours = OURS.lock();
    let all = match processes::all() {
        Ok(all) => all,
        Err(error) => return tracing::warn!(%error, "/proc cannot be read: orphans stay as zombies"),
    };
    let this = getpid();
    for orphan in all.into_iter().filter(|process| process.zombie && process.parent == Some(this)) {
        if !ours.contains(&orphan.id.as_raw_nonzero().get()) {
            let _ = waitpid(Some(orphan.id), WaitOptions::NOHANG); // an error: it was no child any more
        }
    }
}

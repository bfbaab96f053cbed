//! A control group with a limit of memory, as a container has one.

use std::fs;
use std::path::{Path, PathBuf};

/// A control group, until this is dropped.
pub struct Group {
    folder: PathBuf,
    peak: &'static str,
}

impl Group {
    /// A group whose processes may have so many bytes; `None` where this process may not make one.
    pub fn with_limit(bytes: u64) -> Option<Self> {
        let name = format!("outrigger-test-{}-{}", std::process::id(), fastrand::u32(..));
        let second = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let (top, limit, peak) = match second {
            true => ("/sys/fs/cgroup", "memory.max", "memory.peak"),
            false => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
        };
        let folder = Path::new(top).join(name);
        fs::create_dir(&folder).ok()?;
        let group = Self { folder, peak };
        fs::write(group.folder.join(limit), bytes.to_string()).ok()?;
        Some(group)
    }

    /// Where a process that enters writes its number.
    pub fn members(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }

    /// The most memory that its processes had, in bytes, as far as the kernel says it.
    pub fn peak(&self) -> Option<u64> {
        fs::read_to_string(self.folder.join(self.peak)).ok()?.trim().parse().ok()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let ended = std::time::Instant::now();
        while fs::remove_dir(&self.folder).is_err() && ended.elapsed().as_secs() < 2 {
            std::thread::sleep(std::time::Duration::from_millis(20)); // its processes are being reaped
        }
    }
}

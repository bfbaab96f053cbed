//! The limit of the process's memory: as it was told, or its control group's, or what the machine has.

use std::fs;
use std::path::{Path, PathBuf};

/// The limit of the process's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// In bytes.
    pub bytes: u64,
    /// Where it says what its processes use; `None`: nowhere.
    pub(super) group: Option<Group>,
}

/// A control group with a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    folder: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Where control groups are found.
const ROOT: &str = "/sys/fs/cgroup";

impl Limit {
    /// A limit that no control group has.
    pub fn of(bytes: u64) -> Self {
        Self { bytes, group: None }
    }

    /// The process's limit: `asked`, where something was asked for, but never more than its control group or the machine has.
    pub fn find(asked: Option<u64>) -> Self {
        let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| of_machine(&text));
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = tightest(Path::new(ROOT), &groups).filter(|own| machine.is_none_or(|all| own.bytes < all));
        let most = own.as_ref().map(|own| own.bytes).or(machine).unwrap_or(u64::MAX);
        Self { bytes: asked.map_or(most, |asked| asked.min(most)), group: own.and_then(|own| own.group) }
    }
}

/// What the machine has, by `/proc/meminfo`.
fn of_machine(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes << 10)
}

/// The least limit among the groups that the process is in, by `/proc/self/cgroup`, and those above them.
fn tightest(root: &Path, groups: &str) -> Option<Limit> {
    let places = groups.lines().filter_map(|line| place(root, line));
    places.flat_map(|(version, top, path)| above(version, &top, &path)).min_by_key(|limit| limit.bytes)
}

/// Which folders a line of `/proc/self/cgroup` speaks of.
fn place(root: &Path, line: &str) -> Option<(Version, PathBuf, String)> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let path = path.trim_start_matches('/').to_owned();
    if controllers.is_empty() {
        return Some((Version::Two, root.to_owned(), path));
    }
    let memory = controllers.split(',').any(|controller| controller == "memory");
    memory.then(|| (Version::One, root.join("memory"), path))
}

/// The limits of a group and of all above it. In a container its path may be that of the machine, which is not to be seen: its
/// own group is the top then.
fn above(version: Version, top: &Path, path: &str) -> Vec<Limit> {
    let mut found = Vec::new();
    let mut folder = top.join(path);
    while folder.starts_with(top) {
        let group = Group { folder: folder.clone(), version };
        if let Some(bytes) = group.limit() {
            found.push(Limit { bytes, group: Some(group) });
        }
        if !folder.pop() {
            break;
        }
    }
    found
}

impl Group {
    fn limit(&self) -> Option<u64> {
        let file = match self.version {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        };
        fs::read_to_string(self.folder.join(file)).ok()?.trim().parse().ok() // or it says `max`
    }

    /// What its processes use, in bytes, besides copies of files that the kernel can drop.
    pub(super) fn used(&self) -> Option<u64> {
        let (current, prefix) = match self.version {
            Version::One => ("memory.usage_in_bytes", "total_"),
            Version::Two => ("memory.current", ""),
        };
        let used: u64 = fs::read_to_string(self.folder.join(current)).ok()?.trim().parse().ok()?;
        let stat = fs::read_to_string(self.folder.join("memory.stat")).ok()?;
        Some(used.saturating_sub(files(&stat, prefix)))
    }
}

/// What a group's copies of files take, by its `memory.stat`.
fn files(stat: &str, prefix: &str) -> u64 {
    let of = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        let name = name.strip_prefix(prefix)?;
        matches!(name, "active_file" | "inactive_file").then(|| value.parse::<u64>().ok())?
    };
    stat.lines().filter_map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("it is made");
        fs::write(path, text).expect("it is written");
    }

    #[test]
    fn the_least_limit_of_a_group_and_those_above_it_holds() {
        let root = tempfile::tempdir().expect("a folder");
        let root = root.path();
        write(root, "kubepods/memory.max", "1000\n");
        write(root, "kubepods/pod/memory.max", "max\n");
        write(root, "kubepods/pod/memory.current", "900\n");
        write(root, "kubepods/memory.current", "950\n");
        write(root, "kubepods/memory.stat", "anon 500\ninactive_file 100\nactive_file 50\nsock 20\n");
        let found = tightest(root, "0::/kubepods/pod\n").expect("a limit");
        assert_eq!(found.bytes, 1000);
        assert_eq!(found.group.and_then(|group| group.used()), Some(800));
        assert_eq!(tightest(root, "0::/elsewhere\n"), None);
    }

    #[test]
    fn the_first_version_is_known_too_and_a_container_sees_its_own_group_at_the_top() {
        let root = tempfile::tempdir().expect("a folder");
        let root = root.path();
        write(root, "memory/memory.limit_in_bytes", "2000\n");
        write(root, "memory/memory.usage_in_bytes", "1500\n");
        write(
            root,
            "memory/memory.stat",
            "inactive_file 1\ntotal_inactive_file 300\ntotal_active_file 200\n",
        );
        let found = tightest(root, "7:cpu:/a\n5:hugetlb,memory:/not/seen/here\n").expect("a limit");
        assert_eq!(found.bytes, 2000);
        assert_eq!(found.group.and_then(|group| group.used()), Some(1000));
    }

    #[test]
    fn without_a_group_the_machine_is_the_limit_and_what_is_asked_for_is_never_more() {
        assert_eq!(of_machine("MemTotal:       24 kB\nMemFree: 1 kB\n"), Some(24 << 10));
        let found = Limit::find(None);
        assert!(0 < found.bytes && found.bytes < u64::MAX, "{found:?}");
        assert_eq!(Limit::find(Some(1 << 20)).bytes, 1 << 20);
        assert_eq!(Limit::find(Some(u64::MAX)).bytes, found.bytes);
    }
}

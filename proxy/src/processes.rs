//! The processes of this machine, as `/proc` shows them to this one.

use std::fs;
use std::io;

use rustix::process::Pid;

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub id: Pid,
    /// Who started it, or who took it over when that one ended. `None`: nobody in this namespace.
    pub parent: Option<Pid>,
    /// The process group that it is in.
    pub group: Option<Pid>,
    /// Whether it has ended and nobody has waited for it.
    pub zombie: bool,
}

/// All of them. One that ends meanwhile may be missing.
///
/// # Errors
/// There is no `/proc`.
pub fn all() -> io::Result<Vec<Process>> {
    let numbers = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw);
    Ok(numbers.filter_map(read).collect())
}

/// Those of `all` that a process started, directly or not; parents come before their children.
pub fn descendants(all: &[Process], of: Pid) -> Vec<Process> {
    let mut found: Vec<Process> = Vec::new();
    let (mut parent, mut looked) = (of, 0);
    loop {
        found.extend(all.iter().filter(|process| process.parent == Some(parent) && process.id != parent));
        let Some(next) = found.get(looked) else { return found };
        (parent, looked) = (next.id, looked + 1);
    }
}

/// The name of a process's program, as `ps` shows it: 15 bytes at most.
pub fn name(id: Pid) -> Option<String> {
    let name = fs::read(format!("/proc/{}/comm", id.as_raw_nonzero())).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end().to_owned())
}

fn read(id: Pid) -> Option<Process> {
    parse(id, &fs::read_to_string(format!("/proc/{}/stat", id.as_raw_nonzero())).ok()?)
}

/// Reads `1 (a name) S 0 1 …`: number, name, state, parent, group. The name may have any character.
fn parse(id: Pid, stat: &str) -> Option<Process> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    let mut number = || fields.next()?.parse().ok();
    let (parent, group) = (number()?, number()?);
    Some(Process { id, parent: Pid::from_raw(parent), group: Pid::from_raw(group), zombie: state == "Z" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_what_follows_it() {
        let pid = |number| Pid::from_raw(number).expect("not 0");
        let read = parse(pid(7), "7 (a) Z 1 2) S 5 6 6 0 -1 4194560");
        assert_eq!(
            read,
            Some(Process { id: pid(7), parent: Pid::from_raw(5), group: Pid::from_raw(6), zombie: false })
        );
        let first = parse(pid(1), "1 (init) Z 0 0 0 0").expect("a process");
        assert_eq!((first.parent, first.group, first.zombie), (None, None, true));
        assert_eq!(parse(pid(7), ""), None);
    }

    #[test]
    fn whom_a_process_started_is_found_over_all_generations() {
        let process = |id, parent| Process {
            id: Pid::from_raw(id).expect("not 0"),
            parent: Pid::from_raw(parent),
            group: None,
            zombie: false,
        };
        let all = [process(5, 4), process(1, 0), process(4, 2), process(2, 1), process(3, 1), process(6, 2)];
        let ids = |of| -> Vec<i32> {
            let found = descendants(&all, Pid::from_raw(of).expect("not 0"));
            found.into_iter().map(|process| process.id.as_raw_nonzero().get()).collect()
        };
        assert_eq!(ids(1), [2, 3, 4, 6, 5]);
        assert_eq!(ids(2), [4, 6, 5]);
        assert_eq!(ids(5), Vec::<i32>::new());
    }

    #[test]
    fn this_process_is_among_them() {
        let this = rustix::process::getpid();
        let found = all().expect("there is /proc").into_iter().find(|process| process.id == this);
        assert_eq!(found.expect("itself").parent, rustix::process::getppid());
    }
}

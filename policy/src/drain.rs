//! Which workers of one pod are drained because its own annotation says so.
//!
//! The operator reads the annotation and tells that pod's proxy alone. Which workers there are only the proxy knows.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// The annotation: names of workers, separated by commas, or `all`.
pub const DRAIN_ANNOTATION: &str = "outrigger.dev/drain";
/// The word for every worker of the pod.
pub const ALL: &str = "all";

/// No more names are read: no pod has more workers.
const MOST: usize = 256;
/// What is longer is no worker's name. It is cut, and shown so.
const LONGEST: usize = 63;

/// The workers of one pod that are to be drained.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PodDrain {
    /// Every worker.
    All,
    /// Those of these names: at least one.
    Workers(BTreeSet<String>),
}

impl PodDrain {
    /// Reads the annotation's value. `None`: it names nobody. The order of the names makes no difference.
    pub fn parse(text: &str) -> Option<Self> {
        let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
        let names: BTreeSet<_> = names.take(MOST).map(shortened).collect();
        if names.contains(ALL) {
            return Some(Self::All);
        }
        (!names.is_empty()).then_some(Self::Workers(names))
    }

    /// Whether it is for the worker of this name.
    pub fn includes(&self, worker: &str) -> bool {
        match self {
            Self::All => true,
            Self::Workers(names) => names.contains(worker),
        }
    }

    /// The names that it lists.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let names = match self {
            Self::All => None,
            Self::Workers(names) => Some(names),
        };
        names.into_iter().flatten().map(String::as_str)
    }
}

fn shortened(name: &str) -> String {
    match name.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &[&str]) -> Option<PodDrain> {
        Some(PodDrain::Workers(names.iter().map(|name| (*name).to_owned()).collect()))
    }

    #[test]
    fn names_are_separated_by_commas_and_all_is_everyone() {
        assert_eq!(PodDrain::parse("worker-a"), named(&["worker-a"]));
        assert_eq!(PodDrain::parse(" worker-b ,worker-a,, worker-b"), named(&["worker-a", "worker-b"]));
        assert_eq!(PodDrain::parse("all"), Some(PodDrain::All));
        assert_eq!(PodDrain::parse("worker-a, all"), Some(PodDrain::All));
        assert_eq!(PodDrain::parse("true"), named(&["true"]), "one word is enough, and a proxy says so");
        for nobody in ["", "  ", ",", " , "] {
            assert_eq!(PodDrain::parse(nobody), None, "'{nobody}'");
        }
    }

    #[test]
    fn it_is_for_those_that_it_names() {
        let some = PodDrain::parse("a,b").expect("names");
        assert!(some.includes("a") && some.includes("b") && !some.includes("c"));
        assert!(PodDrain::All.includes("c"));
        assert_eq!(some.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(PodDrain::All.names().count(), 0);
    }

    #[test]
    fn what_is_kept_of_a_value_is_bounded() {
        let many: Vec<_> = (0..1000).map(|i| format!("worker-{i}")).collect();
        assert_eq!(PodDrain::parse(&many.join(",")).expect("names").names().count(), MOST);
        let long = PodDrain::parse(&"é".repeat(9000)).expect("a name");
        assert_eq!(long.names().next().map(|name| name.chars().count()), Some(LONGEST + 1));
    }

    #[test]
    fn it_reads_back() {
        for (drain, text) in
            [(PodDrain::All, r#""all""#), (named(&["a"]).expect("one"), r#"{"workers":["a"]}"#)]
        {
            assert_eq!(serde_json::to_string(&drain).expect("serializes"), text);
            assert_eq!(serde_json::from_str::<PodDrain>(text).expect("reads back"), drain);
        }
    }
}

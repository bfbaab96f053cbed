//! The architecture as tests: who may depend on whom, how long a file may be, what must match what.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// The names of everything that is compiled for a package, without its dev-dependencies.
fn dependencies(of: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--edges",
            "normal,build",
            "--prefix",
            "none",
            "--format",
            "{p}",
            "-p",
            of,
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).expect("text");
    tree.lines().skip(1).filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn crates_depend_in_one_direction() {
    let forbidden = [
        (
            "outrigger-policy",
            &["tokio", "hyper", "kube", "k8s-openapi", "outrigger-proxy", "outrigger-operator"][..],
        ),
        ("outrigger-proxy", &["kube", "k8s-openapi", "outrigger-operator"]),
        ("outrigger-operator", &["outrigger-proxy"]),
    ];
    for (of, names) in forbidden {
        let dependencies = dependencies(of);
        let found: Vec<_> = names.iter().filter(|name| dependencies.contains(**name)).collect();
        assert!(found.is_empty(), "{of} must not depend on {found:?}");
        assert!(dependencies.contains("serde"), "the tree was read");
        assert!(!dependencies.contains("ring"), "{of}: aws-lc-rs is the only provider");
    }
}

/// Rust files of the product, and where their tests begin.
fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders: Vec<_> = ["policy", "telemetry", "proxy", "operator", "tests"]
        .map(|name| root().join(name).join("src"))
        .into();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("text");
                found.push((path, text));
            }
        }
    }
    assert!(20 < found.len(), "the sources were found");
    found
}

#[test]
fn no_file_is_longer_than_400_lines_without_its_tests() {
    let lines = |text: &str| text.split("#[cfg(test)]\nmod ").next().expect("a first part").lines().count();
    let long: Vec<_> = sources()
        .iter()
        .filter(|(path, _)| path.file_name().is_none_or(|name| name != "tests.rs"))
        .map(|(path, text)| (lines(text), path.clone()))
        .filter(|(lines, _)| 400 < *lines)
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|(path, text)| {
            path.file_name().is_none_or(|name| name != "tests.rs") && !text.starts_with("//!")
        })
        .map(|(path, _)| path)
        .collect();
    assert!(silent.is_empty(), "{silent:#?}");
}

#[test]
fn the_proxy_never_names_kubernetes() {
    let proxy = root().join("proxy");
    for (path, text) in sources() {
        let names =
            text.lines().filter(|line| line.to_lowercase().contains("kubernetes") && !line.contains("//"));
        let found: Vec<_> = names.collect();
        assert!(!path.starts_with(&proxy) || found.is_empty(), "{}: {found:?}", path.display());
    }
}

/// What is borrowed from a `watch` locks it, and a temporary lives as long as the statement: whoever sends
/// meanwhile blocks its thread.
#[test]
fn nothing_borrowed_from_a_watch_is_held_over_an_await() {
    for (path, text) in sources() {
        let held = |line: &&str| {
            let borrow = line.find(".borrow_and_update()").or_else(|| line.find(".borrow()"));
            borrow.is_some_and(|at| line[at..].contains(".await"))
        };
        let found: Vec<_> = text.lines().filter(held).collect();
        assert!(found.is_empty(), "{}: {found:?}", path.display());
    }
}

#[test]
fn the_example_policies_are_valid() {
    let mut count = 0;
    for entry in std::fs::read_dir(root().join("deploy/policies")).expect("the examples") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("text");
        let documents = outrigger_policy::document::read(&text);
        for document in documents.unwrap_or_else(|violations| panic!("{}: {violations:#?}", path.display())) {
            if let Err(violations) = outrigger_policy::compile(&document.spec) {
                panic!("{}: {violations:#?}", path.display());
            }
            count += 1;
        }
    }
    assert!(5 <= count, "the examples were found");
}

#[test]
fn the_nodes_of_the_two_lives_are_files() {
    for (page, prefixes) in [
        ("life-of-a-request.md", &["proxy/src/"][..]),
        ("life-of-a-policy.md", &["", "policy/", "proxy/", "operator/"]),
    ] {
        let text = std::fs::read_to_string(root().join("docs").join(page)).expect("the page");
        let graph = text.split("```").nth(1).expect("a graph");
        let files: Vec<_> = graph
            .split(['"', '<'])
            .map(str::trim)
            .filter(|word| word.ends_with(".rs") && !word.contains(' '))
            .collect();
        assert!(8 < files.len(), "{page}: the nodes were found");
        for file in files {
            let with_src = file.replacen('/', "/src/", 1);
            let exists = prefixes.iter().any(|prefix| root().join(prefix).join(file).exists());
            assert!(exists || root().join(&with_src).exists(), "{page}: there is no file {file}");
        }
    }
}

/// What starts a task or a thread in the proxy and is not essential: one request's, one connection's, or one that whoever
/// started it waits for. Everything else is started by `Tasks::keep` or `Tasks::kept`, which start it again.
const SPAWNED: [(&str, usize, &str); 12] = [
    ("admin.rs", 1, "a connection"),
    ("app.rs", 1, "a thread, whose end is told"),
    ("body/progress.rs", 1, "the rest of a request, which is watched"),
    ("connection.rs", 1, "a connection"),
    ("control/stream/connect.rs", 1, "a connection: the stream ends with it"),
    ("forward.rs", 1, "the rest of an answer"),
    ("health/probe.rs", 1, "a connection: the check ends with it"),
    ("http1/client.rs", 1, "the rest of a request"),
    ("pool/http2.rs", 2, "connections to workers, and their streams"),
    ("supervisor.rs", 1, "slots, which are kept"),
    ("supervisor/slot.rs", 1, "processes that are about to end"),
    ("upgrade.rs", 2, "a connection, and its tunnel"),
];

#[test]
fn what_must_run_is_kept_running() {
    let proxy = root().join("proxy/src");
    let mut kept = BTreeSet::new();
    for (path, text) in sources() {
        let Ok(file) = path.strip_prefix(&proxy) else { continue };
        let is_test = |part: &std::ffi::OsStr| part == "tests" || part == "tests.rs" || part == "model.rs";
        if file.iter().any(is_test) {
            continue;
        }
        let text = text.split("#[cfg(test)]\nmod ").next().expect("a first part");
        let starts = |line: &&str| {
            let code = line.split("//").next().expect("a first part");
            let spawns =
                ["tokio::spawn(", "spawn_local(", "JoinSet::new(", "thread::spawn(", "thread::Builder"];
            spawns.iter().any(|name| code.contains(name)) && !code.contains(".kept(")
        };
        let found: Vec<_> = text.lines().filter(starts).collect();
        let file = file.display().to_string();
        let allowed = SPAWNED.iter().find(|(name, ..)| *name == file).map_or(0, |(_, count, _)| *count);
        assert_eq!(found.len(), allowed, "{file}: {found:#?}; see `SPAWNED`");
        if file != "essential.rs" {
            kept.extend(text.split("Task::").skip(1).map(|rest| {
                rest.split(|c: char| !c.is_alphanumeric()).next().expect("a first part").to_owned()
            }));
        }
    }
    let essential = std::fs::read_to_string(proxy.join("essential.rs")).expect("text");
    let declared =
        essential.split("\ntasks! {").nth(1).and_then(|rest| rest.split("\n}").next()).expect("tasks");
    let declared = declared.lines().filter_map(|line| Some(line.split_once(" = ")?.0.trim().to_owned()));
    assert_eq!(declared.collect::<BTreeSet<_>>().difference(&kept).count(), 0, "each is kept by somebody");
}

use std::os::unix::fs::symlink;

use outrigger_policy::Spec;
use tempfile::TempDir;

use super::*;
use crate::siblings::Siblings;

const HEAD: &str = "apiVersion: outrigger.dev/v1alpha1\nkind: ClusterPolicy\n";

fn policy(name: &str, spec: &str) -> String {
    format!("{HEAD}metadata: {{name: {name}}}\nspec: {spec}\n")
}

fn dir() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn put(path: &Path, text: &str) {
    fs::write(path, text).expect("written");
}

fn retries(control: &Control) -> u32 {
    control.snapshot().policy.routes[0].retry.num_retries
}

/// A process that is to start with the policy of this path.
fn begin(path: &Path, state_dir: Option<&Path>) -> (Arc<Control>, Result<Watcher, Unusable>) {
    let control = Control::beside(Vec::new(), Siblings::none(None, Arc::default()), Source::Awaited);
    let state_dir = state_dir.map(ToOwned::to_owned);
    let settings = Settings { path: path.to_owned(), keys: KeyRing::default(), state_dir };
    let watcher = Watcher::start(control.clone(), settings);
    (control, watcher)
}

/// Follows a path in virtual time.
struct Watched {
    control: Arc<Control>,
    changes: tokio::sync::watch::Receiver<u64>,
}

impl Watched {
    fn start(path: &Path, state_dir: Option<&Path>) -> Self {
        let (control, watcher) = begin(path, state_dir);
        let changes = control.changes();
        let watcher = Arc::new(tokio::sync::Mutex::new(watcher.expect("a policy is in force")));
        tokio::spawn(follow(watcher));
        Self { control, changes }
    }

    async fn changed(&mut self) {
        tokio::time::timeout(Duration::from_secs(5), self.changes.changed())
            .await
            .expect("the edit is seen in time")
            .expect("control is there");
    }

    async fn refused(&self, count: u64) {
        let refused = async {
            while self.control.refusals().count < count {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), refused).await.expect("the edit is seen in time");
    }
}

#[test]
fn a_directory_is_read_in_the_order_of_names() {
    let dir = dir();
    put(&dir.path().join("b.yml"), &policy("b", "{priority: 1, retry: {numRetries: 2}}"));
    put(&dir.path().join("a.yaml"), &policy("a", "{retry: {numRetries: 1}, timeout: {connect: 2s}}"));
    put(&dir.path().join("notes.txt"), "not a policy");
    put(&dir.path().join(".hidden.yaml"), "not a policy");
    let update = load_once(dir.path()).expect("valid");
    assert_eq!(update.policy.origins["retry"].policy, "b");
    assert_eq!(update.policy.origins["timeout"].policy, "a");
}

#[test]
fn every_violation_is_said_with_its_file() {
    let dir = dir();
    put(&dir.path().join("a.yaml"), &policy("web", "{retry: {numRetries: 1000}, timeout: {connect: 1y}}"));
    put(&dir.path().join("b.yaml"), &policy("web", "{}"));
    let violations = load_once(dir.path()).expect_err("invalid");
    let paths: Vec<_> = violations.iter().map(|violation| violation.path.as_str()).collect();
    assert!(paths.contains(&"a.yaml: spec.retry.numRetries"), "{violations:?}");
    assert!(paths.iter().any(|path| path.starts_with("a.yaml: spec.timeout.connect")), "{violations:?}");
    assert!(paths.contains(&"b.yaml: metadata.name"), "{violations:?}");
    assert!(load_once(&dir.path().join("gone.yaml")).is_err());
}

#[tokio::test(start_paused = true)]
async fn an_edit_is_applied_and_a_broken_one_is_not() {
    let dir = dir();
    let path = dir.path().join("policy.yaml");
    put(&path, &policy("web", "{retry: {numRetries: 2}}"));
    let mut watched = Watched::start(&path, None);
    assert_eq!((retries(&watched.control), watched.control.snapshot().source), (2, Source::File));

    put(&path, &policy("web", "{retry: {numRetries: 1000}}"));
    watched.refused(1).await;
    assert_eq!(watched.control.refusals().last[0].path, "spec.retry.numRetries");
    fs::remove_file(&path).expect("removed");
    watched.refused(2).await;
    assert_eq!(retries(&watched.control), 2, "the last good one stays");

    put(&path, &policy("web", "{retry: {numRetries: 3}}"));
    watched.changed().await;
    assert_eq!(retries(&watched.control), 3);
    tokio::time::sleep(10 * POLL).await;
    assert_eq!(watched.control.refusals().count, 2, "each broken content is refused once");
}

#[test]
fn no_process_starts_with_a_policy_that_is_missing_or_wrong() {
    let dir = dir();
    let path = dir.path().join("policy.yaml");
    let refused = |reason: &str| {
        let (control, watcher) = begin(&path, None);
        let error = watcher.err().map(|error| error.to_string()).expect("no policy can be in force");
        assert!(error.contains(reason) && error.contains("outrigger-proxy check"), "{error}");
        assert_eq!(control.snapshot().source, Source::Awaited, "nothing is served");
    };
    refused("No such file");
    put(&path, &policy("web", "{retry: {numRetries: 1000}}"));
    refused("spec.retry.numRetries");
    put(&path, "spec: [");
    refused("policy.yaml");
}

#[tokio::test(start_paused = true)]
async fn the_last_good_policy_of_the_same_path_goes_on_when_the_file_is_broken() {
    let (dir, state) = (dir(), self::dir());
    let (path, state) = (dir.path().join("policy.yaml"), state.path());
    put(&path, &policy("web", "{retry: {numRetries: 2}}"));
    let mut watched = Watched::start(&path, Some(state));
    put(&path, &policy("web", "{retry: {numRetries: 3}}"));
    watched.changed().await;
    let in_force = watched.control.snapshot().version.clone();
    let is_kept =
        || matches!(last_good::load_of_file(state, &path), Ok(Some(kept)) if kept.version == in_force);
    let kept = async {
        while !is_kept() {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), kept).await.expect("it is kept");

    for broken in [Some("spec: ["), None] {
        match broken {
            Some(text) => put(&path, text),
            None => fs::remove_file(&path).expect("removed"),
        }
        let (control, watcher) = begin(&path, Some(state));
        assert!(watcher.is_ok());
        assert_eq!((retries(&control), control.snapshot().source), (3, Source::Disk));
        assert_eq!(control.refusals().count, 1, "it is said that the file is wrong");
    }

    let mut watched = Watched::start(&path, Some(state));
    put(&path, &policy("web", "{retry: {numRetries: 3}}"));
    watched.changed().await;
    assert_eq!(watched.control.snapshot().source, Source::File, "the file comes late, and is taken");
}

#[tokio::test(start_paused = true)]
async fn an_edit_that_says_nothing_changes_nothing() {
    let dir = dir();
    let path = dir.path().join("policy.yaml");
    let good = policy("web", "{retry: {numRetries: 2}}");
    put(&path, &good);
    let mut watched = Watched::start(dir.path(), None);
    for (count, broken) in [
        (1, ""),
        (2, "# spec: {}\n"),
        (3, &*good.replace("spec", "spce")),
        (4, &*policy("web", "")),
        (5, "e: *w"),
    ] {
        put(&path, broken);
        watched.refused(count).await;
        assert_eq!(retries(&watched.control), 2, "{broken}");
    }
    fs::rename(&path, dir.path().join("policy.yaml.old")).expect("renamed");
    watched.refused(6).await;
    assert_eq!(retries(&watched.control), 2, "a directory without a policy");
    let said = load_once(dir.path()).expect_err("nothing")[0].to_string();
    assert_eq!(
        said,
        "there is no '*.yaml' or '*.yml' in this directory; a policy without rules has 'spec: {}'"
    );

    put(&path, &policy("web", "{}"));
    watched.changed().await;
    assert_eq!(
        watched.control.snapshot().update().policy.spec,
        Spec::default(),
        "no rules, as was asked for"
    );
}

#[test]
fn the_last_good_policy_of_another_path_is_not_asked_for() {
    let (dir, state) = (dir(), self::dir());
    let (path, other) = (dir.path().join("a.yaml"), dir.path().join("b.yaml"));
    put(&path, &policy("web", "{}"));
    assert!(begin(&path, Some(state.path())).1.is_ok());
    assert!(begin(&other, Some(state.path())).1.is_err());
    fs::remove_file(&path).expect("removed");
    assert!(begin(&path, Some(state.path())).1.is_ok());
    fs::write(state.path().join("last-good-of-file.json"), "{").expect("written");
    let error = begin(&path, Some(state.path())).1.err().expect("nothing to go on with").to_string();
    assert!(error.contains("the last good policy cannot be used either"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_mounted_config_map_is_followed_through_its_links() {
    let dir = dir();
    let version = |name: &str, retries: u32| {
        let target = dir.path().join(name);
        fs::create_dir(&target).expect("created");
        put(&target.join("web.yaml"), &policy("web", &format!("{{retry: {{numRetries: {retries}}}}}")));
        symlink(name, dir.path().join("..new")).expect("linked");
        fs::rename(dir.path().join("..new"), dir.path().join("..data")).expect("swapped");
    };
    version("..2026_1", 1);
    symlink("..data/web.yaml", dir.path().join("web.yaml")).expect("linked");
    let mut watched = Watched::start(dir.path(), None);
    assert_eq!(retries(&watched.control), 1);
    version("..2026_2", 2);
    watched.changed().await;
    assert_eq!(retries(&watched.control), 2);
}

use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

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

/// Follows a path in virtual time.
struct Watched {
    control: Arc<Control>,
    changes: tokio::sync::watch::Receiver<u64>,
}

impl Watched {
    fn start(path: PathBuf) -> Self {
        let control = Control::new(Vec::new());
        let changes = control.changes();
        tokio::spawn(watch(control.clone(), path, KeyRing::default()));
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
    let mut watched = Watched::start(path.clone());
    watched.changed().await;
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

#[tokio::test(start_paused = true)]
async fn a_file_that_comes_late_is_taken() {
    let dir = dir();
    let path = dir.path().join("policy.yaml");
    let mut watched = Watched::start(path.clone());
    watched.refused(1).await;
    put(&path, &policy("web", "{retry: {numRetries: 2}}"));
    watched.changed().await;
    assert_eq!(retries(&watched.control), 2);
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
    let mut watched = Watched::start(dir.path().to_owned());
    watched.changed().await;
    assert_eq!(retries(&watched.control), 1);
    version("..2026_2", 2);
    watched.changed().await;
    assert_eq!(retries(&watched.control), 2);
}

//! Policy from a file, or from every `*.yaml` and `*.yml` of a directory; edits are applied live.
//!
//! What they say is in force before the first request, or the proxy does not start.
//! The files are looked at four times a second rather than watched: that works on every file system, and with the
//! links that Kubernetes swaps under a mounted ConfigMap. What is being written is left alone until it rests.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use outrigger_policy::document::{self, Document};
use outrigger_policy::merge::{Candidate, merge};
use outrigger_policy::wire::{KeyRing, Update};
use outrigger_policy::{Violation, compile};
use tokio::sync::Mutex;

use super::{Control, last_good};
use crate::essential;
use crate::snapshot::Source;

/// How often the files are looked at.
const POLL: Duration = Duration::from_millis(250);
/// How long changed files must rest before they are read.
const REST: Duration = Duration::from_millis(50);
/// How often in a row changed files may change again until they are read all the same.
const RESTLESS: u32 = 20;
/// No policy is longer, all files together.
const LONGEST: u64 = 4 << 20;

/// Where the policy is and what is kept beside it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A policy file, or a directory of them.
    pub path: PathBuf,
    /// The keys of session cookies.
    pub keys: KeyRing,
    /// Where the last good policy is kept.
    pub state_dir: Option<PathBuf>,
}

/// Why a proxy cannot start with what the files say.
#[derive(Debug)]
pub struct Unusable {
    path: PathBuf,
    violations: Vec<Violation>,
    /// Why the last good policy cannot be used either, where it should have been kept.
    kept: Option<last_good::Error>,
}

impl std::error::Error for Unusable {}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        write!(f, "no policy can be put in force from {path} (--policy)")?;
        for violation in &self.violations {
            write!(f, "\n  {violation}")?;
        }
        if let Some(error) = &self.kept {
            write!(f, "\n  the last good policy cannot be used either: {error}")?;
        }
        write!(f, "\n  `outrigger-proxy check {path}` says when it is valid")
    }
}

/// What a file or a directory says now.
///
/// # Errors
/// Every violation of every file.
pub fn load_once(path: &Path) -> Result<Update, Vec<Violation>> {
    parse_all(&read(path)).map(|documents| update(&documents, KeyRing::default()))
}

/// Follows the files. Never ends.
pub async fn follow(files: Arc<Mutex<Watcher>>) {
    let mut watcher = files.lock().await;
    loop {
        tokio::time::sleep(POLL).await;
        watcher.poll().await;
    }
}

/// Keeps what the files say in force.
pub struct Watcher {
    control: Arc<Control>,
    settings: Settings,
    /// The files as they were when last read.
    seen: Option<Stamps>,
    /// What was last read of them.
    texts: Option<Result<Vec<Text>, Violation>>,
    /// The last look found a change. A second one within the same tick of the file system's clock would not
    /// show, so the next look reads again.
    confirm: bool,
    /// Whether it was said that `subject` is not evaluated.
    said: bool,
}

/// What tells whether a file changed.
#[derive(PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    modified: (i64, i64),
    len: u64,
    inode: (u64, u64),
}

type Stamps = Result<Vec<Stamp>, io::ErrorKind>;

/// A file's name, if there are several, and its content.
#[derive(Clone, PartialEq, Eq)]
struct Text {
    file: Option<String>,
    content: String,
}

impl Watcher {
    /// Puts in force what the files say; where they are wrong, the last good policy, if one is kept.
    ///
    /// # Errors
    /// Every violation of every file, where no last good policy of the same path can go on.
    pub fn start(control: Arc<Control>, settings: Settings) -> Result<Self, Unusable> {
        let seen = Some(stamps(&settings.path));
        let texts = read(&settings.path);
        let parsed = parse_all(&texts);
        let mut watcher = Self { control, settings, seen, texts: Some(texts), confirm: true, said: false };
        match watcher.take(parsed) {
            Ok(None) => {}
            Ok(Some(update)) => watcher.kept(keep(&watcher.settings, &update)),
            Err(violations) => watcher.start_from_disk(violations)?,
        }
        Ok(watcher)
    }

    fn start_from_disk(&self, violations: Vec<Violation>) -> Result<(), Unusable> {
        let Settings { path, state_dir, .. } = &self.settings;
        let unusable = |violations, kept| Unusable { path: path.clone(), violations, kept };
        let kept = state_dir.as_deref().map(|dir| last_good::load_of_file(dir, path)).transpose();
        let update = match kept.map(Option::flatten) {
            Ok(Some(update)) => update,
            Ok(None) => return Err(unusable(violations, None)),
            Err(error) => return Err(unusable(violations, Some(error))),
        };
        self.report(&violations);
        self.control.apply(&update, Source::Disk).map_err(|violations| unusable(violations, None))?;
        tracing::warn!(path = %path.display(), version = update.version, "the last good policy is in force");
        Ok(())
    }

    async fn poll(&mut self) {
        let mut stamps = self.look().await;
        let changed = self.seen.as_ref() != Some(&stamps);
        if !changed && !self.confirm {
            return;
        }
        stamps = self.rest(stamps).await;
        self.seen = Some(stamps);
        self.confirm = changed;
        let path = self.settings.path.clone();
        let before = self.texts.take();
        let (texts, parsed) = blocking(move || {
            let texts = read(&path);
            let parsed = (before.as_ref() != Some(&texts)).then(|| parse_all(&texts));
            (texts, parsed)
        })
        .await;
        self.texts = Some(texts);
        let Some(parsed) = parsed else { return };
        match self.take(parsed) {
            Ok(None) => {}
            Ok(Some(update)) => {
                let settings = self.settings.clone();
                self.kept(blocking(move || keep(&settings, &update)).await);
            }
            Err(violations) => self.report(&violations),
        }
    }

    async fn look(&self) -> Stamps {
        let path = self.settings.path.clone();
        blocking(move || stamps(&path)).await
    }

    /// Waits until the files no longer change: an editor that empties a file and then fills it must not put
    /// half a policy in force.
    async fn rest(&self, mut stamps: Stamps) -> Stamps {
        for _ in 0..RESTLESS {
            tokio::time::sleep(REST).await;
            let again = self.look().await;
            if again == stamps {
                break;
            }
            stamps = again;
        }
        stamps
    }

    /// Puts in force what was read. Returns it where it is another policy than the one before.
    fn take(
        &mut self,
        parsed: Result<Vec<Document>, Vec<Violation>>,
    ) -> Result<Option<Update>, Vec<Violation>> {
        let documents = parsed.inspect_err(|violations| self.control.refuse(violations))?;
        if !self.said && documents.iter().any(|document| document.spec.subject.is_some()) {
            self.said = true;
            tracing::info!("'subject' is not evaluated for policies from files: every policy applies");
        }
        let update = update(&documents, self.settings.keys.clone());
        if !self.control.apply(&update, Source::File)? {
            return Ok(None);
        }
        let (path, policies) = (self.settings.path.display(), documents.len());
        tracing::info!(%path, version = update.version, policies, "policy applied");
        Ok(Some(update))
    }

    fn report(&self, violations: &[Violation]) {
        let file = self.settings.path.display();
        for Violation { path, reason } in violations {
            tracing::error!(path = %file, field = path, reason, "policy refused; the last good one stays");
        }
    }

    fn kept(&self, kept: Result<(), last_good::Error>) {
        if let Err(error) = kept {
            tracing::warn!(%error, "the policy cannot be kept on disk");
        }
    }
}

fn keep(settings: &Settings, update: &Update) -> Result<(), last_good::Error> {
    match &settings.state_dir {
        Some(dir) => last_good::store_of_file(dir, &settings.path, update),
        None => Ok(()),
    }
}

/// File systems can stand still; the thread that serves `/livez` must not.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match essential::joined(tokio::task::spawn_blocking(work).await) {
        Some(value) => value,
        // The runtime is going away: it polls nothing any more.
        None => std::future::pending().await,
    }
}

/// The policy files at a path, in the order of their names.
fn files(path: &Path) -> io::Result<Vec<(PathBuf, Metadata)>> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_dir() {
        return Ok(vec![(path.to_owned(), metadata)]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let file = entry?.path();
        let yaml = file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        let hidden = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !yaml || hidden {
            continue;
        }
        let metadata = fs::metadata(&file)?;
        if metadata.is_file() {
            files.push((file, metadata));
        }
    }
    files.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(files)
}

fn stamps(path: &Path) -> Stamps {
    let stamp = |(path, metadata): (PathBuf, Metadata)| Stamp {
        path,
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        len: metadata.len(),
        inode: (metadata.dev(), metadata.ino()),
    };
    let files = files(path).map_err(|error| error.kind())?;
    Ok(files.into_iter().map(stamp).collect())
}

fn read(path: &Path) -> Result<Vec<Text>, Violation> {
    let cannot = |file: Option<&str>, error: io::Error| Violation {
        path: file.unwrap_or_default().to_owned(),
        reason: format!("cannot be read: {error}"),
    };
    let mut texts = Vec::new();
    let mut left = LONGEST;
    for (file, _) in files(path).map_err(|error| cannot(None, error))? {
        let name = (file != path).then(|| file.file_name().unwrap_or_default().display().to_string());
        let mut content = String::new();
        let read = fs::File::open(&file).and_then(|file| file.take(left + 1).read_to_string(&mut content));
        let length = read.map_err(|error| cannot(name.as_deref(), error))? as u64;
        left = left.checked_sub(length).ok_or_else(|| {
            cannot(
                name.as_deref(),
                io::Error::other(format!("policies have {LONGEST} bytes at most, all files together")),
            )
        })?;
        texts.push(Text { file: name, content });
    }
    if texts.is_empty() {
        let reason = String::from(
            "there is no '*.yaml' or '*.yml' in this directory; a policy without rules has 'spec: {}'",
        );
        return Err(Violation { path: String::new(), reason });
    }
    Ok(texts)
}

fn parse_all(read: &Result<Vec<Text>, Violation>) -> Result<Vec<Document>, Vec<Violation>> {
    match read {
        Ok(texts) => parse(texts),
        Err(violation) => Err(vec![violation.clone()]),
    }
}

/// Reads every file and checks every policy by itself, so that each violation has its place.
fn parse(texts: &[Text]) -> Result<Vec<Document>, Vec<Violation>> {
    let mut documents: Vec<Document> = Vec::new();
    let mut violations = Vec::new();
    let mut names = HashSet::new();
    for Text { file, content } in texts {
        let mut found = Vec::new();
        match document::read(content) {
            Err(unreadable) => found = unreadable,
            Ok(read) => {
                for document in read {
                    found.extend(check(&document));
                    if !names.insert(document.name.clone()) {
                        let reason = format!("'{}' is the name of another policy", document.name);
                        found.push(Violation { path: String::from("metadata.name"), reason });
                    }
                    documents.push(document);
                }
            }
        }
        for mut violation in found {
            if let Some(file) = file {
                let within = if violation.path.is_empty() { "" } else { ": " };
                violation.path = format!("{file}{within}{}", violation.path);
            }
            violations.push(violation);
        }
    }
    if violations.is_empty() { Ok(documents) } else { Err(violations) }
}

fn check(document: &Document) -> Vec<Violation> {
    let mut violations = compile(&document.spec).err().unwrap_or_default();
    for violation in &mut violations {
        violation.reason = format!("{} (policy '{}')", violation.reason, document.name);
    }
    violations
}

fn update(documents: &[Document], keys: KeyRing) -> Update {
    let candidate = |document| {
        let Document { name, spec }: &Document = document;
        Candidate { name, generation: 0, created: 0, spec }
    };
    let candidates: Vec<_> = documents.iter().map(candidate).collect();
    Update::new(merge(&candidates), keys)
}

#[cfg(test)]
mod tests;

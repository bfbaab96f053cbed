//! What a proxy keeps on disk, so that a restart without the operator, or with a broken policy file, goes on with the
//! policy it had.
//!
//! Every file is private to the process's user, written beside its place and renamed: a crash leaves the old one.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use outrigger_policy::wire::Update;
use serde::{Deserialize, Serialize};

const UPDATE: &str = "last-good.json";
const OF_FILE: &str = "last-good-of-file.json";
const TRUST_BUNDLE: &str = "trust-bundle.pem";
/// No file of ours is longer.
const LONGEST: u64 = 16 << 20;

/// What cannot be kept or had back.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refuses.
    #[error("{path}: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what was written.
    #[error("{path} is damaged: {reason}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Keeps a policy that is in force.
///
/// # Errors
/// When it cannot be written; the one kept before is still there.
pub fn store(dir: &Path, update: &Update) -> Result<(), Error> {
    let path = dir.join(UPDATE);
    let text = serde_json::to_vec(update).map_err(|error| damaged(&path, error.to_string()))?;
    write_private(&path, &text)
}

/// The policy kept last, if there is one.
///
/// # Errors
/// When it cannot be read, or is not what was written.
pub fn load(dir: &Path) -> Result<Option<Update>, Error> {
    let path = dir.join(UPDATE);
    let Some(text) = read(&path)? else { return Ok(None) };
    let update = serde_json::from_slice(&text).map_err(|error| damaged(&path, error.to_string()))?;
    whole(&path, update).map(Some)
}

/// A policy out of files, and where they were: the last good policy of other files is not asked for.
#[derive(Serialize, Deserialize)]
struct OfFile {
    path: PathBuf,
    update: Update,
}

/// Keeps a policy that is in force and came from a file or a directory.
///
/// # Errors
/// When it cannot be written; the one kept before is still there.
pub fn store_of_file(dir: &Path, file: &Path, update: &Update) -> Result<(), Error> {
    let path = dir.join(OF_FILE);
    let kept = OfFile { path: absolute(file), update: update.clone() };
    let text = serde_json::to_vec(&kept).map_err(|error| damaged(&path, error.to_string()))?;
    write_private(&path, &text)
}

/// The policy kept last of this file or directory, if there is one.
///
/// # Errors
/// When it cannot be read, or is not what was written.
pub fn load_of_file(dir: &Path, file: &Path) -> Result<Option<Update>, Error> {
    let path = dir.join(OF_FILE);
    let Some(text) = read(&path)? else { return Ok(None) };
    let kept: OfFile = serde_json::from_slice(&text).map_err(|error| damaged(&path, error.to_string()))?;
    if kept.path != absolute(file) {
        return Ok(None);
    }
    whole(&path, kept.update).map(Some)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn whole(path: &Path, update: Update) -> Result<Update, Error> {
    let expected = update.computed_version();
    if expected != update.version {
        return Err(damaged(path, format!("it says version {}, and is {expected}", update.version)));
    }
    Ok(update)
}

/// Keeps the certificates that the operator said to trust.
///
/// # Errors
/// When they cannot be written.
pub fn store_trust_bundle(dir: &Path, pem: &str) -> Result<(), Error> {
    write_private(&dir.join(TRUST_BUNDLE), pem.as_bytes())
}

/// The certificates that the operator last said to trust.
///
/// # Errors
/// When they cannot be read.
pub fn load_trust_bundle(dir: &Path) -> Result<Option<String>, Error> {
    let path = dir.join(TRUST_BUNDLE);
    let Some(bytes) = read(&path)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|error| damaged(&path, error.to_string()))
}

pub(super) fn damaged(path: &Path, reason: String) -> Error {
    Error::Damaged { path: path.to_owned(), reason }
}

/// A file's content; `None` when there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut content = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut content).map_err(failed)?;
    if LONGEST < content.len() as u64 {
        return Err(damaged(path, format!("it is longer than {LONGEST} bytes")));
    }
    Ok(Some(content))
}

/// Writes a file that only this user may read: whole or not at all.
pub(super) fn write_private(path: &Path, content: &[u8]) -> Result<(), Error> {
    let beside = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        // One left by a crash could have other permissions.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        match path.parent() {
            Some(dir) => fs::File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(|source| Error::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use outrigger_policy::drain::PodDrain;
    use outrigger_policy::merge::Merged;
    use outrigger_policy::wire::{CanaryShare, KeyRing, SessionKey};

    use super::*;

    fn update() -> Update {
        let share = CanaryShare { weight: 5, epoch: "v2.1/1".to_owned() };
        Update::new(Merged::default(), KeyRing { keys: vec![SessionKey { id: 3, secret: [9; 32] }] })
            .with_canary(Some(share))
            .with_drain(PodDrain::parse("worker-a"))
    }

    #[test]
    fn what_is_stored_is_loaded_and_private() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(load(dir.path()).expect("nothing is no error"), None);
        store(dir.path(), &update()).expect("stored");
        store(dir.path(), &update()).expect("stored over the first");
        assert_eq!(load(dir.path()).expect("loaded"), Some(update()));
        let mode = fs::metadata(dir.path().join(UPDATE)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 1, "nothing is left beside it");
    }

    #[test]
    fn damage_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(UPDATE);
        store(dir.path(), &update()).expect("stored");
        let text = fs::read_to_string(&path).expect("readable");
        fs::write(&path, text.replacen("\"id\":3", "\"id\":4", 1)).expect("written");
        assert!(matches!(load(dir.path()), Err(Error::Damaged { .. })), "another key");
        fs::write(&path, &text[..text.len() / 2]).expect("written");
        assert!(matches!(load(dir.path()), Err(Error::Damaged { .. })), "half a file");
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error_of_the_file_system() {
        assert!(matches!(store(Path::new("/nonexistent/outrigger"), &update()), Err(Error::File { .. })));
    }

    #[test]
    fn the_trust_bundle_is_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(load_trust_bundle(dir.path()).expect("nothing is no error"), None);
        store_trust_bundle(dir.path(), "PEM").expect("stored");
        assert_eq!(load_trust_bundle(dir.path()).expect("loaded").as_deref(), Some("PEM"));
    }
}

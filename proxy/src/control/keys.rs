//! The session keys of a proxy without an operator.
//!
//! With a state directory sessions outlive the process; without one a restart pins every client anew.

use std::path::Path;

use outrigger_policy::wire::{KeyRing, SessionKey};

use super::last_good::{self, Error};

const FILE: &str = "session-keys.json";

/// The keys kept in the state directory; new ones where there are none.
pub fn load_or_create(dir: Option<&Path>) -> KeyRing {
    let Some(dir) = dir else {
        tracing::info!("no state directory: session keys live as long as the process");
        return create();
    };
    match load(dir) {
        Ok(Some(ring)) => return ring,
        Ok(None) => {}
        Err(error) => tracing::error!(%error, "the session keys are replaced: every client is pinned anew"),
    }
    let ring = create();
    if let Err(error) = store(dir, &ring) {
        tracing::error!(%error, "the session keys cannot be kept: they live as long as the process");
    }
    ring
}

fn load(dir: &Path) -> Result<Option<KeyRing>, Error> {
    let path = dir.join(FILE);
    let Some(text) = last_good::read(&path)? else { return Ok(None) };
    let ring: KeyRing =
        serde_json::from_slice(&text).map_err(|error| last_good::damaged(&path, error.to_string()))?;
    if ring.keys.is_empty() {
        return Err(last_good::damaged(&path, String::from("it holds no key")));
    }
    Ok(Some(ring))
}

fn store(dir: &Path, ring: &KeyRing) -> Result<(), Error> {
    let path = dir.join(FILE);
    let text = serde_json::to_vec(ring).map_err(|error| last_good::damaged(&path, error.to_string()))?;
    last_good::write_private(&path, &text)
}

fn create() -> KeyRing {
    let mut secret = [0; 32];
    if aws_lc_rs::rand::fill(&mut secret).is_err() {
        tracing::error!("the system has no randomness: there are no session keys, and no sticky sessions");
        return KeyRing::default();
    }
    KeyRing { keys: vec![SessionKey { id: 0, secret }] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_kept_in_the_state_directory() {
        let dir = tempfile::tempdir().expect("a directory");
        let created = load_or_create(Some(dir.path()));
        assert_eq!(load_or_create(Some(dir.path())), created);
        assert_ne!(created.keys[0].secret, [0; 32]);
    }

    #[test]
    fn without_a_directory_keys_are_of_the_process() {
        assert_ne!(load_or_create(None), load_or_create(None));
        let gone = Path::new("/nonexistent/outrigger");
        assert_eq!(load_or_create(Some(gone)).keys.len(), 1, "it serves all the same");
    }

    #[test]
    fn damaged_keys_are_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        for damage in ["{", r#"{"keys": []}"#] {
            std::fs::write(dir.path().join(FILE), damage).expect("written");
            let created = load_or_create(Some(dir.path()));
            assert_eq!(load_or_create(Some(dir.path())), created);
        }
    }
}

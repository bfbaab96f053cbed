//! The token that the API asks for, read from its file whenever somebody brings one: whoever rotates it need not restart
//! the process, and a file that is gone lets nobody in.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use parking_lot::Mutex;

/// Bytes that a token may have.
const LONGEST: usize = 4 << 10;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    /// It is a folder or a device.
    #[error("it is no file")]
    NoFile,
    /// There is nothing in it: an empty token would let everybody in.
    #[error("it is empty")]
    Empty,
    /// It is no token.
    #[error("it has more than {LONGEST} bytes")]
    TooLong,
}

/// The file with the token.
pub struct TokenFile {
    path: PathBuf,
    /// What was wrong with it when it was read last, and has been said.
    problem: Mutex<Option<String>>,
}

impl TokenFile {
    /// A file that was not read yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, problem: Mutex::new(None) }
    }

    /// The token that is in it now; `None` where it is unusable, which is said once.
    pub fn token(&self) -> Option<Vec<u8>> {
        let (token, problem) = match self.read() {
            Ok(token) => (Some(token), None),
            Err(unusable) => (None, Some(unusable.to_string())),
        };
        let mut said = self.problem.lock();
        if *said != problem {
            let path = self.path.display();
            match &problem {
                Some(error) => {
                    tracing::error!(%path, error, "the API is closed: there is no token in its file")
                }
                None => tracing::info!(%path, "the API is open to those who have the token again"),
            }
            *said = problem;
        }
        token
    }

    fn read(&self) -> Result<Vec<u8>, Unusable> {
        if !std::fs::metadata(&self.path)?.is_file() {
            return Err(Unusable::NoFile); // a pipe would be waited for
        }
        let mut token = Vec::new();
        File::open(&self.path)?.take(LONGEST as u64 + 1).read_to_end(&mut token)?;
        if LONGEST < token.len() {
            return Err(Unusable::TooLong);
        }
        match token.trim_ascii() {
            [] => Err(Unusable::Empty),
            token => Ok(token.to_vec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_what_the_file_has_now() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("token");
        let file = TokenFile::new(path.clone());
        let problem = || file.problem.lock().clone().unwrap_or_default();
        assert_eq!(file.token(), None);
        assert!(problem().contains("No such file"), "{}", problem());
        for (written, token, said) in [
            (" first\n".to_owned(), Some("first"), ""),
            ("second".to_owned(), Some("second"), ""),
            (String::new(), None, "it is empty"),
            (" \n".to_owned(), None, "it is empty"),
            ("x".repeat(LONGEST + 1), None, "it has more than 4096 bytes"),
            ("third".to_owned(), Some("third"), ""),
        ] {
            std::fs::write(&path, written).expect("written");
            assert_eq!((file.token().as_deref(), problem().as_str()), (token.map(str::as_bytes), said));
        }
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(file.token(), None);
        std::fs::create_dir(&path).expect("made");
        assert_eq!((file.token(), problem().as_str()), (None, "it is no file"));
    }
}

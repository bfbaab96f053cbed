//! Certificates for tests: one that signs itself, in files.

use std::path::{Path, PathBuf};

/// A certificate for `localhost` and its key, in files of a folder.
pub struct Certificate {
    /// The certificate, in PEM.
    pub certificate: PathBuf,
    /// Its key, in PEM.
    pub key: PathBuf,
}

impl Certificate {
    /// Makes a new one; what is in the files already is replaced.
    pub fn write(folder: &Path) -> Self {
        let names = [String::from("localhost"), String::from("127.0.0.1")];
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        let this = Self { certificate: folder.join("tls.crt"), key: folder.join("tls.key") };
        std::fs::write(&this.key, made.signing_key.serialize_pem()).expect("the folder is writable");
        std::fs::write(&this.certificate, made.cert.pem()).expect("the folder is writable");
        this
    }

    /// The flags with which the proxy serves it.
    pub fn flags(&self) -> [String; 4] {
        let path = |path: &Path| path.display().to_string();
        ["--tls-cert".to_owned(), path(&self.certificate), "--tls-key".to_owned(), path(&self.key)]
    }
}

//! TLS on the listener: a certificate and its key from files, taken anew when they change.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{self, Ticketer};
use rustls::server::ProducesTickets;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::essential;

/// How often the files are looked at.
const POLL: Duration = Duration::from_secs(2);

/// What is wrong with a certificate or its key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{path} cannot be read: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not the PEM it should be.
    #[error("{path} holds no {what}: {source}")]
    Pem {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// The two do not belong together, or cannot be used.
    #[error("the certificate and the key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// A TLS configuration that follows its files.
pub struct Reloading {
    files: Files,
    current: ArcSwap<ServerConfig>,
    /// What was last read, good or not.
    read: parking_lot::Mutex<Pair>,
    /// Outlives a reload: sessions can be resumed after it.
    tickets: Arc<dyn ProducesTickets>,
}

#[derive(Clone)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Clone, PartialEq, Eq)]
struct Pair {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Reloading {
    /// Reads a certificate chain and its key, both in PEM.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, Error> {
        let files = Files { certificate: certificate.to_owned(), key: key.to_owned() };
        let tickets = Ticketer::new()?;
        let pair = files.read()?;
        let current = ArcSwap::new(files.config(&pair, tickets.clone())?);
        Ok(Self { files, current, read: parking_lot::Mutex::new(pair), tickets })
    }

    /// What a new connection is to use.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Follows the files. Never ends.
    pub async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(POLL).await;
            let this = self.clone();
            let looked = tokio::task::spawn_blocking(move || this.reload()).await;
            let Some(looked) = essential::joined(looked) else { return };
            match looked {
                Ok(true) => tracing::info!("the TLS certificate was reloaded"),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(%error, "the TLS certificate is not reloaded; the old one stays")
                }
            }
        }
    }

    /// Takes the files if they changed. A pair is tried, and complained of, once.
    fn reload(&self) -> Result<bool, Error> {
        let pair = match self.files.read() {
            Ok(pair) => pair,
            // The files are being replaced; should they stay away, what is in use stays too.
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let mut read = self.read.lock();
        if *read == pair {
            return Ok(false);
        }
        let config = self.files.config(&pair, self.tickets.clone());
        *read = pair;
        self.current.store(config?);
        Ok(true)
    }
}

impl Files {
    fn read(&self) -> Result<Pair, Error> {
        let read =
            |path: &Path| std::fs::read(path).map_err(|source| Error::File { path: path.to_owned(), source });
        Ok(Pair { certificate: read(&self.certificate)?, key: read(&self.key)? })
    }

    fn config(&self, pair: &Pair, tickets: Arc<dyn ProducesTickets>) -> Result<Arc<ServerConfig>, Error> {
        let no_pem = |path: &Path, what, source| Error::Pem { path: path.to_owned(), what, source };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&pair.certificate)
            .collect::<Result<_, _>>()
            .map_err(|source| no_pem(&self.certificate, "certificates", source))?;
        if chain.is_empty() {
            return Err(no_pem(
                &self.certificate,
                "certificates",
                rustls_pki_types::pem::Error::NoItemsFound,
            ));
        }
        let key = PrivateKeyDer::from_pem_slice(&pair.key)
            .map_err(|source| no_pem(&self.key, "private key", source))?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
            .with_no_client_auth()
            .with_single_cert(chain, key)?; // it compares the key with the certificate
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = tickets;
        Ok(Arc::new(config))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Dir(tempfile::TempDir);

    impl Dir {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a directory"))
        }

        fn certificate(&self) -> PathBuf {
            self.0.path().join("tls.crt")
        }

        fn key(&self) -> PathBuf {
            self.0.path().join("tls.key")
        }

        fn put(&self, certificate: &str, key: &str) {
            fs::write(self.certificate(), certificate).expect("written");
            fs::write(self.key(), key).expect("written");
        }
    }

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed([String::from("localhost")]).expect("a certificate");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_new_pair_is_taken_and_a_broken_one_is_not() {
        let dir = Dir::new();
        let (certificate, key) = pair();
        dir.put(&certificate, &key);
        let tls = Reloading::load(&dir.certificate(), &dir.key()).expect("valid");
        let first = tls.config();
        assert_eq!(first.alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        assert!(!tls.reload().expect("nothing changed"));

        let (other, other_key) = pair();
        dir.put(&other, &key);
        assert!(matches!(tls.reload(), Err(Error::Unusable(_))), "the key of another certificate");
        assert!(!tls.reload().expect("complained of once"));
        dir.put(&other, "no key");
        assert!(matches!(tls.reload(), Err(Error::Pem { .. })));
        assert!(Arc::ptr_eq(&first, &tls.config()), "the old one stays");

        dir.put(&other, &other_key);
        assert!(tls.reload().expect("valid again"));
        assert!(!Arc::ptr_eq(&first, &tls.config()));
    }

    #[test]
    fn files_that_go_away_change_nothing() {
        let dir = Dir::new();
        let (certificate, key) = pair();
        dir.put(&certificate, &key);
        let tls = Reloading::load(&dir.certificate(), &dir.key()).expect("valid");
        fs::remove_file(dir.key()).expect("removed");
        assert!(!tls.reload().expect("no error"));
    }

    #[test]
    fn what_is_wrong_at_the_start_is_said() {
        let dir = Dir::new();
        assert!(matches!(Reloading::load(&dir.certificate(), &dir.key()), Err(Error::File { .. })));
        dir.put("", &pair().1);
        assert!(Reloading::load(&dir.certificate(), &dir.key()).is_err());
    }
}

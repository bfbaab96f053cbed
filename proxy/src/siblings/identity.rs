//! Who this proxy is to its siblings: a key that never leaves the process, a certificate for it from the operator's
//! CA, and TLS 1.3 in which both ends show theirs.
//!
//! A certificate has two names, and no other is ever looked at: one that all proxies of the workload share, which
//! opens the sibling port, and one that only this pod has, by which its siblings know that they reached it. The
//! operator writes both from the token of the proxy; see `outrigger_policy::siblings`. The port takes whose workload is
//! this proxy's own, or is that of a sibling on the operator's list.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use outrigger_policy::siblings::{self, Certificate};
use rcgen::{CertificateParams, KeyPair};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::{Resumption, verify_server_name};
use rustls::crypto::aws_lc_rs;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};

const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Why there is no certificate, or why it is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key or the request cannot be made.
    #[error("cannot make a signing request: {0}")]
    Make(#[from] rcgen::Error),
    /// What should be PEM is not.
    #[error("the certificate cannot be read: {0}")]
    Pem(#[from] rustls_pki_types::pem::Error),
    /// TLS cannot use it.
    #[error("the certificate cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
    /// The certificates to trust are of no use.
    #[error("the certificates to trust cannot be used: {0}")]
    Roots(#[from] rustls::server::VerifierBuilderError),
    /// The workload is no name.
    #[error("'{0}' cannot be part of a certificate's name")]
    Name(String),
}

/// A new key, and the request to sign it, in PEM.
///
/// # Errors
/// The machine has no randomness.
pub fn signing_request() -> Result<(KeyPair, String), Error> {
    let key = KeyPair::generate()?; // ECDSA P-256
    let request = CertificateParams::default().serialize_request(&key)?.pem()?;
    Ok((key, request))
}

/// What this proxy shows its siblings, once it has something to show.
#[derive(Default)]
pub struct Identity {
    current: ArcSwapOption<Credentials>,
    admitted: Arc<Admitted>,
}

/// The names of workloads, beside the own one, whose certificates open the sibling port.
type Admitted = ArcSwap<Vec<ServerName<'static>>>;

/// One certificate, made into what both ends of a connection need.
pub struct Credentials {
    workload: String,
    expires: Instant,
    server: Arc<ServerConfig>,
    http2: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
}

impl Identity {
    /// The certificate in use, unless it has expired.
    pub fn current(&self, now: Instant) -> Option<Arc<Credentials>> {
        self.current.load_full().filter(|credentials| now < credentials.expires)
    }

    /// Whether there is a certificate in use: asked for every request, so that it touches no count that threads share.
    pub fn is_valid(&self, now: Instant) -> bool {
        self.current.load().as_ref().is_some_and(|credentials| now < credentials.expires)
    }

    /// Uses a certificate from now on. `roots` are the certificates, in PEM, that siblings' must come from.
    ///
    /// # Errors
    /// It is of no use; the one before stays.
    pub fn install(
        &self,
        key: &KeyPair,
        certificate: &Certificate,
        roots: &str,
        now: Instant,
    ) -> Result<(), Error> {
        let credentials = Credentials::new(key, certificate, roots, now, &self.admitted)?;
        self.current.store(Some(Arc::new(credentials)));
        Ok(())
    }

    /// Takes connections of proxies of these workloads from now on, besides the own one, and of no others.
    pub fn admit<'a>(&self, workloads: impl IntoIterator<Item = &'a str>) {
        let name = |workload| ServerName::try_from(siblings::workload_name(workload)).ok();
        self.admitted.store(Arc::new(workloads.into_iter().filter_map(name).collect()));
    }
}

impl Credentials {
    fn new(
        key: &KeyPair,
        certificate: &Certificate,
        roots: &str,
        now: Instant,
        admitted: &Arc<Admitted>,
    ) -> Result<Self, Error> {
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(certificate.certificate.as_bytes()).collect::<Result<_, _>>()?;
        let mut trusted = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
            trusted.add(root?)?;
        }
        let trusted = Arc::new(trusted);
        let client = |protocol| client(&trusted, &chain, key, protocol).map(Arc::new);
        let (http2, http1) = (client(HTTP2)?, client(HTTP1)?);
        let workload = certificate.workload.clone();
        let server = Arc::new(server(&trusted, chain.clone(), key, (&workload, admitted))?);
        let expires = now + Duration::from_secs(certificate.expires_after_seconds);
        Ok(Self { workload, expires, server, http2, http1 })
    }

    /// The workload that this proxy is of.
    pub fn workload(&self) -> &str {
        &self.workload
    }

    /// When the certificate expires.
    pub fn expires(&self) -> Instant {
        self.expires
    }

    /// How to take a connection of a sibling. Nobody else gets through the handshake.
    pub fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    /// How to connect to a sibling.
    pub fn client(&self, http2: bool) -> &Arc<ClientConfig> {
        if http2 { &self.http2 } else { &self.http1 }
    }
}

fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

fn client(
    roots: &Arc<RootCertStore>,
    chain: &[CertificateDer<'static>],
    key: &KeyPair,
    protocol: &[u8],
) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(chain.to_vec(), private(key))?;
    config.alpn_protocols = vec![protocol.to_vec()];
    config.resumption = Resumption::disabled(); // connections are kept, and each handshake shows a certificate
    Ok(config)
}

fn server(
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: &KeyPair,
    (workload, admitted): (&str, &Arc<Admitted>),
) -> Result<ServerConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let signed = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
    let name = siblings::workload_name(workload);
    let workload = ServerName::try_from(name).map_err(|_| Error::Name(workload.to_owned()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Listed { signed, workload, admitted: admitted.clone() }))
        .with_single_cert(chain, private(key))?;
    config.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Lets in who has a certificate of the CA for this workload, or for one that is admitted beside it.
#[derive(Debug)]
struct Listed {
    signed: Arc<dyn ClientCertVerifier>,
    workload: ServerName<'static>,
    admitted: Arc<Admitted>,
}

impl ClientCertVerifier for Listed {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.signed.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.signed.verify_client_cert(end_entity, intermediates, now)?;
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let own = verify_server_name(&certificate, &self.workload);
        if own.is_err() {
            let admitted = self.admitted.load();
            if !admitted.iter().any(|workload| verify_server_name(&certificate, workload).is_ok()) {
                own?;
            }
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, IsCa, Issuer, KeyUsagePurpose};

    use super::*;

    struct Authority {
        pem: String,
        key: KeyPair,
    }

    impl Authority {
        fn new() -> Self {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            Self { pem: params.self_signed(&key).expect("made").pem(), key }
        }

        fn certify(&self, key: &KeyPair, workload: &str) -> Certificate {
            let names = vec![siblings::instance_name(workload, "uid"), siblings::workload_name(workload)];
            let mut params = CertificateParams::new(names).expect("names");
            params.extended_key_usages =
                vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
            let issuer = Issuer::from_ca_cert_pem(&self.pem, &self.key).expect("a CA");
            Certificate {
                certificate: params.signed_by(key, &issuer).expect("signed").pem(),
                workload: workload.to_owned(),
                renew_after_seconds: 40,
                expires_after_seconds: 60,
            }
        }
    }

    impl Identity {
        /// Any certificate, for tests of what needs one.
        pub(crate) fn install_for_tests(&self) {
            let (authority, key) = (Authority::new(), KeyPair::generate().expect("a key"));
            let certificate = authority.certify(&key, "w");
            self.install(&key, &certificate, &authority.pem, Instant::now()).expect("usable");
        }
    }

    #[test]
    fn a_certificate_is_used_until_it_expires() {
        let (authority, identity, now) = (Authority::new(), Identity::default(), Instant::now());
        assert!(identity.current(now).is_none());
        let (key, request) = signing_request().expect("made");
        assert!(request.contains("BEGIN CERTIFICATE REQUEST"));
        identity.install(&key, &authority.certify(&key, "w"), &authority.pem, now).expect("usable");
        assert!(identity.current(now + Duration::from_secs(59)).is_some());
        assert!(identity.current(now + Duration::from_secs(60)).is_none());
    }

    #[test]
    fn what_is_of_no_use_leaves_the_one_before() {
        let (authority, identity, now) = (Authority::new(), Identity::default(), Instant::now());
        let (key, _) = signing_request().expect("made");
        let good = authority.certify(&key, "w");
        identity.install(&key, &good, &authority.pem, now).expect("usable");
        let (other, _) = signing_request().expect("made");
        assert!(matches!(identity.install(&other, &good, &authority.pem, now), Err(Error::Unusable(_))));
        let garbage = Certificate { certificate: String::from("garbage"), ..good.clone() };
        assert!(identity.install(&key, &garbage, &authority.pem, now).is_err());
        assert!(identity.install(&key, &good, "", now).is_err(), "nobody is trusted");
        assert_eq!(identity.current(now).expect("the first").workload(), "w");
    }

    #[test]
    fn only_the_same_workload_or_one_on_the_list_of_the_same_authority_is_let_in() {
        let (authority, stranger) = (Authority::new(), Authority::new());
        let (key, _) = signing_request().expect("made");
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem.as_bytes()).expect("PEM")).expect("a CA");
        let provider = Arc::new(aws_lc_rs::default_provider());
        let signed = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
        let workload = ServerName::try_from(siblings::workload_name("w")).expect("a name");
        let identity = Identity::default();
        let admitted = identity.admitted.clone();
        let verifier = Listed { signed: signed.expect("built"), workload, admitted };
        let let_in = |certificate: Certificate| {
            let der = CertificateDer::from_pem_slice(certificate.certificate.as_bytes()).expect("PEM");
            verifier.verify_client_cert(&der, &[], UnixTime::now()).is_ok()
        };
        assert!(let_in(authority.certify(&key, "w")));
        assert!(!let_in(authority.certify(&key, "v")), "another workload");
        assert!(!let_in(stranger.certify(&key, "w")), "another authority");
        assert!(verifier.client_auth_mandatory(), "no certificate at all");
        identity.admit(["v", "w"]);
        assert!(let_in(authority.certify(&key, "v")) && let_in(authority.certify(&key, "w")));
        assert!(!let_in(authority.certify(&key, "u")), "not on the list");
        assert!(!let_in(stranger.certify(&key, "v")), "another authority");
        identity.admit([]);
        assert!(!let_in(authority.certify(&key, "v")), "no longer on the list");
        assert!(let_in(authority.certify(&key, "w")));
    }
}

//! The CA: made here, kept in a Secret, signing the certificates that the replicas serve.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::rotation::{Authorities, Schedule, Step, Validity};
use super::store::Data;

const CURRENT: [&str; 2] = ["tls.crt", "tls.key"];
const NEXT: [&str; 2] = ["next.crt", "next.key"];
const PREVIOUS: &str = "previous.crt";

/// What a CA cannot do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key is missing in the Secret, or is no text.
    #[error("'{0}' is missing or no text")]
    Missing(&'static str),
    /// What the Secret holds is no certificate.
    #[error("'{0}' holds no certificate")]
    NoCertificate(&'static str),
    /// The key is not the one of the certificate.
    #[error("'{0}' is not the key of its certificate")]
    WrongKey(&'static str),
    /// Making or signing failed.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// A request to sign is none, or does not hold the key it was made with.
    #[error("the signing request is not valid: {0}")]
    Request(rcgen::Error),
}

/// A CA with its key.
pub struct Authority {
    certificate: Published,
    key: KeyPair,
}

/// A CA's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    pem: String,
    validity: Validity,
}

/// A server certificate with its key.
pub struct Leaf {
    /// The certificate; the CA itself is in the bundle.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// How long it is valid.
    pub validity: Validity,
}

/// A certificate whose key somebody else holds.
pub struct Certified {
    /// The certificate, in PEM.
    pub pem: String,
    /// How long it is valid.
    pub validity: Validity,
}

/// All CAs at hand, as the Secret holds them.
pub struct Held {
    current: Arc<Authority>,
    next: Option<Authority>,
    previous: Option<Published>,
}

// === impl Authority ===

impl Authority {
    /// Makes a CA that signs for servers and for proxies, and for no other CA.
    pub fn create(validity: Validity) -> Result<Self, Error> {
        let key = KeyPair::generate()?; // ECDSA P-256
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        // Two CAs of different names are told apart by every client, whatever it thinks of key identifiers.
        params.distinguished_name.push(
            DnType::CommonName,
            format!(
                "outrigger CA {}",
                validity.issued().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
            ),
        );
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        set_validity(&mut params, &validity);
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { certificate: Published { pem, validity }, key })
    }

    fn load(data: &Data, names: [&'static str; 2]) -> Result<Self, Error> {
        let certificate = Published::load(data, names[0])?;
        let key = KeyPair::from_pem(text(data, names[1])?).map_err(|_| Error::WrongKey(names[1]))?;
        let der = certificate.der(names[0])?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&der).map_err(|_| Error::NoCertificate(names[0]))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(Error::WrongKey(names[1]));
        }
        Ok(Self { certificate, key })
    }

    fn store(&self, data: &mut Data, names: [&str; 2]) {
        self.certificate.store(data, names[0]);
        data.insert(names[1].to_owned(), ByteString(self.key.serialize_pem().into_bytes()));
    }

    /// Its certificate, in PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate.pem
    }

    /// Signs a server certificate for these names, with a key of its own.
    pub fn issue(&self, names: &[String], validity: Validity) -> Result<Leaf, Error> {
        let validity = validity.within(&self.certificate.validity);
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = names.first() {
            params.distinguished_name.push(DnType::CommonName, name.as_str());
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, &validity);
        let issuer = Issuer::from_ca_cert_pem(&self.certificate.pem, &self.key)?;
        let certificate = params.signed_by(&key, &issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(Leaf { chain: vec![certificate.der().clone()], key, validity })
    }

    /// Signs the key of a request, for these names and not for those that the request asks for. The certificate is
    /// good for both ends of a connection. In PEM.
    pub fn certify(&self, request: &str, names: &[String], validity: Validity) -> Result<Certified, Error> {
        let validity = validity.within(&self.certificate.validity);
        let request = CertificateSigningRequestParams::from_pem(request).map_err(Error::Request)?;
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = rcgen::DistinguishedName::new(); // a pod's UID needs more than a CN may have
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, &validity);
        let issuer = Issuer::from_ca_cert_pem(&self.certificate.pem, &self.key)?;
        let certificate = params.signed_by(&request.public_key, &issuer)?;
        Ok(Certified { pem: certificate.pem(), validity })
    }
}

fn set_validity(params: &mut CertificateParams, validity: &Validity) {
    let seconds =
        |time: SystemTime| Duration::from_secs(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + seconds(validity.not_before);
    params.not_after = epoch + seconds(validity.not_after);
}

// === impl Published ===

impl Published {
    fn load(data: &Data, name: &'static str) -> Result<Self, Error> {
        let mut published = Self {
            pem: text(data, name)?.to_owned(),
            validity: Validity::starting(UNIX_EPOCH, Duration::ZERO),
        };
        let der = published.der(name)?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&der).map_err(|_| Error::NoCertificate(name))?;
        let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        published.validity = Validity {
            not_before: time(parsed.validity().not_before.timestamp()),
            not_after: time(parsed.validity().not_after.timestamp()),
        };
        Ok(published)
    }

    fn store(&self, data: &mut Data, name: &str) {
        data.insert(name.to_owned(), ByteString(self.pem.clone().into_bytes()));
    }

    fn der(&self, name: &'static str) -> Result<CertificateDer<'static>, Error> {
        CertificateDer::from_pem_slice(self.pem.as_bytes()).map_err(|_| Error::NoCertificate(name))
    }
}

fn text<'a>(data: &'a Data, name: &'static str) -> Result<&'a str, Error> {
    let bytes = data.get(name).ok_or(Error::Missing(name))?;
    std::str::from_utf8(&bytes.0).map_err(|_| Error::Missing(name))
}

// === impl Held ===

impl Held {
    /// The first CA of an installation.
    pub fn create(schedule: &Schedule, now: SystemTime) -> Result<Self, Error> {
        let current = Authority::create(Validity::starting(now, schedule.authority))?;
        Ok(Self { current: Arc::new(current), next: None, previous: None })
    }

    /// What a Secret holds.
    pub fn load(data: &Data) -> Result<Self, Error> {
        Ok(Self {
            current: Arc::new(Authority::load(data, CURRENT)?),
            next: data.contains_key(NEXT[0]).then(|| Authority::load(data, NEXT)).transpose()?,
            previous: data.contains_key(PREVIOUS).then(|| Published::load(data, PREVIOUS)).transpose()?,
        })
    }

    /// What the Secret is to hold.
    pub fn data(&self) -> Data {
        let mut data = Data::new();
        self.current.store(&mut data, CURRENT);
        if let Some(next) = &self.next {
            next.store(&mut data, NEXT);
        }
        if let Some(previous) = &self.previous {
            previous.store(&mut data, PREVIOUS);
        }
        data
    }

    /// What `rotation` decides on.
    pub fn validities(&self) -> Authorities {
        Authorities {
            current: self.current.certificate.validity,
            next: self.next.as_ref().map(|next| next.certificate.validity),
            previous: self.previous.as_ref().map(|previous| previous.validity),
        }
    }

    /// Takes one step of a rotation.
    pub fn advance(self, step: Step, schedule: &Schedule, now: SystemTime) -> Result<Self, Error> {
        let Self { current, next, previous } = self;
        let make = || Authority::create(Validity::starting(now, schedule.authority));
        Ok(match (step, next) {
            (Step::Keep, next) => Self { current, next, previous },
            (Step::Prepare, _) => Self { current, next: Some(make()?), previous },
            (Step::Promote, Some(next)) => {
                Self { current: Arc::new(next), next: None, previous: Some(current.certificate.clone()) }
            }
            (Step::Promote | Step::Replace, _) => {
                Self { current: Arc::new(make()?), next: None, previous: Some(current.certificate.clone()) }
            }
            (Step::Retire, next) => Self { current, next, previous: None },
        })
    }

    /// The CA that signs.
    pub fn current(&self) -> &Arc<Authority> {
        &self.current
    }

    /// The certificates that clients are to trust, in PEM, the signing CA's first.
    pub fn bundle(&self) -> String {
        let next = self.next.as_ref().map(|next| &next.certificate);
        let all = [Some(&self.current.certificate), next, self.previous.as_ref()];
        all.into_iter().flatten().map(|certificate| format!("{}\n", certificate.pem.trim_end())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEDULE: Schedule = Schedule {
        authority: Duration::from_secs(360_000),
        overlap: Duration::from_secs(3600),
        leaf: Duration::from_secs(36_000),
    };

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(2_000_000_000)
    }

    #[test]
    fn what_is_stored_reads_back() {
        let held = Held::create(&SCHEDULE, now()).expect("made");
        let held = held.advance(Step::Prepare, &SCHEDULE, now()).expect("prepared");
        let loaded = Held::load(&held.data()).expect("loads");
        assert_eq!(loaded.validities(), held.validities());
        assert_eq!(loaded.bundle(), held.bundle());
        assert_eq!(loaded.data(), held.data());
        assert_eq!(loaded.bundle().matches("BEGIN CERTIFICATE").count(), 2);
    }

    #[test]
    fn a_promoted_ca_was_published_before_and_the_old_one_still_is() {
        let held = Held::create(&SCHEDULE, now()).expect("made");
        let held = held.advance(Step::Prepare, &SCHEDULE, now()).expect("prepared");
        let prepared = held.bundle();
        let held = held.advance(Step::Promote, &SCHEDULE, now()).expect("promoted");
        let mut before: Vec<_> = prepared.split_inclusive("-----END CERTIFICATE-----\n").collect();
        before.reverse();
        assert_eq!(held.bundle(), before.concat());
        assert!(!held.data().contains_key("next.key"));
        let held = held.advance(Step::Retire, &SCHEDULE, now()).expect("retired");
        assert_eq!(held.bundle(), before[0]);
    }

    #[test]
    fn a_leaf_verifies_against_its_ca_and_names_what_was_asked() {
        let held = Held::create(&SCHEDULE, now()).expect("made");
        let leaf = held
            .current()
            .issue(&["push.system.svc".to_owned()], Validity::starting(now(), SCHEDULE.leaf))
            .expect("issued");
        let ca = CertificateDer::from_pem_slice(held.bundle().as_bytes()).expect("PEM");
        let (_, ca) = x509_parser::parse_x509_certificate(&ca).expect("DER");
        let (_, parsed) = x509_parser::parse_x509_certificate(&leaf.chain[0]).expect("DER");
        parsed.verify_signature(Some(ca.public_key())).expect("signed by the CA");
        assert!(ca.is_ca() && !parsed.is_ca());
        let names = format!("{:?}", parsed.subject_alternative_name().expect("valid").expect("there").value);
        assert!(names.contains("push.system.svc"), "{names}");
    }

    #[test]
    fn a_request_gets_the_names_given_and_not_those_it_asks_for() {
        let held = Held::create(&SCHEDULE, now()).expect("made");
        let key = KeyPair::generate().expect("a key");
        let asked = CertificateParams::new(vec![String::from("outrigger-push.system.svc")]).expect("a name");
        let request = asked.serialize_request(&key).expect("a request").pem().expect("PEM");
        let validity = Validity::starting(now(), SCHEDULE.leaf);
        let certified =
            held.current().certify(&request, &["uid.workload".to_owned()], validity).expect("signed");
        let der = CertificateDer::from_pem_slice(certified.pem.as_bytes()).expect("PEM");
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).expect("DER");
        assert_eq!(parsed.public_key().raw, key.subject_public_key_info());
        let names = format!("{:?}", parsed.subject_alternative_name().expect("valid").expect("there").value);
        assert!(names.contains("uid.workload") && !names.contains("push"), "{names}");
        assert!(!parsed.is_ca());
        let usage = parsed.extended_key_usage().expect("valid").expect("there").value;
        assert!(usage.client_auth && usage.server_auth && !usage.any);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let held = Held::create(&SCHEDULE, now()).expect("made");
        let key = KeyPair::generate().expect("a key");
        let request = CertificateParams::default().serialize_request(&key).expect("a request");
        let mut forged = request.der().to_vec();
        let last = forged.len() - 1;
        forged[last] ^= 1; // the signature proves that the key is held
        let forged = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, forged)
        );
        let validity = Validity::starting(now(), SCHEDULE.leaf);
        for wrong in ["", "garbage", held.current().certificate(), &forged] {
            let refused = held.current().certify(wrong, &["a.b".to_owned()], validity);
            assert!(matches!(refused, Err(Error::Request(_))), "{wrong}");
        }
    }

    #[test]
    fn a_damaged_secret_is_refused_with_the_key_that_is_wrong() {
        let good = Held::create(&SCHEDULE, now()).expect("made").data();
        let other = Held::create(&SCHEDULE, now()).expect("made").data();
        let error = |change: &dyn Fn(&mut Data)| {
            let mut data = good.clone();
            change(&mut data);
            Held::load(&data).err().expect("refused").to_string()
        };
        assert_eq!(error(&|data| drop(data.remove("tls.key"))), "'tls.key' is missing or no text");
        assert_eq!(
            error(&|data| drop(data.insert("tls.key".into(), other["tls.key"].clone()))),
            "'tls.key' is not the key of its certificate"
        );
        assert_eq!(
            error(&|data| drop(data.insert("tls.crt".into(), ByteString(b"garbage".to_vec())))),
            "'tls.crt' holds no certificate"
        );
        assert_eq!(
            error(&|data| drop(data.insert("next.crt".into(), good["tls.crt"].clone()))),
            "'next.key' is missing or no text"
        );
    }
}

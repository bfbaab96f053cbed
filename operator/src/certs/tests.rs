pub(crate) mod fake;

use rustls::pki_types::ServerName;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use self::fake::Fake;
use super::*;

const DAY: Duration = Duration::from_secs(86_400);
const SECRET: &str = "/api/v1/namespaces/system/secrets/outrigger-ca";
const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/outrigger";
const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/outrigger";

fn settings() -> Settings {
    Settings {
        ca_secret: "outrigger-ca".into(),
        tls_services: vec!["outrigger-push".into(), "outrigger-webhook".into()],
        cluster_domain: "cluster.local".into(),
        mutating_webhook: Some("outrigger".into()),
        validating_webhook: Some("outrigger".into()),
        ca_lifetime: DAY * 360,
        ca_overlap: DAY * 30,
        certificate_lifetime: DAY * 30,
        namespace: "system".into(),
        owner: Some("outrigger-push".into()),
    }
}

fn keeper(api: &Fake) -> Keeper {
    let (client, settings) = (api.client(), settings());
    let store = Store::new(client.clone(), "system", &settings.ca_secret, settings.owner.as_deref());
    Keeper { client, store, settings, held: None, leaf: None }
}

fn day(day: u32) -> SystemTime {
    SystemTime::UNIX_EPOCH + DAY * (20_000 + day)
}

#[tokio::test]
async fn replicas_that_start_together_share_one_ca() {
    let api = Fake::start().await;
    let (mut one, mut two) = (keeper(&api), keeper(&api));
    let (first, second) = tokio::join!(one.look(false, day(0)), two.look(false, day(0)));
    assert!(first.is_ok() || second.is_ok());
    let (_, a) = one.look(false, day(0)).await.expect("read");
    let (_, b) = two.look(false, day(0)).await.expect("read");
    assert_eq!(a, b);
    let secret = api.get(SECRET).expect("made");
    assert_eq!(secret["metadata"]["ownerReferences"][0]["uid"], "service-uid");
    assert!(api.get(MUTATING).expect("there")["webhooks"][0]["clientConfig"]["caBundle"].is_null());
}

#[tokio::test]
async fn through_two_years_every_certificate_is_trusted_by_who_listened_within_the_overlap() {
    let api = Fake::start().await;
    let (mut leader, mut follower) = (keeper(&api), keeper(&api));
    let mut bundles = Vec::new();
    let mut signers = std::collections::BTreeSet::new();
    for today in 0..730 {
        let (_, bundle) = leader.look(true, day(today)).await.expect("kept");
        let (_, same) = follower.look(false, day(today)).await.expect("kept");
        assert_eq!(bundle, same, "day {today}");
        let known = bundles.get(bundles.len().saturating_sub(30)).unwrap_or(&bundle);
        for keeper in [&leader, &follower] {
            let (validity, signer) = keeper.leaf.as_ref().expect("there");
            assert!(validity.not_before <= day(today) && day(today) < validity.not_after);
            assert!(known.contains(signer.trim_end()), "day {today}");
            signers.insert(signer.clone());
        }
        bundles.push(bundle);
    }
    assert_eq!(signers.len(), 3);
}

#[tokio::test]
async fn a_lost_secret_is_restored_by_the_lease_holder() {
    let api = Fake::start().await;
    let (mut leader, mut follower) = (keeper(&api), keeper(&api));
    let (_, before) = leader.look(true, day(0)).await.expect("made");
    follower.look(false, day(0)).await.expect("read");
    api.remove(SECRET);
    let (leaf, kept) = follower.look(false, day(1)).await.expect("kept");
    assert!(leaf.is_none() && kept == before && api.get(SECRET).is_none());
    leader.look(true, day(1)).await.expect("restored");
    let (_, after) = keeper(&api).look(false, day(1)).await.expect("read");
    assert_eq!(after, before);
}

#[tokio::test]
async fn a_secret_that_is_not_ours_is_not_overwritten() {
    let api = Fake::start().await;
    let mut leader = keeper(&api);
    leader.look(true, day(0)).await.expect("made");
    let mut secret = api.get(SECRET).expect("made");
    secret["data"]["tls.crt"] = json!("Z2FyYmFnZQ==");
    api.put(SECRET, secret.clone());
    let error = leader.look(true, day(300)).await.expect_err("refused").to_string();
    assert!(error.contains("'outrigger-ca' is unusable: 'tls.crt' holds no certificate"), "{error}");
    assert_eq!(api.get(SECRET).expect("there")["data"], secret["data"]);
}

#[tokio::test]
async fn the_lease_holder_keeps_the_webhook_configurations() {
    let api = Fake::start().await;
    let mut leader = keeper(&api);
    for today in 0..2 {
        let (_, bundle) = leader.look(true, day(today)).await.expect("kept");
        for path in [MUTATING, VALIDATING] {
            let mut configuration = api.get(path).expect("there");
            let expected = json!(k8s_openapi::ByteString(bundle.clone().into_bytes()));
            assert_eq!(configuration["webhooks"][0]["clientConfig"]["caBundle"], expected);
            configuration["webhooks"][0]["clientConfig"] = json!({}); // somebody upgrades the chart
            api.put(path, configuration);
        }
    }
}

#[tokio::test]
async fn the_certificate_changes_under_load_and_no_handshake_fails() {
    let names = settings().names();
    let held = Held::create(&settings().schedule(), now()).expect("made");
    let issue = || {
        let leaf = held.current().issue(&names, Validity::starting(now(), DAY)).expect("issued");
        certified(leaf).expect("usable")
    };
    let (certificates, _changes) =
        Certificates::new(issue(), held.bundle(), held.current().clone()).expect("made");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let acceptor = tokio_rustls::TlsAcceptor::from(certificates.server_config(&["h2"]));
    let server = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accepted");
            tokio::spawn(acceptor.accept(stream));
        }
    });
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(certificates.trust_bundle().as_bytes()) {
        roots.add(root.expect("PEM")).expect("a CA");
    }
    let mut seen = std::collections::HashSet::new();
    for i in 0..100 {
        let mut client =
            rustls::ClientConfig::builder().with_root_certificates(roots.clone()).with_no_client_auth();
        client.alpn_protocols = vec![b"h2".to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(client));
        let name = ServerName::try_from(names[i % names.len()].clone()).expect("a name");
        let stream = TcpStream::connect(address).await.expect("connected");
        let stream = connector.connect(name, stream).await.expect("verified");
        seen.insert(stream.get_ref().1.peer_certificates().expect("there")[0].to_vec());
        certificates.shared.leaf.store(issue());
    }
    assert_eq!(seen.len(), 100, "each handshake saw the newest");
    server.abort();
}

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::*;
use crate::controller::observe::{Phase, World};

fn status(change: impl FnOnce(&mut serde_json::Value)) -> TokenReviewStatus {
    let mut status = json!({
        "authenticated": true,
        "audiences": [AUDIENCE],
        "user": {
            "username": "system:serviceaccount:shop:web",
            "extra": {POD_NAME: ["web-1"], POD_UID: ["uid-1"]},
        },
    });
    change(&mut status);
    serde_json::from_value(status).expect("a status")
}

#[test]
fn a_pods_token_for_us_is_believed() {
    let bearer = judge(&status(|_| ())).expect("valid");
    assert_eq!((bearer.namespace.as_str(), bearer.service_account.as_str()), ("shop", "web"));
    assert_eq!(bearer.pod, Some(("web-1".to_owned(), "uid-1".to_owned())));
}

#[test]
fn everything_else_is_not() {
    let refused = |change: fn(&mut serde_json::Value)| judge(&status(change)).expect_err("refused");
    assert_eq!(
        refused(|s| s["authenticated"] = json!(false)),
        Refusal::Invalid("it was not accepted".into())
    );
    assert_eq!(refused(|s| s["authenticated"] = json!(null)), Refusal::Invalid("it was not accepted".into()));
    assert_eq!(refused(|s| s["audiences"] = json!(["https://kubernetes.default.svc"])), Refusal::Audience);
    assert_eq!(refused(|s| s["audiences"] = json!(null)), Refusal::Audience);
    assert_eq!(
        refused(|s| s["user"]["username"] = json!("admin")),
        Refusal::NotAServiceAccount("admin".into())
    );
    let unbound = judge(&status(|s| s["user"]["extra"] = json!({POD_NAME: ["web-1"]}))).expect("valid");
    assert_eq!(unbound.pod, None);
    let ambiguous = judge(&status(|s| s["user"]["extra"][POD_UID] = json!(["a", "b"]))).expect("valid");
    assert_eq!(ambiguous.pod, None);
}

fn jwt(expires: i64) -> String {
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(json!({ "exp": expires }).to_string()))
}

#[test]
fn a_verdict_is_believed_no_longer_than_the_token_is_valid() {
    let good = judge(&status(|_| ()));
    assert_eq!(lifetime(&good, &jwt(1000), 0), GOOD);
    assert_eq!(lifetime(&good, &jwt(1000), 900), Duration::from_secs(100));
    assert_eq!(lifetime(&good, &jwt(1000), 2000), Duration::ZERO);
    assert_eq!(lifetime(&good, "opaque", 0), BAD);
    assert_eq!(lifetime(&Err(Refusal::Audience), &jwt(1000), 0), BAD);
}

/// An API server that says the same of every token.
struct Says(Arc<AtomicUsize>, TokenReviewStatus);

impl Review for Says {
    fn review(&self, _: &str) -> BoxFuture<'_, Result<TokenReviewStatus, kube::Error>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(self.1.clone()) })
    }
}

fn headers(token: &str) -> http::HeaderMap {
    let value = format!("Bearer {token}").parse().expect("a header value");
    [(http::header::AUTHORIZATION, value)].into_iter().collect()
}

fn world(uid: &str, service_account: &str) -> World {
    let pod = PodFacts {
        name: "web-1".to_owned(),
        namespace: "shop".to_owned(),
        uid: uid.into(),
        labels: [].into(),
        phase: Phase::Running,
        terminating: false,
        service_account: service_account.to_owned(),
        place: None,
        drain: None,
    };
    World { pods: vec![Arc::new(pod)], ..World::default() }
}

fn identity(status: TokenReviewStatus) -> (Identity, Observed, Arc<AtomicUsize>) {
    let (asked, observed) = (Arc::new(AtomicUsize::new(0)), Observed::empty());
    let says = Says(asked.clone(), status);
    (Identity::new(says, observed.clone(), Arc::new(Metrics::new())), observed, asked)
}

#[tokio::test(start_paused = true)]
async fn the_pod_must_be_there_with_the_same_uid_and_account() {
    let (identity, observed, _) = identity(status(|_| ()));
    let refused = Err(Refusal::UnknownPod("shop/web-1".to_owned()));
    assert_eq!(identity.proxy(&headers("t")).await, refused);
    observed.replace(world("another", "web"));
    assert_eq!(identity.proxy(&headers("t")).await, refused);
    observed.replace(world("uid-1", "other"));
    assert_eq!(identity.proxy(&headers("t")).await, refused);
    observed.replace(world("uid-1", "web"));
    assert_eq!(identity.proxy(&headers("t")).await.expect("known").name, "web-1");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_watch_shows_a_moment_later_is_waited_for() {
    let (identity, observed, _) = identity(status(|_| ()));
    let later = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        observed.replace(world("uid-1", "web"));
    };
    let (headers, ()) = (headers("t"), ());
    let (pod, ()) = tokio::join!(identity.proxy(&headers), later);
    assert!(pod.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_api_server_is_asked_once_per_token_and_time() {
    let (identity, observed, asked) = identity(status(|_| ()));
    observed.replace(world("uid-1", "web"));
    let token = jwt(Timestamp::now().as_second() + 3600);
    for _ in 0..3 {
        identity.proxy(&headers(&token)).await.expect("known");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    tokio::time::advance(GOOD).await;
    identity.proxy(&headers(&token)).await.expect("known");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_replica_is_told_by_its_service_account() {
    let (identity, _, _) = identity(status(|_| ()));
    assert_eq!(identity.replica(&headers("t"), "shop", "web").await, Ok(()));
    let refused = Err(Refusal::NotAReplica("shop/web".to_owned()));
    assert_eq!(identity.replica(&headers("t"), "outrigger", "web").await, refused);
    assert_eq!(identity.replica(&http::HeaderMap::new(), "shop", "web").await, Err(Refusal::NoToken));
}

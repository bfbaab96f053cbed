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

const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

/// A token that says this of itself.
fn says(change: impl FnOnce(&mut serde_json::Value)) -> String {
    let mut payload = json!({
        "aud": [AUDIENCE],
        "exp": Timestamp::now().as_second() + 3600,
        "kubernetes.io": {
            "namespace": "shop",
            "pod": {"name": "web-1", "uid": "uid-1"},
            "serviceaccount": {"name": "web", "uid": "account-1"},
        },
    });
    change(&mut payload);
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload.to_string()))
}

fn jwt(expires: i64) -> String {
    says(|payload| payload["exp"] = json!(expires))
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
    assert_eq!(identity.proxy(&headers(&says(|_| ())), HERE).await, refused);
    observed.replace(world("another", "web"));
    assert_eq!(identity.proxy(&headers(&says(|_| ())), HERE).await, refused);
    observed.replace(world("uid-1", "other"));
    assert_eq!(identity.proxy(&headers(&says(|_| ())), HERE).await, refused);
    observed.replace(world("uid-1", "web"));
    assert_eq!(identity.proxy(&headers(&says(|_| ())), HERE).await.expect("known").name, "web-1");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_the_watch_shows_a_moment_later_is_waited_for() {
    let (identity, observed, _) = identity(status(|_| ()));
    let later = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        observed.replace(world("uid-1", "web"));
    };
    let (headers, ()) = (headers(&says(|_| ())), ());
    let (pod, ()) = tokio::join!(identity.proxy(&headers, HERE), later);
    assert!(pod.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_api_server_is_asked_once_per_token_and_time() {
    let (identity, observed, asked) = identity(status(|_| ()));
    observed.replace(world("uid-1", "web"));
    let token = jwt(Timestamp::now().as_second() + 3600);
    for _ in 0..3 {
        identity.proxy(&headers(&token), HERE).await.expect("known");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    tokio::time::advance(GOOD).await;
    identity.proxy(&headers(&token), HERE).await.expect("known");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_replica_is_told_by_its_service_account() {
    let (identity, _, asked) = identity(status(|_| ()));
    let token = says(|_| ());
    assert_eq!(identity.replica(&headers(&token), HERE, ("shop", "web")).await, Ok(()));
    let refused = Err(Refusal::NotAReplica("shop/web".to_owned()));
    assert_eq!(identity.replica(&headers(&token), HERE, ("outrigger", "web")).await, refused);
    let lies = says(|payload| payload["kubernetes.io"]["namespace"] = json!("outrigger"));
    assert_eq!(identity.replica(&headers(&lies), HERE, ("outrigger", "web")).await, refused);
    assert_eq!(identity.replica(&http::HeaderMap::new(), HERE, ("shop", "web")).await, Err(Refusal::NoToken));
    assert_eq!(asked.load(Ordering::Relaxed), 2, "for the good one, and for the lie");
}

#[tokio::test(start_paused = true)]
async fn the_api_server_is_not_asked_of_what_says_nothing_good_of_itself() {
    let (identity, observed, asked) = identity(status(|_| ()));
    observed.replace(world("uid-1", "web"));
    let no_token = || Refusal::Invalid("it is no ServiceAccount token".into());
    for (token, refusal) in [
        ("guess".to_owned(), no_token()),
        ("a.b.c".to_owned(), no_token()),
        ("e30.e30.c2ln".to_owned(), no_token()),
        (says(|payload| payload["aud"] = json!("https://kubernetes.default.svc")), Refusal::Audience),
        (jwt(1000), Refusal::Invalid("it has expired".into())),
        (says(|payload| payload["kubernetes.io"]["pod"] = json!(null)), Refusal::NotAPod),
        (
            says(|payload| payload["kubernetes.io"]["pod"]["uid"] = json!("another")),
            Refusal::UnknownPod("shop/web-1".into()),
        ),
    ] {
        assert_eq!(identity.proxy(&headers(&token), HERE).await, Err(refusal), "{token}");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn what_a_token_says_is_not_what_it_proves() {
    let (identity, observed, _) = identity(status(|status| {
        status["user"]["extra"] = json!({POD_NAME: ["web-2"], POD_UID: ["uid-2"]});
    }));
    observed.replace(world("uid-1", "web"));
    let refused = Err(Refusal::UnknownPod("shop/web-2".to_owned()));
    assert_eq!(identity.proxy(&headers(&says(|_| ())), HERE).await, refused);
}

#[tokio::test]
async fn one_address_takes_up_a_few_reviews_at_most() {
    let reviews = Reviews::default();
    let other = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
    let mut held = Vec::new();
    for _ in 0..REVIEWS_OF_ONE {
        held.push(reviews.slot(HERE).await.expect("a slot"));
    }
    assert!(reviews.slot(HERE).await.is_none());
    assert!(reviews.slot(other).await.is_some(), "others have theirs");
    held.pop();
    assert!(reviews.slot(HERE).await.is_some());
    drop(held);
    assert!(reviews.by_address.lock().is_empty());
}

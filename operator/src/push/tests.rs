use outrigger_policy::siblings::{Sibling, Siblings, SiblingsChange};
use outrigger_policy::wire::{FromOperator, Update};
use tokio::time::timeout;

use super::*;
use crate::controller::observe::Phase;
use crate::controller::resolve::Group;

pub(crate) fn pod(name: &str) -> Arc<PodFacts> {
    Arc::new(PodFacts {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        uid: format!("uid-{name}").into(),
        labels: [].into(),
        phase: Phase::Running,
        terminating: false,
        service_account: "web".to_owned(),
        place: None,
        drain: None,
    })
}

/// One group of these pods that is to have version `version`.
pub(crate) fn resolved(version: &str, pods: &[&Arc<PodFacts>]) -> Resolved {
    let update = Update { version: version.to_owned(), ..Update::default() };
    let pods = pods.iter().map(|pod| (*pod).clone()).collect();
    let group = Group { policies: vec![], origins: [].into(), target: Arc::new(Target::new(update)), pods };
    Resolved { policies: vec![], groups: vec![group], ..Resolved::default() }
}

fn holds(version: &str) -> Holds {
    Holds { update: Some(version.to_owned()), siblings: None }
}

fn hub() -> Arc<Hub> {
    Hub::new(Arc::new(Metrics::new()))
}

fn ack(version: &str) -> Ack {
    Ack { version: version.to_owned(), violations: vec![] }
}

async fn next(connection: &mut Connection) -> Option<String> {
    match timeout(Duration::from_secs(1), connection.next()).await.expect("not in time")? {
        News::Target(target) => Some(target.version.to_string()),
        News::Siblings(line) => panic!("not a policy: {line:?}"),
    }
}

async fn nothing(connection: &mut Connection) -> bool {
    timeout(Duration::from_millis(20), connection.next()).await.is_err()
}

#[tokio::test]
async fn a_stream_gets_the_latest_target_only() {
    let (hub, a) = (hub(), pod("a"));
    let mut connection = hub.connect(&a, Holds::default());
    assert!(nothing(&mut connection).await);
    for version in ["1", "2", "3"] {
        hub.publish(hub.begin(), &resolved(version, &[&a]));
    }
    assert_eq!(next(&mut connection).await.as_deref(), Some("3"));
    hub.publish(hub.begin(), &resolved("3", &[&a]));
    assert!(nothing(&mut connection).await, "the same again is nothing");
    assert_eq!(hub.receive(&a.uid, &ack("3")), Some(Reception::Acknowledged));
    assert_eq!(hub.answers()[&a.uid].version.as_deref(), Some("3"));
}

#[tokio::test]
async fn what_the_proxy_holds_is_not_sent() {
    let (hub, a) = (hub(), pod("a"));
    hub.publish(hub.begin(), &resolved("1", &[&a]));
    let mut connection = hub.connect(&a, holds("1"));
    assert!(nothing(&mut connection).await);
    assert_eq!(hub.answers()[&a.uid].version.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_stream_ends_with_its_pod() {
    let (hub, a) = (hub(), pod("a"));
    hub.publish(hub.begin(), &resolved("1", &[&a]));
    let mut connection = hub.connect(&a, Holds::default());
    next(&mut connection).await;
    hub.publish(hub.begin(), &resolved("1", &[]));
    assert_eq!(next(&mut connection).await, None);
    drop(connection);
    assert!(hub.answers().is_empty());
}

#[tokio::test]
async fn a_stream_that_opens_while_the_world_is_looked_at_stays() {
    let (hub, a) = (hub(), pod("a"));
    let round = hub.begin();
    let mut connection = hub.connect(&a, Holds::default());
    hub.publish(round, &resolved("1", &[]));
    assert!(nothing(&mut connection).await);
    hub.publish(hub.begin(), &resolved("1", &[&a]));
    assert_eq!(next(&mut connection).await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_new_stream_of_the_same_pod_takes_over() {
    let (hub, a) = (hub(), pod("a"));
    hub.publish(hub.begin(), &resolved("1", &[&a]));
    let mut old = hub.connect(&a, Holds::default());
    let mut new = hub.connect(&a, Holds::default());
    assert_eq!(next(&mut old).await, None);
    assert_eq!(next(&mut new).await.as_deref(), Some("1"));
    drop(old);
    assert!(hub.answers()[&a.uid].connected, "the old one's end is not the new one's");
}

#[tokio::test]
async fn an_answer_outlives_its_stream_unless_something_newer_was_sent() {
    let (hub, a) = (hub(), pod("a"));
    hub.publish(hub.begin(), &resolved("1", &[&a]));
    let mut connection = hub.connect(&a, Holds::default());
    next(&mut connection).await;
    hub.receive(&a.uid, &ack("1"));
    drop(connection);
    let answer = hub.answers()[&a.uid].clone();
    assert_eq!((answer.version.as_deref(), answer.connected), (Some("1"), false));

    let mut connection = hub.connect(&a, holds("1"));
    assert!(nothing(&mut connection).await);
    hub.publish(hub.begin(), &resolved("2", &[&a]));
    next(&mut connection).await;
    drop(connection);
    assert_eq!(hub.answers()[&a.uid].version, None);
    assert_eq!(hub.receive(&a.uid, &ack("2")), None, "no stream, no answer");
}

fn sibling_set(pods: &[&str]) -> Arc<SiblingSet> {
    Arc::new(SiblingSet::new(Siblings::new(pods.iter().map(|pod| Sibling {
        instance: format!("uid-{pod}"),
        pod: (*pod).to_owned(),
        address: ([10, 0, 0, 1], 8001).into(),
        zone: String::new(),
        ready: true,
        workers: vec![],
        version: None,
        workload: None,
    }))))
}

async fn change(connection: &mut Connection) -> Option<SiblingsChange> {
    let news = timeout(Duration::from_millis(20), connection.next()).await.ok()?.expect("the stream goes on");
    let News::Siblings(line) = news else { return Box::pin(change(connection)).await };
    match serde_json::from_slice(&line).expect("a message") {
        FromOperator::Siblings(change) => Some(change),
        other => panic!("not siblings: {other:?}"),
    }
}

/// Publishes the same policy for `a`, and these siblings.
fn publish_siblings(hub: &Hub, a: &Arc<PodFacts>, pods: &[&str]) {
    let mut resolved = resolved("1", &[a]);
    if !pods.is_empty() {
        resolved.siblings.insert(a.uid.clone(), sibling_set(pods));
    }
    hub.publish(hub.begin(), &resolved);
}

#[tokio::test]
async fn siblings_come_whole_and_then_as_differences() {
    let (hub, a) = (hub(), pod("a"));
    publish_siblings(&hub, &a, &["a", "b"]);
    let mut connection = hub.connect(&a, Holds::default());
    next(&mut connection).await;
    let whole = change(&mut connection).await.expect("the list");
    assert_eq!((whole.base.clone(), whole.upsert.len()), (None, 2));
    let held = Siblings::default().after(whole).expect("applies");
    publish_siblings(&hub, &a, &["a", "b"]);
    assert_eq!(change(&mut connection).await, None, "the same again is nothing");

    publish_siblings(&hub, &a, &["a"]);
    publish_siblings(&hub, &a, &["a", "c"]);
    let difference = change(&mut connection).await.expect("the latest alone");
    assert_eq!(difference.remove, ["uid-b"]);
    let held = held.after(difference).expect("applies");
    assert!(nothing(&mut connection).await, "siblings are no new policy");

    publish_siblings(&hub, &a, &[]);
    assert_eq!(change(&mut connection).await, None, "the policy reaches siblings no longer");
    publish_siblings(&hub, &a, &["a", "b", "c"]);
    let difference = change(&mut connection).await.expect("again");
    assert_eq!(held.after(difference).expect("goes on from what was sent").members().count(), 3);
}

#[tokio::test]
async fn any_replica_goes_on_where_the_last_one_ended() {
    let (hub, a) = (hub(), pod("a"));
    publish_siblings(&hub, &a, &["a", "b"]);
    let held = sibling_set(&["a", "b"]).siblings.version().to_owned();
    let mut same = hub.connect(&a, Holds { siblings: Some(held), update: None });
    assert_eq!(change(&mut same).await, None, "the proxy has it");
    publish_siblings(&hub, &a, &["a"]);
    let difference = change(&mut same).await.expect("a difference");
    assert_eq!((difference.base.is_some(), difference.remove.len()), (true, 1));
    let mut other = hub.connect(&a, Holds { siblings: Some(String::from("older")), update: None });
    assert_eq!(change(&mut other).await.expect("the list").base, None, "unknown here: the whole list");
}

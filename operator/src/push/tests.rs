use outrigger_policy::wire::Update;
use tokio::time::timeout;

use super::*;
use crate::controller::observe::Phase;
use crate::controller::resolve::Group;

pub(super) fn pod(name: &str) -> Arc<PodFacts> {
    Arc::new(PodFacts {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        uid: format!("uid-{name}").into(),
        labels: [].into(),
        phase: Phase::Running,
        terminating: false,
        service_account: "web".to_owned(),
    })
}

/// One group of these pods that is to have version `version`.
pub(super) fn resolved(version: &str, pods: &[&Arc<PodFacts>]) -> Resolved {
    let update = Update { version: version.to_owned(), ..Update::default() };
    let pods = pods.iter().map(|pod| (*pod).clone()).collect();
    let group = Group { policies: vec![], origins: [].into(), target: Arc::new(Target::new(update)), pods };
    Resolved { policies: vec![], groups: vec![group] }
}

fn hub() -> Arc<Hub> {
    Hub::new(Arc::new(Metrics::new()))
}

fn ack(version: &str) -> Ack {
    Ack { version: version.to_owned(), violations: vec![] }
}

async fn next(connection: &mut Connection) -> Option<String> {
    let target = timeout(Duration::from_secs(1), connection.next()).await.expect("not in time")?;
    Some(target.version.to_string())
}

async fn nothing(connection: &mut Connection) -> bool {
    timeout(Duration::from_millis(20), connection.next()).await.is_err()
}

#[tokio::test]
async fn a_stream_gets_the_latest_target_only() {
    let (hub, a) = (hub(), pod("a"));
    let mut connection = hub.connect(&a, None);
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
    let mut connection = hub.connect(&a, Some("1".to_owned()));
    assert!(nothing(&mut connection).await);
    assert_eq!(hub.answers()[&a.uid].version.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_stream_ends_with_its_pod() {
    let (hub, a) = (hub(), pod("a"));
    hub.publish(hub.begin(), &resolved("1", &[&a]));
    let mut connection = hub.connect(&a, None);
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
    let mut connection = hub.connect(&a, None);
    hub.publish(round, &resolved("1", &[]));
    assert!(nothing(&mut connection).await);
    hub.publish(hub.begin(), &resolved("1", &[&a]));
    assert_eq!(next(&mut connection).await.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_new_stream_of_the_same_pod_takes_over() {
    let (hub, a) = (hub(), pod("a"));
    hub.publish(hub.begin(), &resolved("1", &[&a]));
    let mut old = hub.connect(&a, None);
    let mut new = hub.connect(&a, None);
    assert_eq!(next(&mut old).await, None);
    assert_eq!(next(&mut new).await.as_deref(), Some("1"));
    drop(old);
    assert!(hub.answers()[&a.uid].connected, "the old one's end is not the new one's");
}

#[tokio::test]
async fn an_answer_outlives_its_stream_unless_something_newer_was_sent() {
    let (hub, a) = (hub(), pod("a"));
    hub.publish(hub.begin(), &resolved("1", &[&a]));
    let mut connection = hub.connect(&a, None);
    next(&mut connection).await;
    hub.receive(&a.uid, &ack("1"));
    drop(connection);
    let answer = hub.answers()[&a.uid].clone();
    assert_eq!((answer.version.as_deref(), answer.connected), (Some("1"), false));

    let mut connection = hub.connect(&a, Some("1".to_owned()));
    assert!(nothing(&mut connection).await);
    hub.publish(hub.begin(), &resolved("2", &[&a]));
    next(&mut connection).await;
    drop(connection);
    assert_eq!(hub.answers()[&a.uid].version, None);
    assert_eq!(hub.receive(&a.uid, &ack("2")), None, "no stream, no answer");
}

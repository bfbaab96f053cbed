//! How a proxy learns of its siblings: the operator's hub and CA, and real proxies, in one process.

use std::net::SocketAddr;
use std::time::Duration;

use system_tests::siblings::{Beside, Operator, Pod};

const WORKLOAD: &str = "{loadBalancer: {scope: Workload}}";
const NOBODY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

#[tokio::test(flavor = "multi_thread")]
async fn siblings_arrive_and_leave() {
    let operator = Operator::start().await;
    let (a, b) = (Beside::start(&operator, "a", &[NOBODY]), Beside::start(&operator, "b", &[NOBODY]));
    let unready = Pod { ready: false, ..Pod::of(&b) };
    let other = Pod { workload: String::from("v"), ..Pod::of(&b) };

    operator.put(WORKLOAD, &[Pod::of(&a)]);
    operator.put(WORKLOAD, &[Pod::of(&a), Pod::of(&b)]);
    a.reaches(&["b"]).await;
    b.reaches(&["a"]).await;
    let kept = a.control.snapshot().siblings.members()[0].id;
    operator.put(WORKLOAD, &[Pod::of(&a), unready]);
    a.reaches(&[]).await;
    operator.put(WORKLOAD, &[Pod::of(&a), Pod::of(&b)]);
    a.reaches(&["b"]).await;
    assert_eq!(a.control.snapshot().siblings.members()[0].id, kept, "the same one, with its state");
    operator.put(WORKLOAD, &[Pod::of(&a), other]);
    a.reaches(&[]).await;
    assert!(a.control.snapshot().siblings.members().is_empty(), "it is of another workload");
    b.reaches(&[]).await;
    operator.put(WORKLOAD, &[Pod::of(&a), Pod::of(&b)]);
    b.reaches(&["a"]).await;
    operator.put(WORKLOAD, &[Pod::of(&a)]);
    a.reaches(&[]).await;
    assert_eq!(b.usable(), ["a"], "its stream is over, and what it knew last stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_and_the_zone_are_shown() {
    let operator = Operator::start().await;
    let (a, b) = (Beside::start(&operator, "a", &[NOBODY]), Beside::start(&operator, "b", &[NOBODY, NOBODY]));
    let west = |proxy| Pod { zone: String::from("west"), ..Pod::of(proxy) };
    operator.put(WORKLOAD, &[west(&a), west(&b)]);
    a.reaches(&["b"]).await;
    let view = a.view().await;
    let siblings = &view["siblings"];
    assert_eq!((&siblings["zone"], &siblings["instance"]), (&"west".into(), &"uid-a".into()), "{view}");
    let left = siblings["certificateExpiresAfterSeconds"].as_u64().expect("certified");
    assert!((86_000..=86_400).contains(&left), "{left}");
    let member = &siblings["members"][0];
    assert_eq!((&member["pod"], &member["usable"]), (&"b".into(), &true.into()), "{view}");
    assert_eq!(member["workers"], serde_json::json!(["worker-1", "worker-2"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_stays_in_the_pod_tells_nothing_and_certifies_nobody() {
    let operator = Operator::start().await;
    let (a, b) = (Beside::start(&operator, "a", &[NOBODY]), Beside::start(&operator, "b", &[NOBODY]));
    operator.put("{loadBalancer: {scope: Pod}}", &[Pod::of(&a), Pod::of(&b)]);
    let in_force = |proxy: &Beside| proxy.control.snapshot().origins().contains_key("loadBalancer");
    for _ in 0..2000 {
        if in_force(&a) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(in_force(&a));
    assert!(a.view().await["siblings"].is_null());
    assert!(a.control.snapshot().siblings.identity().current(std::time::Instant::now()).is_none());
    operator.put(WORKLOAD, &[Pod::of(&a), Pod::of(&b)]);
    a.reaches(&["b"]).await;
}

use serde_json::{Value, json};

use super::*;

fn pod(change: impl FnOnce(&mut Value)) -> Pod {
    let mut pod = json!({
        "metadata": {
            "name": "web-7d9f8-x2x4", "namespace": "shop", "uid": "u",
            "labels": {"pod-template-hash": "7d9f8"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d9f8", "uid": "o", "controller": true,
            }],
        },
        "spec": {
            "nodeName": "node-1",
            "containers": [],
            "initContainers": [{
                "name": "outrigger-proxy",
                "env": [{"name": "OUTRIGGER_WORKERS", "value": "worker-a=127.0.0.1:8081,worker-b=127.0.0.1:8082"}],
                "ports": [{"name": "outrigger-peers", "containerPort": 8001}],
            }],
        },
        "status": {
            "phase": "Running", "podIP": "10.0.0.7",
            "initContainerStatuses": [{
                "name": "outrigger-proxy", "ready": true, "image": "", "imageID": "", "restartCount": 0,
            }],
        },
    });
    change(&mut pod);
    serde_json::from_value(pod).expect("a pod")
}

#[test]
fn a_pods_place() {
    let found = place(&pod(|_| {})).expect("a sibling");
    assert_eq!(
        found,
        Place {
            workload: workload_id(&["shop", "Deployment", "web"]),
            ip: Some([10, 0, 0, 7].into()),
            port: 8001,
            node: String::from("node-1"),
            ready: true,
            workers: vec![String::from("worker-a"), String::from("worker-b")],
        }
    );
    let next = pod(|pod| {
        pod["metadata"]["labels"]["pod-template-hash"] = "c4c4c".into();
        pod["metadata"]["ownerReferences"][0]["name"] = "web-c4c4c".into();
    });
    assert_eq!(place(&next).expect("a sibling").workload, found.workload, "another revision of it");
    let unready = pod(|pod| pod["status"]["initContainerStatuses"][0]["ready"] = false.into());
    assert!(!place(&unready).expect("a sibling").ready);
}

#[test]
fn a_workload_is_what_one_controller_made_in_one_namespace() {
    let own = workload(&pod(|_| {}));
    let set = pod(|pod| {
        pod["metadata"]["ownerReferences"][0]["kind"] = "StatefulSet".into();
        pod["metadata"]["ownerReferences"][0]["name"] = "web".into();
    });
    assert_eq!(workload(&set), Some(workload_id(&["shop", "StatefulSet", "web"])));
    let bare = pod(|pod| pod["metadata"]["labels"] = json!({}));
    assert_eq!(workload(&bare), Some(workload_id(&["shop", "ReplicaSet", "web-7d9f8"])), "no Deployment's");
    let elsewhere = pod(|pod| pod["metadata"]["namespace"] = "other".into());
    for other in [&set, &bare, &elsewhere] {
        assert_ne!(workload(other), own);
    }
    assert_eq!(workload(&pod(|pod| pod["metadata"]["ownerReferences"] = json!([]))), None);
    let owned = pod(|pod| pod["metadata"]["ownerReferences"][0]["controller"] = false.into());
    assert_eq!(workload(&owned), None, "an owner that is no controller");
}

#[test]
fn a_proxy_of_another_release_is_no_sibling() {
    assert_eq!(place(&pod(|pod| pod["spec"]["initContainers"][0]["ports"] = json!([]))), None);
    assert_eq!(place(&pod(|pod| pod["spec"]["initContainers"] = json!([]))), None);
}

fn facts(name: &str, node: &str, change: impl FnOnce(&mut PodFacts)) -> Arc<PodFacts> {
    let mut facts = (*crate::push::tests::pod(name)).clone();
    let place = place(&pod(|_| {})).expect("a sibling");
    facts.place = Some(Place { node: node.to_owned(), ..place });
    change(&mut facts);
    Arc::new(facts)
}

#[test]
fn pods_of_one_workload_share_one_list() {
    let other = |facts: &mut PodFacts| {
        facts.place.as_mut().expect("placed").workload = String::from("other");
    };
    let pods = [
        facts("a", "node-1", |_| {}),
        facts("b", "node-2", |pod| pod.terminating = true),
        facts("c", "node-1", other),
        facts("d", "node-1", |pod| pod.place.as_mut().expect("placed").ip = None),
        facts("e", "node-1", |pod| pod.place = None),
    ];
    let zones = [(String::from("node-1"), String::from("west"))].into();
    let sets = sets(&[Reaching { pods: pods.into(), versions: None }], &zones);
    assert_eq!(sets.len(), 3, "no list for a pod without a network or a place");
    assert!(Arc::ptr_eq(&sets["uid-a"], &sets["uid-b"]));
    assert!(!Arc::ptr_eq(&sets["uid-a"], &sets["uid-c"]));
    let seen: Vec<_> = sets["uid-a"]
        .siblings
        .members()
        .map(|sibling| (sibling.pod.as_str(), sibling.zone.as_str(), sibling.ready))
        .collect();
    assert_eq!(seen, [("a", "west", true), ("b", "", false)], "a node without the label is in the zone ''");
}

#[test]
fn a_canary_by_pods_says_versions_and_joins_what_its_policy_selects_in_a_namespace() {
    let labelled = |name: &str, workload: &str, version: Option<&str>| {
        facts(name, "", |pod| {
            pod.place.as_mut().expect("placed").workload = workload.to_owned();
            pod.labels = version.map(|version| (String::from("v"), version.to_owned())).into_iter().collect();
        })
    };
    let pods = [
        labelled("a", "stable", Some("v1")),
        labelled("b", "canary", Some("v2")),
        labelled("c", "canary", None),
        Arc::new(PodFacts {
            namespace: String::from("other"),
            ..(*labelled("d", "far", Some("v2"))).clone()
        }),
    ];
    let of = |joined_by: &[Option<&str>]| {
        let reaching: Vec<_> = pods
            .iter()
            .zip(joined_by)
            .map(|(pod, joined_by)| {
                let versions = Some(Versions { label: "v", joined_by: *joined_by });
                Reaching { pods: vec![pod.clone()], versions }
            })
            .collect();
        sets(&reaching, &HashMap::new())
    };
    let seen = |sets: &HashMap<Uid, Arc<SiblingSet>>, uid: &str| {
        let members = sets[uid].siblings.members().cloned();
        members.map(|sibling| (sibling.pod, sibling.version, sibling.workload)).collect::<Vec<_>>()
    };
    let member = |pod: &str, version: Option<&str>, workload: Option<&str>| {
        (pod.to_owned(), version.map(str::to_owned), workload.map(str::to_owned))
    };
    let joined = of(&[Some("p"); 4]);
    assert!(Arc::ptr_eq(&joined["uid-a"], &joined["uid-c"]));
    let all = [
        member("a", Some("v1"), Some("stable")),
        member("b", Some("v2"), Some("canary")),
        member("c", None, Some("canary")),
    ];
    assert_eq!(seen(&joined, "uid-a"), all, "and not the one of another namespace");
    assert_eq!(seen(&joined, "uid-d"), [member("d", Some("v2"), Some("far"))]);
    let apart = of(&[Some("p"), Some("q"), Some("q"), None]);
    assert_eq!(seen(&apart, "uid-a"), all[..1], "the canaries are of two policies");
    let by_controller = of(&[None; 4]);
    assert_eq!(seen(&by_controller, "uid-a"), [member("a", Some("v1"), None)]);
    assert_eq!(seen(&by_controller, "uid-b"), [member("b", Some("v2"), None), member("c", None, None)]);
}

#[test]
fn lists_and_differences_are_encoded_once() {
    let list = |pods: &[Arc<PodFacts>]| {
        let sets = sets(&[Reaching { pods: pods.into(), versions: None }], &HashMap::new());
        sets.into_values().next().expect("a list")
    };
    let one = list(&[facts("a", "", |_| {})]);
    let two = list(&[facts("a", "", |_| {}), facts("b", "", |_| {})]);
    assert_eq!(two.line_after(None).as_ptr(), two.line_after(None).as_ptr());
    let difference = two.line_after(Some(&one.siblings));
    assert_eq!(difference.as_ptr(), two.line_after(Some(&one.siblings)).as_ptr());
    assert!(difference.len() < two.line_after(None).len());
    match serde_json::from_slice(&difference).expect("a message") {
        FromOperator::Siblings(change) => {
            assert_eq!(one.siblings.after(change).expect("applies"), two.siblings);
        }
        other => panic!("not siblings: {other:?}"),
    }
}

//! Versions of pods: which pod a request goes to, in virtual time and without sockets.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use outrigger_policy::merge::Merged;
use outrigger_policy::siblings::{Sibling, Siblings as List};
use outrigger_policy::wire::{KeyRing, Update};
use proptest::prelude::*;

use super::*;
use crate::breaker::{Call, Outcome};
use crate::siblings::Siblings;
use crate::snapshot::{Source, Wish};
use crate::worker::{Permit, Worker};

const OLD: Option<&str> = Some("v1");
const NEW: Option<&str> = Some("v2");
const OWN_ROUTE: &str = "routes: [{name: own, match: {path: {value: /own}}, loadBalancer: {}}]";

fn sibling(place: usize, version: Option<&str>) -> Sibling {
    Sibling {
        instance: format!("uid-{place}"),
        pod: format!("web-{place}"),
        address: SocketAddr::from(([10, 0, 0, 1], place as u16 + 1)),
        zone: String::from(["west", "east"][place % 2]),
        ready: true,
        workers: vec![String::from("worker-1"), String::from("worker-2")],
        version: version.map(str::to_owned),
        workload: None,
    }
}

fn list(versions: &[Option<&str>]) -> List {
    List::new(versions.iter().enumerate().map(|(place, version)| sibling(place, *version)))
}

fn update(weight: u32, rest: &str) -> Update {
    let spec = format!(
        "loadBalancer: {{scope: Workload}}\n{OWN_ROUTE}\ncanary: {{podLabel: v, version: v2, steps: [{{weight: 5}}]{rest}}}"
    );
    let spec = serde_yaml::from_str(&spec).expect("a spec");
    let share = CanaryShare { weight, epoch: String::from("v2.1/1") };
    Update::new(Merged { spec, ..Merged::default() }, KeyRing::default()).with_canary(Some(share))
}

/// The snapshot of the pod `own` among pods of these versions; those of an even place are in one zone.
fn pod(own: usize, versions: &[Option<&str>], weight: u32, rest: &str) -> Snapshot {
    let siblings = Siblings::none(Some(format!("uid-{own}")), Arc::default());
    siblings.identity().install_for_tests();
    let siblings = siblings.after(list(versions).change_from(None)).expect("a whole list applies");
    let workers = (1..=2).map(|i| Worker::new(&format!("worker-{i}"), ([127, 0, 0, 1], i).into()));
    let snapshot = Snapshot::initial(workers.collect(), siblings);
    snapshot.next(&update(weight, rest), Source::Operator, snapshot.workers.clone()).expect("valid")
}

/// The route of all other requests, which leaves the pod.
fn leaving(snapshot: &Snapshot) -> &Route {
    snapshot.routes.last().expect("the default route")
}

fn choose(
    snapshot: &Snapshot,
    lane: Lane,
    arrival: Arrival,
    pinned: Option<u64>,
    random: u64,
) -> Option<Permit> {
    let (route, now) = (leaving(snapshot), Instant::now());
    let mut usable = snapshot.candidates(snapshot.usable(now), arrival, route, now);
    let wish = Wish { pinned, usable: &mut usable, lane, random, key: None };
    snapshot.choose(route, wish, now)
}

/// The version of the pod that a permit is for.
fn version(snapshot: &Snapshot, permit: &Permit) -> Option<String> {
    let there = permit.worker().sibling.as_ref().map(|sibling| sibling.version.clone());
    there.unwrap_or_else(|| snapshot.siblings.pod_version().map(str::to_owned))
}

fn drawn(snapshot: &Snapshot, arrival: Arrival, client: u32) -> Lane {
    let client = IpAddr::from(client.to_be_bytes());
    snapshot.lane(&HeaderMap::new(), client, (arrival, leaving(snapshot)), Instant::now())
}

fn versions() -> impl Strategy<Value = Vec<Option<&'static str>>> {
    prop::collection::vec(prop::sample::select(vec![None, OLD, NEW]), 1..7)
}

proptest! {
    /// A client's request goes to a usable pod of its version; where there is none, to one of the other version if that
    /// has a share; never to a version without one. The own pod comes first, then its zone.
    #[test]
    fn a_request_goes_to_the_nearest_pod_of_its_version(
        versions in versions(),
        up in any::<u8>(),
        weight in prop::sample::select(vec![0, 20, 100]),
        lane in prop::sample::select(vec![Lane::Old, Lane::New, Lane::Preview]),
        random in any::<u64>(),
    ) {
        let snapshot = pod(0, &versions, weight, "");
        // The pods that are up, by whether they are new, nearest first: both workers of the own pod or none.
        let mut there: [Vec<usize>; 2] = Default::default();
        for place in (0..versions.len()).filter(|place| up & (1 << place) != 0) {
            there[usize::from(versions[place] == NEW)].push(place);
        }
        for worker in &snapshot.workers {
            worker.set_healthy(up & 1 != 0);
        }
        for member in snapshot.siblings.members() {
            let place: usize = member.name.strip_prefix("web-").and_then(|i| i.parse().ok()).expect("named");
            member.set_healthy(up & (1 << place) != 0);
        }
        let missing = !versions.contains(&NEW);
        let new = match (lane, weight) {
            (Lane::Preview, _) => true,
            (_, 0) => false,
            (_, 100) => !missing,
            (Lane::New, _) => !there[1].is_empty(),
            _ => there[0].is_empty(),
        };
        let candidates = &there[usize::from(new)];
        let permit = choose(&snapshot, lane, Arrival::Client, None, random);
        prop_assert_eq!(permit.is_some(), !candidates.is_empty());
        if let Some(permit) = permit {
            let place = permit.worker().sibling.as_ref().map_or(0, |sibling| {
                sibling.instance.strip_prefix("uid-").and_then(|i| i.parse().ok()).expect("named")
            });
            prop_assert!(candidates.contains(&place), "{} of {:?}", place, candidates);
            prop_assert_eq!(permit.worker().sibling.is_none(), candidates.contains(&0), "its own pod first");
            let of_version = |place: &usize| (versions[*place] == NEW) == new;
            let near = (2..versions.len()).step_by(2).filter(of_version).collect::<Vec<_>>();
            if place % 2 == 1 && !near.is_empty() {
                prop_assert!(near.iter().any(|near| !candidates.contains(near)), "all of its zone are up");
            }
        }
    }

    /// What a sibling sent is served in the pod, whatever its version and share; nor is it counted again.
    #[test]
    fn what_came_from_a_sibling_is_not_split_again(
        versions in versions(),
        weight in prop::sample::select(vec![0, 20, 100]),
        random in any::<u64>(),
    ) {
        let snapshot = pod(0, &versions, weight, ", preview: {name: x, value: y}");
        let headers = HeaderMap::from_iter([(http::HeaderName::from_static("x"), http::HeaderValue::from_static("y"))]);
        let client = IpAddr::from([10, 0, 0, 9]);
        let lane = snapshot.lane(&headers, client, (Arrival::Sibling, leaving(&snapshot)), Instant::now());
        prop_assert_eq!(lane, Lane::Any);
        let mut permit = choose(&snapshot, lane, Arrival::Sibling, None, random).expect("usable");
        prop_assert!(permit.worker().sibling.is_none());
        permit.finish(Call { outcome: Outcome::Answered(500), latency: Duration::ZERO }, Instant::now());
        let report = snapshot.canary.as_ref().and_then(|canary| canary.report()).expect("it began");
        prop_assert_eq!((report.old.requests, report.new.requests), (0, 0));
    }
}

#[test]
fn every_pod_keeps_the_share_and_counts_for_the_version() {
    let all = [OLD, OLD, OLD, NEW, NEW, None];
    for own in [0, 3, 5] {
        let snapshot = pod(own, &all, 20, "");
        let mut shares = BTreeMap::new();
        for random in 0..2000u64 {
            let lane = drawn(&snapshot, Arrival::Client, 1);
            let mut permit = choose(&snapshot, lane, Arrival::Client, None, random).expect("usable");
            let new = version(&snapshot, &permit).as_deref() == NEW;
            *shares.entry(new).or_insert(0u64) += 1;
            assert!(new == (all[own] == NEW) || permit.worker().sibling.is_some());
            let outcome = Outcome::Answered(if new { 500 } else { 200 });
            permit.finish(Call { outcome, latency: Duration::ZERO }, Instant::now());
        }
        assert!((320..=480).contains(&shares[&true]), "from pod {own}: {shares:?}");
        let report = snapshot.canary.as_ref().and_then(|canary| canary.report()).expect("it began");
        assert_eq!((report.new.requests, report.old.requests), (shares[&true], shares[&false]));
        assert_eq!((report.new.failures, report.old.failures), (shares[&true], 0));
    }
}

#[test]
fn a_client_has_the_same_version_in_every_pod() {
    let all = [OLD, OLD, NEW];
    let pods = [0, 1, 2].map(|own| pod(own, &all, 30, ", stickiness: Client"));
    let mut new = 0;
    for client in 0..300 {
        let of = |pod: &Snapshot| {
            let permit = choose(pod, drawn(pod, Arrival::Client, client << 8), Arrival::Client, None, 7);
            version(pod, &permit.expect("usable"))
        };
        let seen = of(&pods[0]);
        assert!(pods.iter().all(|pod| of(pod) == seen));
        new += usize::from(seen.as_deref() == NEW);
    }
    assert!((60..=120).contains(&new), "{new}");
}

#[test]
fn a_session_stays_with_its_pod_while_that_version_has_a_share() {
    let session = |snapshot: &Snapshot| {
        let sibling = snapshot.siblings.members()[0].sibling.as_ref().expect("a sibling");
        assert_eq!(sibling.version.as_deref(), NEW);
        sibling.session_ids[1]
    };
    for (weight, stays) in [(20, true), (100, true), (0, false)] {
        let snapshot = pod(0, &[OLD, NEW], weight, "");
        let permit = choose(&snapshot, Lane::Old, Arrival::Client, Some(session(&snapshot)), 7);
        assert_eq!(version(&snapshot, &permit.expect("usable")).as_deref() == NEW, stays, "{weight}");
        let own = snapshot.session_id(leaving(&snapshot), &snapshot.workers[1]);
        let permit = choose(&snapshot, Lane::New, Arrival::Client, Some(own), 7);
        let moves = version(&snapshot, &permit.expect("usable")).as_deref() == NEW;
        assert_eq!(moves, weight == 100, "the own pod is of the old version: {weight}");
    }
}

#[test]
fn what_cannot_leave_the_pod_is_served_there() {
    let (now, client) = (Instant::now(), IpAddr::from([10, 0, 0, 9]));
    let snapshot = pod(0, &[NEW, OLD], 0, "");
    let lane = |snapshot: &Snapshot, route: usize| {
        snapshot.lane(&HeaderMap::new(), client, (Arrival::Client, &snapshot.routes[route]), now)
    };
    assert_eq!(snapshot.routes[0].policy.name, "own");
    assert_eq!((lane(&snapshot, 0), lane(&snapshot, 1)), (Lane::Any, Lane::Old));
    assert!(snapshot.routes[0].by_version.is_none());

    let alone = Siblings::none(Some(String::from("uid-0")), Arc::default());
    let alone = Snapshot::initial(snapshot.workers.clone(), alone);
    let alone = alone.next(&update(0, ""), Source::Disk, alone.workers.clone()).expect("valid");
    assert_eq!(lane(&alone, 1), Lane::Any, "no list, no certificate");
    assert!(choose(&alone, Lane::Any, Arrival::Client, None, 7).is_some());
}

#[test]
fn the_last_attempt_leaves_the_pod_only_for_its_version() {
    let snapshot = pod(0, &[NEW, OLD, OLD], 100, "");
    let now = Instant::now();
    let candidates = || snapshot.candidates(snapshot.usable(now), Arrival::Client, leaving(&snapshot), now);
    let left = |lane| {
        let mut usable = candidates();
        snapshot.leave_the_pod(&mut usable, lane);
        usable.iter().collect::<Vec<_>>()
    };
    assert_eq!(left(Lane::New), [0, 1, 2, 3], "no other pod has it");
    let snapshot = pod(0, &[NEW, OLD, NEW], 100, "");
    let mut usable = snapshot.candidates(snapshot.usable(now), Arrival::Client, leaving(&snapshot), now);
    snapshot.leave_the_pod(&mut usable, Lane::New);
    let permit = snapshot.choose(
        leaving(&snapshot),
        Wish { pinned: None, usable: &mut usable, lane: Lane::New, random: 7, key: None },
        now,
    );
    assert_eq!(permit.expect("usable").worker().name, "web-2");
}

#[test]
fn turns_and_counts_survive_what_changes_nothing() {
    let before = pod(0, &[OLD, NEW], 20, "");
    choose(&before, Lane::New, Arrival::Client, None, 7)
        .expect("usable")
        .finish(Call { outcome: Outcome::Answered(200), latency: Duration::ZERO }, Instant::now());
    let balances = |snapshot: &Snapshot| {
        let versions = leaving(snapshot).by_version.as_ref().expect("it leaves the pod");
        versions.each_ref().map(|version| version.balance.clone())
    };
    let again = before.next(&update(50, ""), Source::Operator, before.workers.clone()).expect("valid");
    for (one, two) in balances(&before).iter().zip(&balances(&again)) {
        assert!(Arc::ptr_eq(one, two));
    }
    let change = list(&[OLD, NEW, NEW]).change_from(Some(&list(&[OLD, NEW])));
    let more = again.with_siblings(again.siblings.after(change).expect("applies"));
    assert!(!Arc::ptr_eq(&balances(&more)[1], &balances(&again)[1]), "one more pod");
    let report = more.canary.as_ref().and_then(|canary| canary.report()).expect("it began");
    assert_eq!(report.new.requests, 1, "the step is the same");
}

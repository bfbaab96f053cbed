use std::collections::BTreeSet;

use http::HeaderValue;
use outrigger_policy::{Spec, compile};

use super::*;

const OLD: [usize; 2] = [0, 1];
const NEW: [usize; 1] = [2];
const MEMBERS: [Member<'_>; 3] = [
    Member { version: None, weight: 1 },
    Member { version: Some("v1"), weight: 1 },
    Member { version: Some("v2"), weight: 1 },
];

fn rules(rest: &str) -> effective::Canary {
    let text = format!("canary: {{version: v2, steps: [{{weight: 10}}]{rest}}}");
    let spec: Spec = serde_yaml::from_str(&text).expect("a spec");
    compile(&spec).expect("valid").canary.expect("there")
}

fn share(weight: u32, epoch: &str) -> CanaryShare {
    CanaryShare { weight, epoch: epoch.to_owned() }
}

fn canary(weight: u32, rest: &str) -> Canary {
    Canary::next(None, &rules(rest), Some(&share(weight, "v2.1/1")), &MEMBERS)
}

/// Where a request of this lane may go.
fn narrowed(canary: &Canary, usable: &[usize], lane: Lane) -> Vec<usize> {
    let (narrowed, new) = canary.narrow(&usable.iter().copied().collect(), lane).expect("for a version");
    let places: Vec<_> = narrowed.iter().collect();
    assert!(places.iter().all(|place| NEW.contains(place) == new), "{places:?}");
    places
}

fn address(i: u32) -> IpAddr {
    IpAddr::from((0x0a00_0000 + i).to_be_bytes())
}

/// The clients of 10,000 that go to the new version.
fn clients(canary: &Canary) -> BTreeSet<u32> {
    let headers = HeaderMap::new();
    (0..10_000).filter(|i| canary.lane(&headers, address(*i), 0) == Lane::New).collect()
}

#[test]
fn requests_are_drawn_by_the_share() {
    let mut random = fastrand::Rng::with_seed(3);
    for weight in [0, 1, 10, 50, 99, 100] {
        let canary = canary(weight, "");
        let new = |_| canary.lane(&HeaderMap::new(), address(1), random.u64(..)) == Lane::New;
        let new = (0..100_000).map(new).filter(|new| *new).count();
        let expected = weight as usize * 1000;
        assert!(new.abs_diff(expected) <= 500, "{weight}: {new}");
        assert!(![0, 100].contains(&weight) || new == expected);
    }
}

#[test]
fn a_client_stays_and_changes_once_at_most_as_the_share_grows() {
    let shares = [0, 5, 25, 50, 100].map(|weight| clients(&canary(weight, ", stickiness: Client")));
    for (one, weight) in shares.iter().zip([0, 5, 25, 50, 100]) {
        assert!(one.len().abs_diff(weight * 100) <= 150, "{weight}: {}", one.len());
    }
    assert!(shares.windows(2).all(|pair| pair[0].is_subset(&pair[1])));
    let other = clients(&canary(5, ", stickiness: Client, attempt: 2"));
    assert!(other.intersection(&shares[1]).count() < 100, "another canary begins with others");
}

#[test]
fn a_header_tells_clients_apart_before_the_address() {
    let canary = canary(50, ", stickiness: Client, clientHeader: X-User");
    let lane = |user: &str, from: u32| {
        let headers = HeaderMap::from_iter([(
            "x-user".parse().expect("a name"),
            HeaderValue::from_str(user).expect("a value"),
        )]);
        canary.lane(&headers, address(from), 0)
    };
    let users: Vec<_> = (0..200).map(|i| format!("user-{i}")).collect();
    assert!(users.iter().all(|user| (0..9).all(|from| lane(user, from) == lane(user, 0))));
    let new = users.iter().filter(|user| lane(user, 0) == Lane::New).count();
    assert!((70..=130).contains(&new), "{new}");
}

#[test]
fn a_version_without_a_worker_leaves_its_requests_to_the_other_unless_that_has_no_share() {
    let all = [0, 1, 2];
    let half = canary(50, "");
    assert_eq!(narrowed(&half, &all, Lane::New), NEW);
    assert_eq!(narrowed(&half, &all, Lane::Old), OLD);
    assert_eq!(narrowed(&half, &OLD, Lane::New), OLD);
    assert_eq!(narrowed(&half, &NEW, Lane::Old), NEW);
    for lane in [Lane::Old, Lane::New] {
        assert_eq!(narrowed(&canary(0, ""), &all, lane), OLD);
        assert!(
            narrowed(&canary(0, ""), &NEW, lane).is_empty(),
            "a version that was switched back gets nothing"
        );
        assert_eq!(narrowed(&canary(100, ""), &all, lane), NEW);
        assert!(narrowed(&canary(100, ""), &OLD, lane).is_empty());
    }
}

#[test]
fn a_worker_without_a_weight_takes_nothing() {
    let members = [MEMBERS[0], MEMBERS[1], Member { weight: 0, ..MEMBERS[2] }];
    let canary = Canary::next(None, &rules(""), Some(&share(50, "v2.1/1")), &members);
    assert_eq!(narrowed(&canary, &[0, 1, 2], Lane::New), OLD, "its version has no other");
}

#[test]
fn a_preview_goes_to_the_new_version_and_is_not_counted() {
    let canary = canary(0, ", preview: {name: X-Preview, value: 'yes'}");
    let headers = |value: &'static str| {
        HeaderMap::from_iter([("x-preview".parse().expect("a name"), HeaderValue::from_static(value))])
    };
    assert_eq!(canary.lane(&headers("yes"), address(1), u64::MAX), Lane::Preview);
    assert_eq!(canary.lane(&headers("no"), address(1), 0), Lane::Old);
    assert_eq!(narrowed(&canary, &[0, 1, 2], Lane::Preview), NEW);
    assert!(canary.tally(2, Lane::Preview).is_none());
    assert!(canary.keeps(2, Lane::Preview) && !canary.keeps(0, Lane::Preview));
}

#[test]
fn a_session_stays_with_its_worker_while_that_version_has_a_share() {
    for (weight, old, new) in [(0, true, false), (10, true, true), (100, false, true)] {
        let canary = canary(weight, "");
        assert_eq!((canary.keeps(0, Lane::New), canary.keeps(2, Lane::Old)), (old, new), "{weight}");
    }
}

#[test]
fn with_versions_of_pods_everything_goes_to_the_old_one_until_a_pod_of_the_new_one_is_there() {
    let spec = "loadBalancer: {scope: Workload}\ncanary: {podLabel: v, version: v2, steps: [{weight: 100}]}";
    let spec: Spec = serde_yaml::from_str(spec).expect("a spec");
    let rules = compile(&spec).expect("valid").canary.expect("there");
    let with = |members: &[Member<'_>]| Canary::next(None, &rules, Some(&share(100, "v2.1/1")), members);
    let before = with(&MEMBERS[..2]);
    for lane in [Lane::Old, Lane::New] {
        assert_eq!(narrowed(&before, &OLD, lane), OLD);
        assert!(before.keeps(0, lane));
    }
    assert!(narrowed(&before, &OLD, Lane::Preview).is_empty());
    let there = with(&MEMBERS);
    assert_eq!(narrowed(&there, &[0, 1, 2], Lane::Old), NEW);
    assert!(narrowed(&there, &OLD, Lane::New).is_empty(), "it is there, and down");
    assert!(!there.keeps(0, Lane::New));
    assert!(there.narrow(&OLD.into_iter().collect(), Lane::Any).is_none());
    assert!(there.keeps(0, Lane::Any) && there.tally(2, Lane::Any).is_none());
}

#[test]
fn counts_go_on_in_an_epoch_and_begin_anew_in_the_next() {
    let first = canary(10, "");
    let tally = |canary: &Canary, place| canary.tally(place, Lane::New).expect("counted");
    tally(&first, 2).answered(false, Duration::from_millis(3));
    tally(&first, 2).answered(true, Duration::from_millis(3));
    tally(&first, 2).answered(false, Duration::from_millis(3));
    tally(&first, 2).failed_late();
    tally(&first, 0).answered(false, Duration::from_millis(3));
    let again = Canary::next(Some(&first), &rules(", attempt: 1"), Some(&share(10, "v2.1/1")), &MEMBERS[..2]);
    let report = again.report().expect("it began");
    assert_eq!((report.new.requests, report.new.failures, report.new.latencies()), (3, 2, 2));
    assert_eq!((report.old.requests, report.old.failures), (1, 0));
    let next = Canary::next(Some(&again), &rules(""), Some(&share(50, "v2.1/2")), &MEMBERS);
    assert_eq!(next.report().expect("it began").new, Sample::default());
    let not_begun = Canary::next(None, &rules(""), None, &MEMBERS);
    assert_eq!((not_begun.report(), not_begun.weight()), (None, 0));
}

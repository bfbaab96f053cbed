use outrigger_policy::report::WorkerReport;

use super::*;

const NOW: i64 = 1_800_000_000_000;

fn open(name: &str, since: i64) -> BreakerReport {
    BreakerReport {
        level: Level::Worker,
        name: name.to_owned(),
        state: "open".to_owned(),
        cause: "3 failures in a row".to_owned(),
        since,
        next_probe: Some(since + 5000),
    }
}

fn report(breakers: Vec<BreakerReport>) -> Report {
    Report { breakers, ..Report::default() }
}

fn hear(ledger: &mut Ledger, reports: &[(&str, Option<&Report>)]) -> Vec<Change> {
    ledger.update(&reports.iter().map(|(pod, report)| ((*pod).to_owned(), *report)).collect())
}

fn told(changes: &[Change]) -> Vec<(Kind, &str)> {
    changes.iter().map(|change| (change.kind, change.note.as_str())).collect()
}

#[test]
fn each_change_is_told_once_with_worker_cause_and_next_probe() {
    let mut ledger = Ledger::new(&[], NOW);
    let opened = report(vec![open("a", NOW)]);
    let changes = hear(&mut ledger, &[("shop/web", Some(&opened))]);
    let note = "worker a of shop/web: open since 2027-01-15T08:00:00Z: 3 failures in a row; next probe at 2027-01-15T08:00:05Z";
    assert_eq!(told(&changes), [(Kind::Opened, note)]);
    assert_eq!(changes[0].pod, "shop/web");
    assert_eq!(hear(&mut ledger, &[("shop/web", Some(&opened))]), []);
    let (count, listed) = ledger.list();
    assert_eq!((count, listed[0].breaker.as_str(), listed[0].state.as_str()), (1, "worker a", "open"));
    assert_eq!((ledger.count("open"), ledger.count("half-open")), (1, 0));

    let probing = BreakerReport { state: "half-open".into(), next_probe: None, ..open("a", NOW + 5000) };
    let changes = hear(&mut ledger, &[("shop/web", Some(&report(vec![probing])))]);
    assert_eq!(changes[0].kind, Kind::HalfOpen);
    let changes = hear(&mut ledger, &[("shop/web", Some(&report(vec![])))]);
    let note = "worker a of shop/web: closed; it had opened because: 3 failures in a row";
    assert_eq!(told(&changes), [(Kind::Closed, note)]);
    assert_eq!(ledger.list(), (0, vec![]));
}

#[test]
fn a_breaker_that_opened_anew_is_told_again() {
    let mut ledger = Ledger::new(&[], NOW);
    hear(&mut ledger, &[("shop/web", Some(&report(vec![open("a", NOW)])))]);
    let again = report(vec![open("a", NOW + 6000)]);
    assert_eq!(hear(&mut ledger, &[("shop/web", Some(&again))])[0].kind, Kind::Opened);
}

#[test]
fn a_proxy_that_is_on_its_way_has_closed_nothing_and_a_pod_that_is_gone_is_no_news() {
    let mut ledger = Ledger::new(&[], NOW);
    hear(&mut ledger, &[("shop/web", Some(&report(vec![open("a", NOW)])))]);
    assert_eq!(hear(&mut ledger, &[("shop/web", None)]), []);
    assert_eq!(ledger.list().0, 1);
    assert_eq!(hear(&mut ledger, &[]), []);
    assert_eq!(ledger.list().0, 0);
}

#[test]
fn a_new_lease_holder_tells_nothing_again() {
    let mut first = Ledger::new(&[], NOW);
    let opened: Vec<_> = (0..30).map(|i| open(&format!("w{i:02}"), NOW + 123 + i)).collect();
    let opened = report(opened);
    assert_eq!(hear(&mut first, &[("shop/web", Some(&opened))]).len(), 1, "many at once are one Event");
    let (count, listed) = first.list();
    assert_eq!((count, listed.len()), (30, MAX_BREAKERS));
    let mut second = Ledger::new(&listed, NOW + 60_000);
    assert_eq!(hear(&mut second, &[("shop/web", None)]), [], "nothing was reported to it yet");
    assert_eq!(hear(&mut second, &[("shop/web", Some(&opened))]), []);
    assert_eq!(second.list(), (count, listed));
    let closed = hear(&mut second, &[("shop/web", Some(&report(opened.breakers[1..].to_vec())))]);
    assert_eq!(closed[0].kind, Kind::Closed);
}

#[test]
fn many_at_once_are_told_in_one_event() {
    let mut ledger = Ledger::new(&[], NOW);
    let opened = report(vec![open("a", NOW)]);
    let pods: Vec<_> = (0..9).map(|i| format!("shop/web-{i}")).collect();
    let reports: Vec<_> = pods.iter().map(|pod| (pod.as_str(), Some(&opened))).collect();
    let changes = hear(&mut ledger, &reports);
    let note = &changes[0].note;
    assert_eq!((changes.len(), changes[0].kind), (1, Kind::Opened));
    assert!(note.starts_with("9 breakers opened. worker a of shop/web-0: open since"), "{note}");
    assert!(note.ends_with("Also worker a of shop/web-1, worker a of shop/web-2, worker a of shop/web-3, worker a of shop/web-4, worker a of shop/web-5 and 3 more"), "{note}");
}

#[test]
fn levels_have_names_that_read_back() {
    for (level, name, shown) in [
        (Level::Worker, "a", "worker a"),
        (Level::Route, "api", "route api"),
        (Level::Service, "service", "service"),
    ] {
        assert_eq!(named(level, name), shown);
        assert_eq!(parse(shown), (level, name));
    }
}

#[test]
fn usable_workers_are_counted() {
    let worker = |usable| WorkerReport { name: "a".into(), healthy: true, usable };
    let some = Report { workers: vec![worker(true), worker(false)], ..Report::default() };
    let mut heard = Heard::default();
    [Some(&some), None, Some(&some)].into_iter().for_each(|report| heard.count(report));
    assert_eq!((heard.workers.usable, heard.workers.total), (2, 4));
}

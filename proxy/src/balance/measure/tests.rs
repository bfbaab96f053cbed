use std::sync::Arc;

use super::*;

fn tick(seconds: f32) -> Tick {
    Tick((seconds / SECONDS_A_TICK) as u32)
}

#[test]
fn ticks_tell_stretches_of_time() {
    assert!((tick(3.0).since(tick(1.0)) - 2.0).abs() < 1e-3);
    assert_eq!(tick(1.0).since(tick(1.5)), 0.0, "another thread was ahead");
    assert_eq!(Tick(5).since(Tick(u32::MAX - 4)), 10.0 * SECONDS_A_TICK, "they wrap");
}

#[test]
fn moments_keep_their_order() {
    let now = Instant::now();
    let [one, two] = [now, now + Duration::from_nanos(1500)].map(nanos);
    assert_eq!(two - one, 1500);
}

#[test]
fn what_is_not_asked_for_is_not_kept() {
    let load = Load::default();
    let now = Instant::now();
    load.ended(Ended { sent: now, now: now + Duration::from_secs(1), how: How::Answered });
    assert_eq!(load.response_time.at(Tick::of(now), 10.0), None);
    let (mut head, ()) = http::Response::builder()
        .header("endpoint-load-metrics", "TEXT cpu=1")
        .body(())
        .expect("valid")
        .into_parts();
    load.heard(&mut head, now);
    assert_eq!(load.utilization.last(), None);
    assert!(head.headers.contains_key("endpoint-load-metrics"), "it is the client's business then");
}

#[test]
fn estimates_survive_another_policy() {
    let load = Load::default();
    let now = Instant::now();
    let policy = |yaml: &str| {
        outrigger_policy::compile(&serde_yaml::from_str(yaml).expect("a spec")).expect("a valid policy")
    };
    load.configure(&Measure::of(&policy("loadBalancer: {type: PeakEwma}")).into());
    load.ended(Ended { sent: now, now: now + Duration::from_secs(1), how: How::Answered });
    let known = load.response_time.at(Tick::of(now), 10.0);
    assert!(known.is_some());
    for other in ["loadBalancer: {type: Random}", "loadBalancer: {type: PeakEwma, peakEwma: {penalty: 1s}}"] {
        load.configure(&Measure::of(&policy(other)).into());
        assert_eq!(load.response_time.at(Tick::of(now), 10.0), known, "{other}");
    }
}

#[test]
fn the_first_route_that_needs_an_estimate_says_how_it_is_kept() {
    let spec = "
        loadBalancer: {type: PeakEwma, peakEwma: {decayTime: 3s}}
        routes:
        - {name: a, match: {method: GET}, loadBalancer: {type: PeakEwma, peakEwma: {decayTime: 2s}}}
        - {name: b, match: {method: PUT}, loadBalancer: {type: CostAware}}
    ";
    let policy = outrigger_policy::compile(&serde_yaml::from_str(spec).expect("a spec")).expect("valid");
    let measure = Measure::of(&policy);
    assert_eq!(measure.response_time.expect("asked for").decay_time, Duration::from_secs(2));
    assert!(measure.budget.is_some() && measure.forecast.is_none() && measure.utilization.is_none());
}

#[test]
fn a_budget_rises_by_one_a_round_and_falls_by_a_tenth() {
    let budget = Budget::default();
    let answer = |late, failed| budget::Verdict { late, failed, in_flight: 100 };
    assert_eq!(budget.at(tick(0.0)), 8.0);
    (0..8).for_each(|_| budget.observe(answer(false, false), tick(1.0), 0.1));
    assert!((8.9..=9.0).contains(&budget.at(tick(1.0))), "{}", budget.at(tick(1.0)));
    (0..8).for_each(|_| budget.observe(answer(true, false), tick(2.0), 0.1));
    assert!((8.0..8.2).contains(&budget.at(tick(2.0))), "those that were sent together count once");
    (0..20).for_each(|_| budget.observe(answer(false, true), tick(3.0), 0.1));
    assert!(budget.at(tick(3.0)) < 0.1);
    assert!((0.5..0.6).contains(&budget.at(tick(8.0))), "it is tried again by and by");
    assert_eq!(budget.at(tick(60.0)), 1.0);
}

#[test]
fn threads_lose_no_estimate_to_each_other() {
    let load = Arc::new(Load::default());
    load.configure(&crate::balance::laws::measure_all().into());
    let now = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let load = load.clone();
            scope.spawn(move || {
                for step in 0..20_000u64 {
                    let sent = now + Duration::from_micros(100 * step);
                    let took = Duration::from_millis(5 + (thread + step) % 10);
                    load.ended(Ended { sent, now: sent + took, how: How::Answered });
                }
            });
        }
    });
    let end = now + Duration::from_secs(2);
    let average = load.response_time.at(Tick::of(end), 10.0).expect("known");
    assert!((0.005..0.0145).contains(&average), "{average}");
    let ahead = load.forecast.ahead(nanos(end), &crate::balance::laws::predictive()).expect("known");
    assert!((0.004..0.02).contains(&ahead.response_time), "{ahead:?}");
}

#[test]
fn what_every_request_looks_at_is_one_line_and_a_forecast_another() {
    assert_eq!(align_of::<Load>(), 64);
    assert!(std::mem::offset_of!(Load, ready_at) < 64);
    assert_eq!((std::mem::offset_of!(Load, forecast), size_of::<Forecast>()), (64, 64));
}

#[test]
fn a_failure_now_and_then_changes_nothing_and_one_after_the_other_doubles_the_load() {
    let (load, now) = (Load::default(), Instant::now());
    let ended = |how| load.ended(Ended { sent: now, now, how });
    load.in_flight.store(4, Relaxed);
    for _ in 0..100 {
        ended(How::Failed);
        ended(How::Failed);
        assert!(load.counts_as(now) == 4 && !load.keeps_failing(now));
        ended(How::Answered);
        ended(How::Answered);
        assert!(load.failing.is_over());
    }
    let counts: Vec<_> = (0..5).map(|_| (ended(How::Failed), load.counts_as(now)).1).collect();
    assert_eq!(counts, [4, 4, 9, 19, 39], "five waiting, twice as many and so on");
    (0..1000).for_each(|_| ended(How::Failed));
    assert_eq!(load.counts_as(now), (5 << 16) - 1);
    let later = |seconds| load.counts_as(now + Duration::from_secs(seconds));
    assert!(later(10) < 5 << 10 && 4 < later(40));
    assert_eq!(later(45), 4, "it is tried again");
    (0..18).for_each(|_| ended(How::Answered));
    assert!(load.failing.is_over(), "good answers take failures back");
}

#[test]
fn a_head_that_promised_better_takes_nothing_back() {
    let (load, now) = (Load::default(), Instant::now());
    for _ in 0..4 {
        load.ended(Ended { sent: now, now, how: How::Answered });
        load.ended(Ended { sent: now, now, how: How::FailedAfterHead });
    }
    assert!(load.keeps_failing(now));
}

#[test]
fn of_the_first_interval_a_forecast_is_the_mean_so_far() {
    let (forecast, settings) = (Forecast::default(), crate::balance::laws::predictive());
    let now = nanos(Instant::now());
    let ahead = |after: Duration| {
        forecast.ahead(now + after.as_nanos() as u64, &settings).map(|ahead| ahead.response_time)
    };
    assert_eq!(ahead(Duration::ZERO), None);
    forecast.observe([5.0, 1.0], now, &settings);
    assert_eq!(ahead(Duration::ZERO), Some(5.0), "its first request failed");
    assert_eq!(ahead(Duration::from_secs(1)), Some(5.0));
    assert!(ahead(Duration::from_secs(60)).is_some_and(|seconds| seconds < 0.02), "it is tried again");
    let minute = now + 60_000_000_000;
    forecast.observe([0.001, 1.0], minute, &settings);
    forecast.observe([0.001, 1.0], minute + 600_000_000, &settings);
    let after = ahead(Duration::from_secs(61)).expect("known");
    assert!(after < 0.002, "an old failure is no part of a new interval: {after}");
}

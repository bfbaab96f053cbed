use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_policy::merge::Merged;
use outrigger_policy::wire::{KeyRing, Update};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, LocalSet, yield_now};

use super::*;
use crate::client::Trust;
use crate::connection::{Bounds, Limits};
use crate::drain::{Delay, Phase};
use crate::listener::{self, Front};
use crate::metrics::Metrics;
use crate::siblings::Siblings;
use crate::snapshot::Source;
use crate::thread::DataThread;

const REQUIRED: Startup = Startup { require_policy: true, timeout: Duration::from_secs(10) };
const LIMIT: &str = "rateLimit: {rules: [{name: one, limit: {requests: 1, unit: Hour}}]}";

fn awaiting() -> Arc<Control> {
    Control::beside(Vec::new(), Siblings::none(None, Arc::default()), Source::Awaited)
}

fn limited() -> Update {
    let spec = serde_yaml::from_str(LIMIT).expect("a spec");
    Update::new(Merged { spec, ..Merged::default() }, KeyRing::default())
}

#[tokio::test(start_paused = true)]
async fn the_process_serves_when_the_policy_is_in_force() {
    let (control, lifecycle) = (awaiting(), Lifecycle::starting());
    let serving = serve_with_policy(&control, &lifecycle, REQUIRED);
    let policy = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(lifecycle.phase(), Phase::Starting);
        control.apply(&limited(), Source::Operator).expect("valid");
        assert!(!control.settle_for_defaults(), "there is a policy");
    };
    tokio::join!(serving, policy);
    assert_eq!((lifecycle.phase(), control.snapshot().source), (Phase::Serving, Source::Operator));
}

#[tokio::test(start_paused = true)]
async fn without_a_policy_the_setting_decides_and_the_operator_may_come_later() {
    for (require_policy, source) in [(true, Source::Awaited), (false, Source::Default)] {
        let (control, lifecycle) = (awaiting(), Lifecycle::starting());
        let begun = tokio::time::Instant::now();
        serve_with_policy(&control, &lifecycle, Startup { require_policy, ..REQUIRED }).await;
        assert_eq!(begun.elapsed(), REQUIRED.timeout);
        assert_eq!((lifecycle.phase(), control.snapshot().source), (Phase::Serving, source));
        control.apply(&limited(), Source::Operator).expect("valid");
        assert_eq!(control.snapshot().source, Source::Operator);
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_stopped_before_it_served_stays_stopped() {
    let (control, lifecycle) = (Control::new(Vec::new()), Lifecycle::starting());
    lifecycle.drain(&control, Delay::Whole, || async {}).await;
    lifecycle.serve();
    assert_eq!(lifecycle.phase(), Phase::Ended);
}

/// A proxy's start as far as clients see it, with one data thread.
fn begin(control: Arc<Control>, listener: TcpListener) -> [JoinHandle<()>; 2] {
    let second = Duration::from_secs(1);
    let limits = Limits { head: second, idle: second, stall: second };
    let thread = DataThread::new(
        control.clone(),
        Metrics::default().shard(),
        Trust::default(),
        Bounds::of_one_thread(limits),
    );
    let lifecycle = Lifecycle::starting();
    let accepting =
        listener::accept(thread, std::rc::Rc::new(listener), Front::Clients(None), lifecycle.clone());
    let serving = async move { serve_with_policy(&control, &lifecycle, REQUIRED).await };
    [tokio::task::spawn_local(accepting), tokio::task::spawn_local(serving)]
}

async fn yield_some() {
    for _ in 0..fastrand::u32(..12) {
        yield_now().await;
    }
}

async fn ask(address: SocketAddr) -> String {
    yield_some().await;
    let mut stream = TcpStream::connect(address).await.expect("the port is bound");
    yield_some().await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer.to_ascii_lowercase()
}

/// In virtual time, so that the timeout passes in some of them before the policy comes, and in others not.
#[test]
fn in_10000_starts_no_request_is_served_under_other_rules_than_those_asked_for() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("starts");
    let bound = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    bound.set_nonblocking(true).expect("set");
    let address = bound.local_addr().expect("an address");
    let mut refused = 0;
    for _ in 0..10_000 {
        let answer = LocalSet::new().block_on(&runtime, async {
            let listener = TcpListener::from_std(bound.try_clone().expect("cloned")).expect("registered");
            let control = awaiting();
            let tasks = begin(control.clone(), listener);
            let asking = tokio::task::spawn_local(ask(address));
            yield_some().await;
            tokio::time::sleep(fastrand::u32(..20) * Duration::from_secs(1)).await;
            control.apply(&limited(), Source::Operator).expect("valid");
            let answer = asking.await.expect("it does not panic");
            tasks.iter().for_each(JoinHandle::abort);
            answer
        });
        if answer.contains("error=proxy_configuration_error") {
            refused += 1;
        } else {
            assert!(answer.contains("ratelimit-policy:"), "served without the limit: {answer}");
        }
    }
    assert!((2000..8000).contains(&refused), "{refused} refused: the test does not see all cases");
}

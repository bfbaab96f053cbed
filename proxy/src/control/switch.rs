//! Ends the switches of the strategy whose time is over.

use std::sync::Arc;
use std::time::Instant;

use tokio::time::sleep_until;

use super::Control;

/// Watches the switches. Never ends.
pub async fn run(control: Arc<Control>) {
    let mut changes = control.changes();
    loop {
        let now = tokio::time::Instant::now().into_std();
        let ended = control.end_switches(|switch| switch.until <= now);
        if ended != 0 {
            tracing::info!(ended, "the switch of the strategy is over: the policy's own is in force");
        }
        let end = control.next_end();
        tokio::select! {
            () = until(end) => {}
            changed = changes.changed() => if changed.is_err() { return }, // the sender lives as long as `control`
        }
    }
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use outrigger_policy::effective::{LoadBalancer, LoadBalancerType, Strategy};
    use outrigger_policy::merge::Merged;
    use outrigger_policy::wire::{KeyRing, Update};

    use super::*;
    use crate::snapshot::{Source, Switch};
    use crate::worker::Worker;

    fn control() -> Arc<Control> {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        Control::new(["a", "b"].map(|name| Worker::new(name, address)).to_vec())
    }

    fn policy(yaml: &str) -> Update {
        let spec = serde_yaml::from_str(yaml).expect("a spec");
        Update::new(Merged { spec, ..Merged::default() }, KeyRing::default())
    }

    const ROUTES: &str = "{loadBalancer: {type: LeastRequest}, routes: [{name: api, match: {method: GET}}]}";

    fn switch(route: Option<&str>, strategy: Strategy, lasting: u64) -> Switch {
        Switch {
            route: route.map(str::to_owned),
            section: Default::default(),
            load_balancer: LoadBalancer { strategy, slow_start: None },
            reason: None,
            until: tokio::time::Instant::now().into_std() + Duration::from_secs(lasting),
        }
    }

    fn kinds(control: &Control) -> Vec<LoadBalancerType> {
        control.snapshot().routes.iter().map(|route| route.policy.load_balancer.strategy.kind()).collect()
    }

    use LoadBalancerType::{LeastRequest, Random, RoundRobin};

    #[tokio::test(start_paused = true)]
    async fn a_switch_ends_by_itself() {
        let control = control();
        control.apply(&policy(ROUTES), Source::File).expect("valid");
        let watching = tokio::spawn(run(control.clone()));
        control.switch(switch(None, Strategy::Random, 60));
        control.switch(switch(Some("api"), Strategy::RoundRobin, 30));
        assert_eq!(kinds(&control), [RoundRobin, Random]);
        tokio::time::sleep(Duration::from_secs(31)).await;
        assert_eq!(kinds(&control), [Random, Random]);
        control.change_workers(|workers| workers[..1].to_vec());
        assert_eq!(kinds(&control), [Random, Random], "other workers end no switch");
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(kinds(&control), [LeastRequest, LeastRequest]);
        watching.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn another_policy_ends_it_and_the_same_one_does_not() {
        let control = control();
        control.apply(&policy(ROUTES), Source::File).expect("valid");
        control.switch(switch(None, Strategy::Random, 60));
        assert_eq!(control.apply(&policy(ROUTES), Source::File), Ok(false));
        assert_eq!(kinds(&control), [Random, Random]);
        control.apply(&policy("{loadBalancer: {type: LeastRequest}}"), Source::File).expect("valid");
        assert_eq!(kinds(&control), [LeastRequest]);
        assert!(control.snapshot().switches.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_switch_replaces_an_earlier_one() {
        let control = control();
        control.apply(&policy(ROUTES), Source::File).expect("valid");
        control.switch(switch(Some("api"), Strategy::Random, 60));
        control.switch(switch(Some("api"), Strategy::RoundRobin, 60));
        assert_eq!((kinds(&control), control.snapshot().switches.len()), (vec![RoundRobin, LeastRequest], 1));
        control.switch(switch(None, Strategy::Random, 60));
        assert_eq!((kinds(&control), control.snapshot().switches.len()), (vec![Random, Random], 1));
        assert_eq!(control.end_switches(|_| true), 1);
        assert_eq!(kinds(&control), [LeastRequest, LeastRequest]);
    }
}

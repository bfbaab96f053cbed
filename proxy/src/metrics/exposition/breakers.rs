//! The families of the circuit breakers, of every level.

use std::fmt;
use std::time::Instant;

use outrigger_policy::effective::BreakerName;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::{Number, number};
use crate::breaker::{State, Transition, View};
use crate::snapshot::Snapshot;

/// `level` is `worker`, `route` or `service`, `name` the worker's or the route's.
pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
    let now = Instant::now();
    let workers = snapshot.workers.iter().map(|worker| (worker.breaker.name(), worker.breaker.view(now), 0));
    let gates = snapshot.gates().map(|gate| (gate.name(), gate.view(now), gate.refused()));
    let breakers: Vec<Shown<'_>> = workers.chain(gates).collect();
    let states: Vec<_> = State::ALL.map(State::name).into_iter().enumerate().collect();
    Breakers { encoder, breakers: &breakers }.gauges(
        ["breaker_state", "1 for the state the breaker is in", "state"],
        &states,
        |(_, view, _), state| u64::from(view.state == State::ALL[state].name()),
    )?;
    Breakers { encoder, breakers: &breakers }.gauges(
        ["breaker_override", "Whether people hold the breaker, by the policy or by the API", "by"],
        &[(0, "policy"), (1, "api")],
        |(_, view, _), by| u64::from(view.hold.as_ref().is_some_and(|hold| hold.by == ["policy", "api"][by])),
    )?;
    let transitions: Vec<_> = Transition::ALL.map(Transition::name).into_iter().enumerate().collect();
    Breakers { encoder, breakers: &breakers }.counters(
        ["breaker_transitions", "Changes of the breaker's state", "transition"],
        &transitions,
        |(_, view, _), transition| view.tally.transitions[transition],
    )?;
    Breakers { encoder, breakers: &breakers }.counters(
        ["breaker_calls", "Calls, by what they said; slow ones are successful or failed, too", "kind"],
        &[(0, "successful"), (1, "failed"), (2, "slow"), (3, "refused")],
        |(_, view, refused), kind| {
            [view.tally.successful, view.tally.failed, view.tally.slow, *refused][kind]
        },
    )
}

/// A breaker, what is seen of it, and the requests it refused.
type Shown<'a> = (&'a BreakerName, View, u64);

/// The breakers of every level.
struct Breakers<'a, 'b, 'c> {
    encoder: &'a mut DescriptorEncoder<'b>,
    breakers: &'c [Shown<'c>],
}

impl Breakers<'_, '_, '_> {
    /// A family of one number for each breaker and each value of one more label: name, help, and the label.
    fn family(
        self,
        [name, help, label]: [&str; 3],
        values: &[(usize, &'static str)],
        kind: MetricType,
        of: impl Fn(&Shown<'_>, usize) -> Number,
    ) -> fmt::Result {
        let mut family = self.encoder.encode_descriptor(name, help, None, kind)?;
        for shown in self.breakers {
            for (i, value) in values {
                let labels = [("level", shown.0.level()), ("name", shown.0.name()), (label, *value)];
                number(family.encode_family(&labels)?, of(shown, *i))?;
            }
        }
        Ok(())
    }

    fn gauges(
        self,
        named: [&str; 3],
        values: &[(usize, &'static str)],
        of: impl Fn(&Shown<'_>, usize) -> u64,
    ) -> fmt::Result {
        self.family(named, values, MetricType::Gauge, |shown, i| Number::Gauge(of(shown, i)))
    }

    fn counters(
        self,
        named: [&str; 3],
        values: &[(usize, &'static str)],
        of: impl Fn(&Shown<'_>, usize) -> u64,
    ) -> fmt::Result {
        self.family(named, values, MetricType::Counter, |shown, i| Number::Count(of(shown, i)))
    }
}

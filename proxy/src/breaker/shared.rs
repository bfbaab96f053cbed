//! The breaker that concurrent requests meet.
//!
//! To ask and to acquire, a request reads one atomic word and takes no lock, while the breaker is closed, open,
//! forced, or there is none; only a half-open breaker that still permits probes is asked under its lock. The word is
//! a copy of what the locked state machine says, written under that lock. It may lag behind: a request that is let
//! through by an old word carries the era of that word, and so its outcome counts for nothing.

mod census;
mod word;

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_policy::effective::{self, BreakerMode, BreakerName, BreakerOverride};

pub use self::census::{any_takes_a_share, any_waits};
use self::word::{ASK, BYPASS, FORCED, FULL, OFF, OPEN, PASS, RAMP, Word};
use super::command::Commands;
use super::sync::{AtomicU64, Mutex, MutexGuard, Ordering::*};
use super::{Action, Breaker, Call, Command, Era, NoBreaker, Phase, Pool, Standing, State, Transition, View};
use crate::availability;

/// A moment, and what is random in it.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// The time.
    pub now: Instant,
    /// Covers the whole range of `u64`.
    pub random: u64,
}

/// A breaker, or none, and what people told it. It starts with none. What every request asks comes first.
#[repr(C)]
pub struct SharedBreaker {
    /// The era and, in the last three bits, what a request may do without asking further.
    word: AtomicU64,
    /// In nanoseconds since `epoch`: until when it is open, or since when the share grows. Written before the word.
    time: AtomicU64,
    /// How long the share grows, in nanoseconds.
    ramp: AtomicU64,
    inner: Mutex<Inner>,
    standing: Arc<Standing>,
    epoch: Instant,
    name: BreakerName,
}

struct Inner {
    /// Rare and large: a worker without one is small.
    breaker: Option<Box<Breaker>>,
    /// The era in which there is no breaker, or the last one of those: eras never repeat.
    without: u64,
    commands: Commands,
    mode: BreakerMode,
    /// The wall clock when it was last told, in milliseconds since 1970. Until then no override holds.
    unix_millis: i64,
    /// When it was told.
    told: Instant,
    pool: Option<Arc<Pool>>,
}

impl SharedBreaker {
    /// No breaker, with a name for those to come.
    pub fn new(name: BreakerName) -> Self {
        let epoch = Instant::now();
        Self {
            name,
            epoch, // only a zero for differences of times that are given
            word: AtomicU64::new(Word::new(Era(0), OFF).0),
            time: AtomicU64::new(0),
            ramp: AtomicU64::new(0),
            standing: Arc::default(),
            inner: Mutex::new(Inner {
                breaker: None,
                without: 0,
                commands: Commands::default(),
                mode: BreakerMode::Enforced,
                unix_millis: i64::MAX,
                told: epoch,
                pool: None,
            }),
        }
    }

    /// Which breaker it is.
    pub fn name(&self) -> &BreakerName {
        &self.name
    }

    /// What the other breakers of its pool see of it.
    pub fn standing(&self) -> &Arc<Standing> {
        &self.standing
    }

    /// Makes it one of a pool's.
    pub fn join(&self, pool: &Arc<Pool>) {
        self.inner.lock().pool = Some(pool.clone());
    }

    /// Puts settings in force. A breaker keeps its state and its counts, see `Breaker::reconfigure`; without
    /// settings there is none, and one that comes back later starts closed. What the admin API said stays.
    pub fn configure(
        &self,
        settings: Option<&effective::Breaker>,
        held: Option<&BreakerOverride>,
        now: Instant,
    ) {
        let mut inner = self.inner.lock();
        match (&mut inner.breaker, settings) {
            (Some(breaker), Some(settings)) => breaker.reconfigure(settings),
            (None, Some(settings)) => {
                let era = Era(inner.without).next();
                inner.breaker = Some(Box::new(Breaker::in_era(settings, era)));
            }
            (Some(breaker), None) => {
                inner.without = breaker.era.next().0;
                inner.breaker = None;
                self.standing.close();
            }
            (None, None) => (),
        }
        inner.commands.policy = held.cloned();
        self.settle(&mut inner, now);
        self.publish(&inner);
    }

    /// Does what the admin API says.
    ///
    /// # Errors
    /// That there is no breaker that could be half-open.
    pub fn command(&self, command: Command, now: Instant, unix_millis: i64) -> Result<(), NoBreaker> {
        let mut inner = self.inner.lock();
        (inner.unix_millis, inner.told) = (unix_millis, now);
        match (command.action, &mut inner.breaker) {
            (Action::HalfOpen, None) => return Err(NoBreaker),
            (Action::HalfOpen, Some(breaker)) => breaker.probe(now),
            (Action::Reset, Some(breaker)) => {
                breaker.reset(now);
                self.standing.close();
            }
            _ => (),
        }
        let Command { action, reason, until_unix_millis } = &command;
        tracing::warn!(breaker = %self.name, action = action.name(), reason, until_unix_millis, "breaker told by the API");
        inner.commands.api = Some(command);
        self.settle(&mut inner, now);
        self.publish(&inner);
        Ok(())
    }

    /// What time brings about: overrides end, waiting ends, probes are given up. To be called now and then, with the
    /// wall clock in milliseconds since 1970.
    pub fn tick(&self, at: At, unix_millis: i64) {
        let mut inner = self.inner.lock();
        (inner.unix_millis, inner.told) = (unix_millis, at.now);
        if inner.commands.api.as_ref().is_some_and(|command| command.until_unix_millis <= unix_millis) {
            inner.commands.api = None;
        }
        self.settle(&mut inner, at.now);
        let transition = inner.breaker.as_mut().and_then(|breaker| breaker.tick(at));
        self.publish(&inner);
        self.announce(transition, &inner, at.now);
    }

    /// Whether a request may be sent. Changes nothing.
    pub fn admits(&self, now: Instant) -> bool {
        match self.word().tag() {
            OFF | PASS | RAMP | BYPASS => true,
            FULL | FORCED => false,
            OPEN => self.time() <= self.nanos(now), // its waiting time is over: the lock is for who acquires
            _ => self.inner.lock().breaker.as_ref().is_none_or(|breaker| breaker.admits(now)),
        }
    }

    /// Whether this request is of the share that a breaker which has just closed takes. Changes nothing.
    pub fn takes_share(&self, now: Instant, random: u64) -> bool {
        if self.word().tag() != RAMP {
            return true;
        }
        let (elapsed, ramp) = (self.nanos(now).saturating_sub(self.time()), self.ramp.load(Relaxed).max(1));
        let grown = u128::from(elapsed.min(ramp)) * 900 / u128::from(ramp);
        (u128::from(random) * 1000) >> 64 < 100 + grown
    }

    /// Takes the right to send one request, which must be given back by `record` or by `abandon`.
    pub fn acquire(&self, now: Instant) -> Option<Era> {
        let word = self.word();
        match word.tag() {
            OFF | PASS | RAMP => return Some(word.era()),
            BYPASS => return Some(Era::NONE),
            FULL | FORCED => return None,
            OPEN if self.nanos(now) < self.time() => return None,
            _ => (),
        }
        let mut inner = self.inner.lock();
        let forced_open = inner.mode == BreakerMode::ForcedOpen;
        let (transition, era) = match &mut inner.breaker {
            Some(breaker) => {
                let transition = breaker.tick(At { now, random: fastrand::u64(..) });
                (transition, breaker.acquire(now))
            }
            None if forced_open => (None, None),
            None => (None, Some(Era(inner.without))),
        };
        self.publish(&inner);
        self.announce(transition, &inner, now);
        era
    }

    /// A permit although the breaker is open: its outcome decides nothing. `None` where people hold it open.
    pub fn pass_over(&self) -> Option<Era> {
        (self.word().tag() != FORCED).then_some(Era::NONE)
    }

    /// Gives a permit back with its outcome.
    pub fn record(&self, era: Era, call: Call, now: Instant) -> Option<Transition> {
        let mut guard = self.current(era)?;
        let Inner { breaker, pool, .. } = &mut *guard;
        let breaker = breaker.as_mut()?;
        if breaker.era == era && matches!(breaker.phase, Phase::Closed { .. }) {
            self.standing.note(breaker.is_bad(call));
        }
        let may_open = || pool.as_ref().map_or(Ok(()), |pool| pool.try_open(&self.standing));
        let probing = matches!(breaker.phase, Phase::HalfOpen { .. });
        let transition = breaker.record(era, call, At { now, random: fastrand::u64(..) }, may_open);
        if transition == Some(Transition::Closed) {
            self.standing.close();
        }
        if transition.is_some() || probing {
            self.publish(&guard);
        }
        self.announce(transition, &guard, now);
        transition
    }

    /// Gives a permit back without an outcome.
    pub fn abandon(&self, era: Era) {
        if !self.half_open() {
            return; // an era has one state: a permit of a half-open one is of the past now
        }
        if let Some(mut inner) = self.current(era)
            && let Some(breaker) = &mut inner.breaker
        {
            breaker.abandon(era);
            self.publish(&inner);
        }
    }

    /// Whether requests pass only to find out how it stands, if any do.
    pub fn half_open(&self) -> bool {
        matches!(self.word().tag(), ASK | FULL)
    }

    /// Whether there is a breaker whose calls are counted.
    pub(super) fn counts(&self) -> bool {
        self.word().tag() != OFF
    }

    /// How long until a request may pass that is refused now, as far as that is known.
    pub fn retry_after(&self, now: Instant) -> Option<Duration> {
        let left = Duration::from_nanos(self.time().saturating_sub(self.nanos(now)));
        match self.word().tag() {
            OPEN => Some(left),
            FORCED if self.time() != u64::MAX => Some(left),
            _ => None,
        }
    }

    /// The state at this time.
    pub fn state(&self, now: Instant) -> State {
        let inner = self.inner.lock();
        match &inner.breaker {
            Some(breaker) => breaker.state(now),
            None if inner.mode == BreakerMode::ForcedOpen => State::Open,
            None => State::Closed,
        }
    }

    /// What can be seen at this time.
    pub fn view(&self, now: Instant) -> View {
        let inner = self.inner.lock();
        let mut view = inner.breaker.as_ref().map_or(View::NONE, |breaker| breaker.view(now));
        view.mode = inner.mode;
        view.hold = inner.commands.hold(inner.unix_millis);
        if inner.mode == BreakerMode::ForcedOpen {
            view.state = State::Open.name();
            view.cause = Some(match &view.hold {
                Some(hold) => format!("held open by the {}: {}", hold.by, hold.reason),
                None => String::from("the policy's mode is ForcedOpen"),
            });
            view.open_remaining =
                view.hold.as_ref().map(|hold| left(hold.until_unix_millis, inner.unix_millis));
        }
        view
    }

    /// The lock, unless outcomes of this era decide nothing: it is over, or there is no breaker.
    fn current(&self, era: Era) -> Option<MutexGuard<'_, Inner>> {
        let word = self.word();
        (word.tag() != OFF && word.era() == era).then(|| self.inner.lock())
    }

    fn word(&self) -> Word {
        Word(self.word.load(Acquire))
    }

    fn time(&self) -> u64 {
        self.time.load(Relaxed)
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Brings the mode in line with what was said and with the time.
    fn settle(&self, inner: &mut Inner, now: Instant) {
        let settings = inner.breaker.as_ref().map_or(BreakerMode::Enforced, |breaker| breaker.settings.mode);
        let mode = inner.commands.mode(settings, inner.unix_millis);
        if mode != inner.mode {
            let hold = inner.commands.hold(inner.unix_millis);
            let reason = hold.as_ref().map(|hold| hold.reason.as_str());
            let by = hold.as_ref().map(|hold| hold.by);
            tracing::warn!(breaker = %self.name, ?mode, by, reason, "breaker mode changed");
        }
        inner.mode = mode;
        if let Some(breaker) = &mut inner.breaker {
            breaker.set_mode(mode, now);
        }
    }

    /// Called under the lock, after each change of what the word says.
    fn publish(&self, inner: &Inner) {
        let era = inner.breaker.as_ref().map_or(Era(inner.without), |breaker| breaker.era);
        let (tag, time) = self.tag(inner);
        let before = self.word().tag();
        census::changed(before, tag);
        self.time.store(time, Relaxed);
        self.word.store(Word::new(era, tag).0, Release);
        if before != tag {
            availability::changed();
        }
    }

    fn tag(&self, inner: &Inner) -> (u64, u64) {
        if inner.mode == BreakerMode::ForcedOpen {
            return (FORCED, self.forced_until(inner));
        }
        let Some(breaker) = &inner.breaker else { return (OFF, 0) };
        let enforced = inner.mode == BreakerMode::Enforced;
        match breaker.phase {
            Phase::Closed { ramp: Some(since) } if enforced => {
                let length = breaker.settings.recovery_ramp.as_nanos();
                self.ramp.store(u64::try_from(length).unwrap_or(u64::MAX), Relaxed);
                (RAMP, self.nanos(since))
            }
            Phase::Closed { .. } => (PASS, 0),
            _ if inner.mode == BreakerMode::ForcedClosed => (BYPASS, 0),
            Phase::Open { until } if enforced => (OPEN, self.nanos(until)),
            Phase::HalfOpen { permitted, taken, .. } if taken < permitted => (ASK, 0),
            Phase::HalfOpen { .. } if enforced => (FULL, 0),
            Phase::Open { .. } | Phase::HalfOpen { .. } => (BYPASS, 0),
        }
    }

    /// When the hold is over.
    fn forced_until(&self, inner: &Inner) -> u64 {
        let Some(hold) = inner.commands.hold(inner.unix_millis) else { return u64::MAX };
        let left = left(hold.until_unix_millis, inner.unix_millis).as_nanos();
        self.nanos(inner.told).saturating_add(u64::try_from(left).unwrap_or(u64::MAX))
    }

    /// One line for each change of state. It is rare enough to be written under the lock, so in order.
    fn announce(&self, transition: Option<Transition>, inner: &Inner, now: Instant) {
        let (Some(transition), Some(breaker)) = (transition, &inner.breaker) else { return };
        let view = breaker.view(now);
        let next_probe_seconds = view.open_remaining.map(|left| left.as_secs_f64());
        let (level, name, mode) = (self.name.level(), self.name.name(), format!("{:?}", inner.mode));
        tracing::warn!(
            breaker = %self.name, level, name, transition = transition.name(), cause = view.cause,
            next_probe_seconds, mode, calls = view.calls, failures = view.failures,
            "circuit breaker changed its state"
        );
    }
}

impl Drop for SharedBreaker {
    fn drop(&mut self) {
        census::changed(self.word().tag(), OFF);
    }
}

fn left(until_unix_millis: i64, unix_millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(until_unix_millis.saturating_sub(unix_millis)).unwrap_or(0))
}

#[cfg(all(test, loom))]
mod model;
#[cfg(test)]
mod tests;

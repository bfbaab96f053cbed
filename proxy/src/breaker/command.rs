//! What people tell a breaker, and what of it holds: the admin API's word over the policy's override over the mode.
//! Each ends by itself.

use outrigger_policy::effective::{BreakerMode, BreakerOverride, OverrideState};

/// What the admin API can do to a breaker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Hold it open.
    Open,
    /// Hold it closed.
    Close,
    /// Forget all, be closed, and decide by itself.
    Reset,
    /// Let the next few requests decide, and go on by itself.
    HalfOpen,
}

impl Action {
    /// Every action, by the name it has in the API.
    pub const ALL: [(&'static str, Self); 4] =
        [("open", Self::Open), ("close", Self::Close), ("reset", Self::Reset), ("half-open", Self::HalfOpen)];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

/// A word of the admin API. Until it is over, no override of the policy and no forced mode applies.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Command {
    /// What to do.
    pub action: Action,
    /// Why.
    pub reason: String,
    /// Until when it holds, in milliseconds since 1970.
    pub until_unix_millis: i64,
}

/// What holds now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hold {
    /// `api` or `policy`.
    pub by: &'static str,
    /// The action's name.
    pub action: &'static str,
    /// Why.
    pub reason: String,
    /// Until when, in milliseconds since 1970.
    pub until_unix_millis: i64,
}

/// Why a breaker cannot be told to be half-open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the policy configures no breaker here, so there is nothing that could probe; it can be opened and closed"
)]
pub struct NoBreaker;

/// Everything that people said of one breaker.
#[derive(Default)]
pub(super) struct Commands {
    pub(super) policy: Option<BreakerOverride>,
    pub(super) api: Option<Command>,
}

impl Commands {
    /// What holds at this time of the wall clock.
    pub(super) fn hold(&self, unix_millis: i64) -> Option<Hold> {
        if let Some(Command { action, reason, until_unix_millis }) =
            self.api.as_ref().filter(|command| unix_millis < command.until_unix_millis)
        {
            let (reason, until_unix_millis) = (reason.clone(), *until_unix_millis);
            return Some(Hold { by: "api", action: action.name(), reason, until_unix_millis });
        }
        let held = self.policy.as_ref().filter(|held| held.holds(unix_millis))?;
        let action = match held.state {
            OverrideState::Open => Action::Open,
            OverrideState::Closed => Action::Close,
        };
        let until_unix_millis = held.until_unix_millis;
        Some(Hold { by: "policy", action: action.name(), reason: held.reason.clone(), until_unix_millis })
    }

    /// The mode that follows from it, of a breaker whose settings have this one.
    pub(super) fn mode(&self, settings: BreakerMode, unix_millis: i64) -> BreakerMode {
        match self.hold(unix_millis).map(|hold| hold.action) {
            None => settings,
            Some("open") => BreakerMode::ForcedOpen,
            Some("close") => BreakerMode::ForcedClosed,
            Some(_) if settings == BreakerMode::MetricsOnly => settings,
            Some(_) => BreakerMode::Enforced,
        }
    }
}

#[cfg(test)]
mod tests {
    use outrigger_policy::effective::BreakerName;

    use super::*;

    fn by_policy(state: OverrideState) -> BreakerOverride {
        BreakerOverride {
            breaker: BreakerName::Service,
            state,
            until_unix_millis: 1000,
            reason: String::from("a test"),
        }
    }

    fn by_api(action: Action) -> Command {
        Command { action, reason: String::from("a test"), until_unix_millis: 500 }
    }

    #[test]
    fn the_last_word_is_the_apis_and_each_is_over_in_its_time() {
        for (api, expected) in [
            (None, BreakerMode::ForcedOpen),
            (Some(Action::Open), BreakerMode::ForcedOpen),
            (Some(Action::Close), BreakerMode::ForcedClosed),
            (Some(Action::Reset), BreakerMode::Enforced),
            (Some(Action::HalfOpen), BreakerMode::Enforced),
        ] {
            let commands = Commands { policy: Some(by_policy(OverrideState::Open)), api: api.map(by_api) };
            assert_eq!(commands.mode(BreakerMode::ForcedClosed, 499), expected, "{api:?}");
            assert_eq!(
                commands.mode(BreakerMode::ForcedClosed, 500),
                BreakerMode::ForcedOpen,
                "the policy's"
            );
            assert_eq!(
                commands.mode(BreakerMode::MetricsOnly, 1000),
                BreakerMode::MetricsOnly,
                "all are over"
            );
            assert_eq!(commands.hold(1000), None);
        }
        let closed = Commands { policy: Some(by_policy(OverrideState::Closed)), api: None };
        assert_eq!(closed.mode(BreakerMode::Enforced, 0), BreakerMode::ForcedClosed);
        assert_eq!(closed.hold(0).map(|hold| (hold.by, hold.action)), Some(("policy", "close")));
    }

    #[test]
    fn what_only_measures_goes_on_to_only_measure() {
        let commands = Commands { policy: None, api: Some(by_api(Action::Reset)) };
        assert_eq!(commands.mode(BreakerMode::MetricsOnly, 0), BreakerMode::MetricsOnly);
    }

    #[test]
    fn the_names_are_in_order() {
        Action::ALL.iter().for_each(|(name, action)| assert_eq!(action.name(), *name));
    }
}

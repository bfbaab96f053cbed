//! Which version of the workers a request goes to, while a new one takes over, and what each version answered.
//!
//! The operator says the share; here it is kept, request by request or client by client. A client's place between 0
//! and 100 % is a hash of who it is, so it is the same in every proxy and after every restart, and as the share grows
//! a client changes once at most.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::HeaderMap;
use outrigger_policy::effective::{self, CanaryStickiness};
use outrigger_policy::report::CanaryReport;
use outrigger_policy::sample::{BUCKETS, Sample, bucket};
use outrigger_policy::wire::CanaryShare;

use crate::balance::Usable;

/// A canary in progress.
pub struct Canary {
    rules: effective::Canary,
    share: CanaryShare,
    /// Whether pods have versions, this one and its siblings; otherwise workers of each pod do.
    by_pods: bool,
    /// The places of the new version's members.
    new: Usable,
    /// The places of members that take requests at all: they have a weight.
    weighted: Usable,
    counts: Arc<Counts>,
    /// Sets one canary's clients apart from another's: it is not always the same who goes first.
    salt: u64,
}

/// A worker or a sibling, as a canary sees it.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// The version it runs, if it is named.
    pub version: Option<&'a str>,
    /// Its weight.
    pub weight: u32,
}

/// Where a request is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// To the old version, and to the new one where the old one has no worker.
    Old,
    /// To the new version, and to the old one where the new one has no worker.
    New,
    /// To the new version and nowhere else; it is not counted.
    Preview,
    /// To whichever version is there; it is not counted. So are, where pods have versions, the requests of siblings,
    /// who drew and count them, and those that cannot leave the pod.
    Any,
}

/// What the versions answered in one epoch.
pub struct Counts {
    epoch: String,
    old: Side,
    new: Side,
}

struct Side {
    requests: AtomicU64,
    failures: AtomicU64,
    latency: Box<[AtomicU64; BUCKETS]>,
}

/// Where what comes of a request is counted.
#[derive(Clone)]
pub struct Tally {
    counts: Arc<Counts>,
    new: bool,
}

impl Canary {
    /// The canary of these rules over these members, in the order of their places. Without a share the new version
    /// gets nothing. What was counted goes on where the epoch is still the same.
    pub fn next(
        previous: Option<&Self>,
        rules: &effective::Canary,
        share: Option<&CanaryShare>,
        members: &[Member<'_>],
    ) -> Self {
        let share = share.cloned().unwrap_or_default();
        let kept = previous.filter(|previous| previous.counts.epoch == share.epoch);
        let counts = match kept {
            Some(previous) => previous.counts.clone(),
            None => Arc::new(Counts::new(&share.epoch)),
        };
        let places = |is: &dyn Fn(&Member<'_>) -> bool| {
            members.iter().enumerate().filter(|(_, member)| is(member)).map(|(place, _)| place).collect()
        };
        Self {
            salt: hash(0, rules.run().as_bytes()),
            new: places(&|member| member.version == Some(rules.version.as_str())),
            weighted: places(&|member| member.weight != 0),
            by_pods: rules.pod_label.is_some(),
            rules: rules.clone(),
            share,
            counts,
        }
    }

    /// The lane of a request; `random` covers the whole range of `u64`.
    pub fn lane(&self, headers: &HeaderMap, client: IpAddr, random: u64) -> Lane {
        if let Some((name, value)) = &self.rules.preview
            && headers.get(name.as_str()).is_some_and(|found| found.as_bytes() == value.as_bytes())
        {
            return Lane::Preview;
        }
        let point = match self.rules.stickiness {
            CanaryStickiness::Request => random,
            CanaryStickiness::Client => self.place_of(headers, client),
        };
        let percent = (u128::from(point) * 100) >> 64;
        if percent < u128::from(self.share.weight) { Lane::New } else { Lane::Old }
    }

    fn place_of(&self, headers: &HeaderMap, client: IpAddr) -> u64 {
        let header = self.rules.client_header.as_deref().and_then(|name| headers.get(name));
        match (header, client) {
            (Some(value), _) => hash(self.salt, value.as_bytes()),
            (None, IpAddr::V4(v4)) => hash(self.salt, &v4.octets()),
            (None, IpAddr::V6(v6)) => hash(self.salt, &v6.octets()[..8]), // a client holds a /64 at least
        }
    }

    /// Whether pods have versions, this one and its siblings; otherwise workers of each pod do.
    pub fn by_pods(&self) -> bool {
        self.by_pods
    }

    /// The members of `usable` that a request of this lane may go to, and whether they are the new version's. None for
    /// `Lane::Any`, which is for no version.
    pub fn narrow(&self, usable: &Usable, lane: Lane) -> Option<(Usable, bool)> {
        let usable = usable.intersection(&self.weighted);
        let new = usable.intersection(&self.new);
        let old = usable.without(&self.new);
        Some(match (lane, self.share.weight) {
            (Lane::Any, _) => return None,
            (Lane::Old | Lane::New, 100..) if self.is_missing() => (old, false),
            (Lane::Preview, _) | (_, 100..) => (new, true),
            (_, 0) => (old, false),
            (Lane::New, _) if !new.is_empty() => (new, true),
            (Lane::Old, _) if old.is_empty() => (new, true),
            (Lane::Old | Lane::New, _) => (old, false),
        })
    }

    /// Whether no pod of the new version is there at all. Then it cannot be meant to have everything: it was not
    /// rolled out yet, or is gone after it was.
    fn is_missing(&self) -> bool {
        self.by_pods && self.new.intersection(&self.weighted).is_empty()
    }

    /// Whether a session's worker still takes its requests.
    pub fn keeps(&self, place: usize, lane: Lane) -> bool {
        match (self.new.contains(place), lane) {
            (true, Lane::Preview) => true,
            (false, Lane::Preview) => false,
            (_, Lane::Any) => true,
            (true, _) => self.share.weight != 0,
            (false, _) => self.share.weight < 100 || self.is_missing(),
        }
    }

    /// Where what comes of a request to this worker is counted.
    pub fn tally(&self, place: usize, lane: Lane) -> Option<Tally> {
        let new = self.new.contains(place);
        (!matches!(lane, Lane::Preview | Lane::Any)).then(|| Tally { counts: self.counts.clone(), new })
    }

    /// The new version's share, in percent.
    pub fn weight(&self) -> u32 {
        self.share.weight
    }

    /// The new version.
    pub fn version(&self) -> &str {
        &self.rules.version
    }

    /// What was counted, for the operator; nothing before it began the canary.
    pub fn report(&self) -> Option<CanaryReport> {
        let Counts { epoch, old, new } = &*self.counts;
        let report = || CanaryReport { epoch: epoch.clone(), old: old.sample(), new: new.sample() };
        (!epoch.is_empty()).then(report)
    }
}

impl Counts {
    fn new(epoch: &str) -> Self {
        Self { epoch: epoch.to_owned(), old: Side::new(), new: Side::new() }
    }
}

impl Side {
    fn new() -> Self {
        let latency = Box::new(std::array::from_fn(|_| AtomicU64::default()));
        Self { requests: AtomicU64::default(), failures: AtomicU64::default(), latency }
    }

    fn sample(&self) -> Sample {
        let counts = self.latency.iter().map(|count| count.load(Relaxed)).enumerate();
        Sample {
            // read first: a request that ends meanwhile is missing, not failed without having been sent
            failures: self.failures.load(Relaxed),
            latency: counts
                .filter(|(_, count)| *count != 0)
                .map(|(place, count)| (place as u16, count))
                .collect(),
            requests: self.requests.load(Relaxed),
        }
    }
}

impl Tally {
    /// The request was answered after this time, well or not. How fast a version fails says nothing of its latency.
    pub fn answered(&self, failed: bool, latency: Duration) {
        let side = self.side();
        side.requests.fetch_add(1, Relaxed);
        if failed {
            side.failures.fetch_add(1, Relaxed);
        } else {
            side.latency[bucket(latency)].fetch_add(1, Relaxed);
        }
    }

    /// A request that had been answered well failed after all.
    pub fn failed_late(&self) {
        self.side().failures.fetch_add(1, Relaxed);
    }

    fn side(&self) -> &Side {
        if self.new { &self.counts.new } else { &self.counts.old }
    }
}

/// FNV-1a, its bits mixed by the finalizer of MurmurHash3: the same in every process and release.
fn hash(salt: u64, bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ salt;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests;

//! How long a route's answers take, as far as a percentile of the last seconds says: counts in buckets that grow by
//! an eighth, so that any percentile is right to within 13 %.

use std::time::Duration;

/// Buckets of a factor of two.
const PARTS: u32 = 8;
/// From a microsecond to a minute and more.
const OCTAVES: u32 = 26;
const BUCKETS: usize = (PARTS * OCTAVES) as usize;
/// Counts are of the present five seconds and the five before.
const TURN: Duration = Duration::from_secs(5);
/// How long a percentile that was looked up is good for.
const FRESH: Duration = Duration::from_millis(250);
/// Fewer answers say nothing.
const ENOUGH: u32 = 20;

/// The answers of one route and thread.
#[derive(Clone, Debug)]
pub(super) struct Latency {
    counts: [Box<[u32; BUCKETS]>; 2],
    turn: u128,
    cached: Option<(Duration, Option<Duration>)>,
}

impl Default for Latency {
    fn default() -> Self {
        Self { counts: [Box::new([0; BUCKETS]), Box::new([0; BUCKETS])], turn: 0, cached: None }
    }
}

impl Latency {
    /// An answer took so long.
    pub(super) fn record(&mut self, latency: Duration, now: Duration) {
        self.forget(now);
        self.counts[0][bucket(latency)] += 1;
    }

    /// What so many percent of the answers kept below; `None` when there were too few.
    pub(super) fn percentile(&mut self, percent: u32, now: Duration) -> Option<Duration> {
        if let Some((at, found)) = self.cached
            && now.saturating_sub(at) < FRESH
        {
            return found;
        }
        self.forget(now);
        let count = |place: usize| self.counts[0][place] + self.counts[1][place];
        let all: u32 = (0..BUCKETS).map(count).sum();
        let mut left = (u64::from(all) * u64::from(percent)).div_ceil(100);
        let place = (0..BUCKETS).find(|place| {
            let here = u64::from(count(*place));
            let found = left <= here;
            left = left.saturating_sub(here);
            found
        });
        let found = place.filter(|_| ENOUGH <= all).map(upper);
        self.cached = Some((now, found));
        found
    }

    fn forget(&mut self, now: Duration) {
        let turn = now.as_millis() / TURN.as_millis();
        if turn == self.turn {
            return;
        }
        self.counts.swap(0, 1);
        self.counts[0].fill(0);
        if self.turn + 1 < turn {
            self.counts[1].fill(0);
        }
        self.turn = turn;
    }
}

fn bucket(latency: Duration) -> usize {
    let micros = latency.as_micros().clamp(1, 1 << OCTAVES) as u64;
    let octave = micros.ilog2();
    let part = ((micros << 3) >> octave) as usize & 7;
    (octave as usize * PARTS as usize + part).min(BUCKETS - 1)
}

/// What every latency of the bucket is below.
fn upper(bucket: usize) -> Duration {
    let (octave, part) = (bucket / PARTS as usize, bucket as u64 % u64::from(PARTS));
    Duration::from_micros(((u64::from(PARTS) + part + 1) << octave) / u64::from(PARTS) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(millis: impl Iterator<Item = u64>, now: Duration) -> Latency {
        let mut latency = Latency::default();
        millis.for_each(|millis| latency.record(Duration::from_millis(millis), now));
        latency
    }

    #[test]
    fn percentiles_are_right_to_an_eighth() {
        let now = Duration::from_secs(1);
        for (percent, exact) in [(50, 500.0), (90, 900.0), (99, 990.0)] {
            let found = filled(1..=1000, now).percentile(percent, now).expect("enough").as_secs_f64() * 1e3;
            assert!((1.0..1.13).contains(&(found / exact)), "{percent}: {found}");
        }
    }

    #[test]
    fn every_latency_is_below_the_end_of_its_bucket() {
        for micros in (0..20_000).chain((1..60).map(|second| second * 1_000_000 + 7)) {
            let latency = Duration::from_micros(micros);
            let upper = upper(bucket(latency));
            assert!(
                latency < upper && upper <= latency.mul_f64(1.126) + Duration::from_micros(3),
                "{micros}: {upper:?}"
            );
        }
        assert_eq!(bucket(Duration::from_secs(3600)), BUCKETS - 1);
    }

    #[test]
    fn few_answers_say_nothing_and_old_ones_are_forgotten() {
        let now = Duration::from_secs(1);
        assert_eq!(filled(1..20, now).percentile(95, now), None);
        let mut old = filled(1..=100, now);
        assert!(old.percentile(95, Duration::from_secs(6)).is_some());
        assert_eq!(old.percentile(95, Duration::from_secs(10)), None);
    }
}

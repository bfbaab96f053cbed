//! The rules of `loadBalancer`.

use std::time::Duration;

use super::{Check, HOUR, MILLISECOND, MINUTE, SECOND};
use crate::effective::{self, HashAlgorithm, HashKey, Strategy};
use crate::spec::{self, ConsistentHashAlgorithm, ConsistentHashType, LoadBalancerType, SelectionMethod};
use crate::units::{Decimal, DurationText};

/// `LeastRequest` compares all of up to so many workers where nothing else is said.
const FULL_SCAN: usize = 8;
/// Points that a ring may have.
const RING: u64 = 1 << 20;
/// The metrics that a report may have besides those with names of their own.
const METRICS: [&str; 3] = ["cpu_utilization", "mem_utilization", "application_utilization"];

impl Check {
    pub(super) fn load_balancer(
        &mut self,
        at: &str,
        section: &spec::LoadBalancerSpec,
    ) -> effective::LoadBalancer {
        let kind = section.kind.unwrap_or_default();
        self.settings_of_the_type_only(at, section, kind);
        let strategy = match kind {
            LoadBalancerType::RoundRobin => Strategy::RoundRobin,
            LoadBalancerType::Random => Strategy::Random,
            LoadBalancerType::LeastRequest => self.least_request(at, section.least_request.as_ref()),
            LoadBalancerType::PeakEwma => self.peak_ewma(at, section.peak_ewma.as_ref()),
            LoadBalancerType::ConsistentHash => self.consistent_hash(at, section.consistent_hash.as_ref()),
            LoadBalancerType::BackendUtilization => {
                self.backend_utilization(at, section.backend_utilization.as_ref())
            }
            LoadBalancerType::Predictive => self.predictive(at, section.predictive.as_ref()),
            LoadBalancerType::CostAware => self.cost_aware(at, section.cost_aware.as_ref()),
        };
        let slow_start = section.slow_start.as_ref().map(|section| self.slow_start(at, section));
        effective::LoadBalancer { strategy, slow_start }
    }

    fn settings_of_the_type_only(
        &mut self,
        at: &str,
        section: &spec::LoadBalancerSpec,
        kind: LoadBalancerType,
    ) {
        let set = [
            ("leastRequest", section.least_request.is_some(), LoadBalancerType::LeastRequest),
            ("peakEwma", section.peak_ewma.is_some(), LoadBalancerType::PeakEwma),
            ("consistentHash", section.consistent_hash.is_some(), LoadBalancerType::ConsistentHash),
            (
                "backendUtilization",
                section.backend_utilization.is_some(),
                LoadBalancerType::BackendUtilization,
            ),
            ("predictive", section.predictive.is_some(), LoadBalancerType::Predictive),
            ("costAware", section.cost_aware.is_some(), LoadBalancerType::CostAware),
        ];
        for (field, _, of) in set.into_iter().filter(|(_, is_set, of)| *is_set && *of != kind) {
            self.violation(
                &format!("{at}.{field}"),
                format!("must not be set for the type '{}': it is for '{}'", kind.name(), of.name()),
            );
        }
    }

    fn least_request(&mut self, at: &str, section: Option<&spec::LeastRequestSpec>) -> Strategy {
        let section = section.cloned().unwrap_or_default();
        let method = section.selection_method.unwrap_or_default();
        let choices = format!("{at}.leastRequest.choiceCount");
        let choice_count = self.number(&choices, section.choice_count.unwrap_or(2), 2..=16);
        if method == SelectionMethod::FullScan && section.choice_count.is_some() {
            self.violation(&choices, "must not be set for the selection method 'FullScan'");
        }
        let full_scan = match method {
            SelectionMethod::Auto => FULL_SCAN,
            SelectionMethod::FullScan => usize::MAX,
            SelectionMethod::NChoices => 0,
        };
        Strategy::LeastRequest(effective::LeastRequest { full_scan, choice_count })
    }

    fn peak_ewma(&mut self, at: &str, section: Option<&spec::PeakEwmaSpec>) -> Strategy {
        let section = section.cloned().unwrap_or_default();
        let at = format!("{at}.peakEwma");
        let bounds = [100 * MILLISECOND, 10 * MINUTE];
        Strategy::PeakEwma(effective::PeakEwma {
            decay_time: self.duration(
                &format!("{at}.decayTime"),
                section.decay_time.as_ref(),
                10 * SECOND,
                bounds,
            ),
            default_response_time: self.duration(
                &format!("{at}.defaultResponseTime"),
                section.default_response_time.as_ref(),
                10 * MILLISECOND,
                [MILLISECOND, MINUTE],
            ),
            penalty: self.penalty(&at, section.penalty.as_ref()),
            max_retry_after: self.duration(
                &format!("{at}.maxRetryAfter"),
                section.max_retry_after.as_ref(),
                5 * MINUTE,
                [Duration::ZERO, HOUR],
            ),
        })
    }

    fn penalty(&mut self, at: &str, text: Option<&DurationText>) -> Duration {
        self.duration(&format!("{at}.penalty"), text, 5 * SECOND, [Duration::ZERO, 5 * MINUTE])
    }

    fn consistent_hash(&mut self, at: &str, section: Option<&spec::ConsistentHashSpec>) -> Strategy {
        let at = format!("{at}.consistentHash");
        let Some(section) = section else {
            self.violation(&at, "must be set for the type 'ConsistentHash': it says what the key is");
            return Strategy::default();
        };
        let key = self.hash_key(&at, section);
        let algorithm = self.hash_algorithm(&at, section);
        let balance_factor = section
            .hash_balance_factor
            .map(|factor| self.number(&format!("{at}.hashBalanceFactor"), factor, 101..=10_000));
        Strategy::ConsistentHash(effective::ConsistentHash { key, algorithm, balance_factor })
    }

    fn hash_algorithm(&mut self, at: &str, section: &spec::ConsistentHashSpec) -> HashAlgorithm {
        let (nodes, table) = (format!("{at}.virtualNodes"), format!("{at}.tableSize"));
        match section.algorithm.unwrap_or_default() {
            ConsistentHashAlgorithm::Ring => {
                if section.table_size.is_some() {
                    self.violation(&table, "must not be set for the algorithm 'Ring'");
                }
                let virtual_nodes = self.number(&nodes, section.virtual_nodes.unwrap_or(512), 16..=1024);
                let points = u64::from(virtual_nodes) * self.total_weight;
                if RING < points {
                    self.violation(
                        &nodes,
                        format!(
                            "must make a ring of at most {RING} points: with the weights of spec.workers it would \
                             have {points}; lower `virtualNodes` or the weights"
                        ),
                    );
                }
                HashAlgorithm::Ring(virtual_nodes)
            }
            ConsistentHashAlgorithm::Maglev => {
                if section.virtual_nodes.is_some() {
                    self.violation(&nodes, "must not be set for the algorithm 'Maglev'");
                }
                let size = self.number(&table, section.table_size.unwrap_or(65_537), 251..=1_048_573);
                if !is_prime(size) {
                    self.violation(&table, format!("must be a prime number, not {size}"));
                }
                HashAlgorithm::Maglev(size)
            }
        }
    }

    fn hash_key(&mut self, at: &str, section: &spec::ConsistentHashSpec) -> HashKey {
        let fields = [
            ("header", &section.header, ConsistentHashType::Header),
            ("cookie", &section.cookie, ConsistentHashType::Cookie),
            ("queryParam", &section.query_param, ConsistentHashType::QueryParam),
        ];
        for (field, value, of) in fields {
            let path = format!("{at}.{field}");
            match value {
                Some(_) if of != section.kind => {
                    self.violation(&path, format!("must not be set for the type '{:?}'", section.kind));
                }
                Some(name) if of == ConsistentHashType::QueryParam => self.text(&path, name, 128),
                Some(name) => self.token(&path, name, 128),
                None if of == section.kind => {
                    self.violation(&path, format!("must be set for the type '{of:?}'"));
                }
                None => {}
            }
        }
        let name = |field: &Option<String>| field.clone().unwrap_or_default();
        match section.kind {
            ConsistentHashType::SourceIP => HashKey::SourceIp,
            ConsistentHashType::Header => HashKey::Header(name(&section.header).to_ascii_lowercase()),
            ConsistentHashType::Cookie => HashKey::Cookie(name(&section.cookie)),
            ConsistentHashType::QueryParam => HashKey::QueryParam(name(&section.query_param)),
            ConsistentHashType::Path => HashKey::Path,
        }
    }

    fn backend_utilization(&mut self, at: &str, section: Option<&spec::BackendUtilizationSpec>) -> Strategy {
        let section = section.cloned().unwrap_or_default();
        let at = format!("{at}.backendUtilization");
        let metrics = section.metric_names_for_computing_utilization.unwrap_or_default();
        self.metric_names(&format!("{at}.metricNamesForComputingUtilization"), &metrics);
        let mut duration = |field: &str, text: Option<&_>, default, bounds| {
            self.duration(&format!("{at}.{field}"), text, default, bounds)
        };
        Strategy::BackendUtilization(effective::BackendUtilization {
            metrics,
            blackout_period: duration(
                "blackoutPeriod",
                section.blackout_period.as_ref(),
                10 * SECOND,
                [Duration::ZERO, 10 * MINUTE],
            ),
            expiration_period: duration(
                "weightExpirationPeriod",
                section.weight_expiration_period.as_ref(),
                3 * MINUTE,
                [SECOND, HOUR],
            ),
            update_period: duration(
                "weightUpdatePeriod",
                section.weight_update_period.as_ref(),
                SECOND,
                [100 * MILLISECOND, MINUTE],
            ),
            error_penalty_percent: self.number(
                &format!("{at}.errorUtilizationPenaltyPercent"),
                section.error_utilization_penalty_percent.unwrap_or(100),
                0..=1000,
            ),
            keep_response_headers: section.keep_response_headers.unwrap_or(false),
        })
    }

    fn metric_names(&mut self, at: &str, names: &[String]) {
        self.at_most(at, names.len(), 16);
        for (i, name) in names.iter().enumerate() {
            let own = name.strip_prefix("named_metrics.").or_else(|| name.strip_prefix("utilization."));
            let known = METRICS.contains(&name.as_str()) || own.is_some_and(|own| !own.is_empty());
            if !known || 128 < name.len() {
                self.violation(
                    &format!("{at}[{i}]"),
                    format!(
                        "must be one of {} or begin with 'named_metrics.' or 'utilization.', and have at most 128 \
                         characters, not '{name}'",
                        METRICS.map(|name| format!("'{name}'")).join(", ")
                    ),
                );
            }
        }
    }

    fn predictive(&mut self, at: &str, section: Option<&spec::PredictiveSpec>) -> Strategy {
        let section = section.cloned().unwrap_or_default();
        let at = format!("{at}.predictive");
        let [level_percent, trend_percent] = [
            ("levelSmoothingPercent", section.level_smoothing_percent.unwrap_or(50)),
            ("trendSmoothingPercent", section.trend_smoothing_percent.unwrap_or(30)),
        ]
        .map(|(field, percent)| self.number(&format!("{at}.{field}"), percent, 1..=100));
        Strategy::Predictive(effective::Predictive {
            horizon: self.duration(
                &format!("{at}.horizon"),
                section.horizon.as_ref(),
                5 * SECOND,
                [500 * MILLISECOND, MINUTE],
            ),
            interval: self.duration(
                &format!("{at}.interval"),
                section.interval.as_ref(),
                500 * MILLISECOND,
                [100 * MILLISECOND, 10 * SECOND],
            ),
            level_percent,
            trend_percent,
            penalty: self.penalty(&at, section.penalty.as_ref()),
        })
    }

    fn cost_aware(&mut self, at: &str, section: Option<&spec::CostAwareSpec>) -> Strategy {
        let section = section.cloned().unwrap_or_default();
        Strategy::CostAware(effective::CostAware {
            latency_objective: self.duration(
                &format!("{at}.costAware.latencyObjective"),
                section.latency_objective.as_ref(),
                100 * MILLISECOND,
                [MILLISECOND, MINUTE],
            ),
        })
    }

    fn slow_start(&mut self, at: &str, section: &spec::SlowStartSpec) -> effective::SlowStart {
        let at = format!("{at}.slowStart");
        let aggression = section.aggression.unwrap_or(Decimal(1.0));
        effective::SlowStart {
            window: self.duration(
                &format!("{at}.window"),
                Some(&section.window),
                10 * SECOND,
                [SECOND, HOUR],
            ),
            min_weight_percent: self.number(
                &format!("{at}.minWeightPercent"),
                section.min_weight_percent.unwrap_or(10),
                1..=100,
            ),
            aggression: Decimal(self.number(&format!("{at}.aggression"), aggression.0, 0.1..=10.0)),
        }
    }
}

fn is_prime(number: u32) -> bool {
    let root = (2..).take_while(|divisor| divisor * divisor <= number);
    2 <= number && root.into_iter().all(|divisor| !number.is_multiple_of(divisor))
}

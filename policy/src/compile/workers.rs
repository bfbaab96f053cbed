//! The rules of `workers`.

use super::Check;
use crate::effective;
use crate::spec;

impl Check {
    pub(super) fn workers(&mut self, workers: &[spec::WorkerSpec]) -> Vec<effective::WorkerRule> {
        self.at_most("spec.workers", workers.len(), 256);
        self.unique("spec.workers", workers.iter().map(|worker| worker.name.as_str()));
        let rules: Vec<_> = workers
            .iter()
            .enumerate()
            .map(|(i, worker)| {
                self.name(&format!("spec.workers[{i}].name"), &worker.name);
                if let Some(version) = &worker.version {
                    self.name(&format!("spec.workers[{i}].version"), version);
                }
                effective::WorkerRule {
                    version: worker.version.clone(),
                    name: worker.name.clone(),
                    weight: self.number(
                        &format!("spec.workers[{i}].weight"),
                        worker.weight.unwrap_or(1),
                        0..=100,
                    ),
                    cost: self.number(
                        &format!("spec.workers[{i}].cost"),
                        worker.cost.unwrap_or(1),
                        0..=1_000_000,
                    ),
                    drain: worker.drain.unwrap_or(false),
                    protocol: worker.protocol.unwrap_or_default(),
                }
            })
            .collect();
        rules
    }
}

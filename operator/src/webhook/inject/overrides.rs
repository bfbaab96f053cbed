//! What one pod wants different, in its annotations. An annotation is here only when the proxy it configures
//! does what it says.

use std::collections::BTreeMap;
use std::net::IpAddr;

use outrigger_policy::Violation;
use outrigger_policy::drain::DRAIN_ANNOTATION;

use super::{Settings, VERSION_ANNOTATION, Worker};

/// The ports of the workers, separated by commas: in place of ports named `worker-…`.
pub(super) const WORKERS: &str = "outrigger.dev/workers";
/// The port on which the proxy takes requests.
pub(super) const PORT: &str = "outrigger.dev/port";
/// The port of the proxy's metrics and health.
pub(super) const ADMIN_PORT: &str = "outrigger.dev/admin-port";
/// The port on which the proxy takes requests of siblings.
pub(super) const SIBLING_PORT: &str = "outrigger.dev/sibling-port";
const IMAGE: &str = "outrigger.dev/proxy-image";
const LOG: &str = "outrigger.dev/proxy-log";
const CPU_REQUEST: &str = "outrigger.dev/proxy-cpu-request";
const CPU_LIMIT: &str = "outrigger.dev/proxy-cpu-limit";
const MEMORY_REQUEST: &str = "outrigger.dev/proxy-memory-request";
const MEMORY_LIMIT: &str = "outrigger.dev/proxy-memory-limit";
const TRUSTED_HOPS: &str = "outrigger.dev/trusted-hops";
const TRUSTED_NETWORKS: &str = "outrigger.dev/trusted-networks";
const MAX_CONNECTIONS: &str = "outrigger.dev/max-connections";

/// Workers of one pod.
const MOST_WORKERS: usize = 256;

/// The annotations of one pod, read.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    pub(super) workers: Option<Vec<Worker>>,
    settings: Vec<(Field, String)>,
    ports: [Option<u16>; 3],
}

/// A setting that an annotation replaces.
type Field = fn(&mut Settings) -> &mut String;

/// The settings that are text: the annotation, what it replaces, and what must hold for the value.
const TEXTS: [(&str, Field, Rule); 9] = [
    (IMAGE, |settings| &mut settings.proxy_image, image),
    (LOG, |settings| &mut settings.proxy_log, log),
    (CPU_REQUEST, |settings| &mut settings.proxy_cpu_request, quantity),
    (CPU_LIMIT, |settings| &mut settings.proxy_cpu_limit, quantity),
    (MEMORY_REQUEST, |settings| &mut settings.proxy_memory_request, quantity),
    (MEMORY_LIMIT, |settings| &mut settings.proxy_memory_limit, quantity),
    (TRUSTED_HOPS, |settings| &mut settings.proxy_trusted_hops, hops),
    (TRUSTED_NETWORKS, |settings| &mut settings.proxy_trusted_networks, networks),
    (MAX_CONNECTIONS, |settings| &mut settings.proxy_max_connections, connections),
];

/// What is wrong with a value.
type Rule = fn(&str) -> Option<&'static str>;

impl Overrides {
    /// Reads all, and says everything that is wrong. An annotation of ours that does not exist is wrong too:
    /// it is a misspelt one.
    pub(super) fn read(annotations: &BTreeMap<String, String>) -> Result<Self, Vec<Violation>> {
        let mut overrides = Self::default();
        let mut violations = Vec::new();
        for (key, value) in annotations.iter().filter(|(key, _)| key.starts_with("outrigger.dev/")) {
            if let Err(reason) = overrides.take(key, value.trim()) {
                violations.push(Violation { path: path(key), reason });
            }
        }
        if violations.is_empty() { Ok(overrides) } else { Err(violations) }
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            WORKERS => self.workers = Some(workers(value)?),
            PORT => self.ports[0] = Some(port(value)?),
            ADMIN_PORT => self.ports[1] = Some(port(value)?),
            SIBLING_PORT => self.ports[2] = Some(port(value)?),
            VERSION_ANNOTATION | DRAIN_ANNOTATION => {} // the operator follows the latter as long as the pod lives
            _ => {
                let (_, field, wrong) = TEXTS.iter().find(|(name, ..)| *name == key).ok_or_else(unknown)?;
                if let Some(reason) = wrong(value) {
                    return Err(format!("{reason}, not '{value}'"));
                }
                self.settings.push((*field, value.to_owned()));
            }
        }
        Ok(())
    }

    /// The settings of this pod.
    pub(super) fn apply(&self, settings: &Settings) -> Settings {
        let mut settings = settings.clone();
        for (field, value) in &self.settings {
            value.clone_into(field(&mut settings));
        }
        settings.proxy_port = self.ports[0].unwrap_or(settings.proxy_port);
        settings.proxy_admin_port = self.ports[1].unwrap_or(settings.proxy_admin_port);
        settings.proxy_sibling_port = self.ports[2].unwrap_or(settings.proxy_sibling_port);
        settings
    }
}

/// Where an annotation is, for messages.
pub(super) fn path(annotation: &str) -> String {
    format!("metadata.annotations[{annotation}]")
}

fn unknown() -> String {
    let mut known = vec![WORKERS, PORT, ADMIN_PORT, SIBLING_PORT, DRAIN_ANNOTATION];
    known.extend(TEXTS.iter().map(|(name, ..)| *name));
    format!("must be one of {}", known.join(", "))
}

fn workers(value: &str) -> Result<Vec<Worker>, String> {
    let mut workers: Vec<Worker> = Vec::new();
    for text in value.split(',') {
        let port = port(text.trim()).map_err(|reason| format!("each entry {reason}"))?;
        if workers.iter().any(|worker| worker.port == port) {
            return Err(format!("must not name port {port} twice"));
        }
        workers.push(Worker { name: format!("worker-{port}"), port });
    }
    if MOST_WORKERS < workers.len() {
        return Err(format!("must name at most {MOST_WORKERS} ports"));
    }
    Ok(workers)
}

/// A port that a process without privileges may bind.
fn port(value: &str) -> Result<u16, String> {
    match value.parse() {
        Ok(port) if 1024 <= port => Ok(port),
        _ => Err(format!("must be a port, 1024 to 65535, not '{value}'")),
    }
}

fn image(value: &str) -> Option<&'static str> {
    let good = !value.is_empty() && value.len() <= 512 && value.bytes().all(|b| b.is_ascii_graphic());
    (!good).then_some("must be an image reference")
}

/// A level, or targets with levels: what the proxy's log filter takes.
fn log(value: &str) -> Option<&'static str> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let good = value.split(',').all(|directive| {
        let level = directive.rsplit('=').next().unwrap_or_default();
        LEVELS.contains(&level.to_ascii_lowercase().as_str())
    });
    (!good).then_some("must be error, warn, info, debug, or target=level pairs")
}

fn quantity(value: &str) -> Option<&'static str> {
    const UNITS: [&str; 11] = ["", "m", "k", "M", "G", "T", "Ki", "Mi", "Gi", "Ti", "P"];
    let digits = value.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, unit) = value.split_at(digits);
    let good = number.parse::<f64>().is_ok_and(|number| 0.0 < number) && UNITS.contains(&unit);
    (!good).then_some("must be a quantity such as '250m' or '64Mi'")
}

fn hops(value: &str) -> Option<&'static str> {
    value.parse::<u8>().is_err().then_some("must be 0 to 255")
}

fn networks(value: &str) -> Option<&'static str> {
    let network = |text: &str| {
        let (address, prefix) = text.split_once('/')?;
        let most = if address.parse::<IpAddr>().ok()?.is_ipv4() { 32 } else { 128 };
        prefix.parse::<u8>().ok().filter(|prefix| *prefix <= most)
    };
    let good = value.split(',').all(|text| network(text).is_some());
    (!good).then_some("must be networks such as '10.0.0.0/8', separated by commas without spaces")
}

fn connections(value: &str) -> Option<&'static str> {
    let good = value.parse::<u32>().is_ok_and(|number| (1..=1_000_000).contains(&number));
    (!good).then_some("must be 1 to 1000000")
}

//! What the chart tells the operator is something the operator listens to.

use std::collections::BTreeSet;

use clap::{Args, Command};
use outrigger_operator::config::Config;

/// The names between quotes: the others are made from parts.
fn named(template: &str) -> BTreeSet<&str> {
    let whole = |name: &&str| name.starts_with("OUTRIGGER_") && !name.contains('%');
    template.split('"').filter(whole).collect()
}

#[test]
fn every_setting_of_the_chart_is_one_of_the_operator() {
    let template = include_str!("../../charts/outrigger/templates/_env.tpl");
    let command = Config::augment_args(Command::new("run"));
    let known: BTreeSet<_> =
        command.get_arguments().filter_map(|argument| argument.get_env()?.to_str()).collect();
    let mut given = named(template);
    assert!(20 < given.len());
    given.extend(["OUTRIGGER_PROXY_CPU_REQUEST", "OUTRIGGER_PROXY_CPU_LIMIT"]);
    given.extend(["OUTRIGGER_PROXY_MEMORY_REQUEST", "OUTRIGGER_PROXY_MEMORY_LIMIT"]);
    let unknown: Vec<_> = given.difference(&known).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    // The rest are where things listen and who this is, which the chart fixes elsewhere.
    let silent: Vec<_> = known.difference(&given).filter(|name| name.starts_with("OUTRIGGER_")).collect();
    assert!(
        silent
            .iter()
            .all(|name| name.ends_with("_LISTEN") || name.contains("_PEER_") || name.contains("_PUSH_")),
        "the chart has no value for {silent:?}"
    );
}

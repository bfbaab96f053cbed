//! `outrigger-operator`: runs the operator, or prints the CustomResourceDefinition.

use std::io::Write;

use anyhow::Context;
use clap::{Parser, Subcommand};
use outrigger_operator::{app, config::Config, crd};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The operator of Outrigger: pushes ClusterPolicy resources to the proxies.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the operator.
    Run(Box<Config>),
    /// Print the CustomResourceDefinition.
    Crd,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Crd => {
            let definition = crd::definition()?;
            std::io::stdout().lock().write_all(definition.as_bytes()).context("cannot write")
        }
        Command::Run(config) => run(*config),
    }
}

#[tokio::main]
async fn run(config: Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log).context("the log filter is not valid")?;
    tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).init();
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let client = kube::Client::try_default().await.context("no cluster")?;
    let mut running = tokio::select! {
        running = app::start(client, config) => running?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        name = running.failed() => anyhow::bail!("an essential part of the operator has ended: {name}"),
    }
    running.stop().await;
    Ok(())
}

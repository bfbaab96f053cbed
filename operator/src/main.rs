//! `outrigger-operator`: runs the operator, or prints the CustomResourceDefinition.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use outrigger_operator::{app, config::Config, crd};
use outrigger_telemetry::log;
use tokio::signal::unix::{SignalKind, signal};

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

fn main() -> ExitCode {
    let ended = match Arguments::parse().command {
        Command::Crd => print_definition(),
        Command::Run(config) => log::start(&config.log, &[]).map_err(Into::into).and_then(|()| run(*config)),
    };
    log::flush();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::last_words(format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn print_definition() -> anyhow::Result<()> {
    let definition = crd::definition()?;
    std::io::stdout().lock().write_all(definition.as_bytes()).context("cannot write")
}

#[tokio::main]
async fn run(config: Config) -> anyhow::Result<()> {
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

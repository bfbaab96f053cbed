//! `outrigger-proxy`: reads the settings, starts the proxy, and stops it on a signal.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use outrigger_proxy::app::{self, Workers};
use outrigger_proxy::config::{Cli, Command, Process, Run};
use outrigger_proxy::control::file;
use outrigger_proxy::drain::Delay;
use outrigger_proxy::essential;
use outrigger_proxy::refusals;
use outrigger_proxy::supervisor;
use outrigger_proxy::worker::Worker;
use outrigger_telemetry::log;
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(serve) => match serve.distinct_workers() {
            Ok(workers) => {
                let workers = workers.iter().map(|worker| Worker::new(&worker.name, worker.address));
                run(&serve.process, Workers::Given(workers.collect()))
            }
            Err(reason) => Err(anyhow::Error::msg(reason)),
        },
        Command::Run(run_command) => {
            let Run { command, workers, worker_port, .. } = run_command;
            let settings = supervisor::Settings::new(command, workers.get(), worker_port);
            run(&run_command.process, Workers::Started(settings))
        }
        Command::Check { paths } => return check(&paths),
        Command::Drain { pid } => return drain(pid),
        Command::Warden => return warden(),
    };
    match result {
        Ok(code) => {
            log::flush();
            code
        }
        Err(error) => {
            log::flush();
            log::last_words(format!("error: {}", told_once(&error))); // nobody reads JSON in a terminal
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes, without those that it has told already.
fn told_once(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !told.contains(&cause) {
            let separator = if told.is_empty() { "" } else { ": " };
            told = format!("{told}{separator}{cause}");
        }
    }
    told
}

fn run(process: &Process, workers: Workers) -> Result<ExitCode> {
    log::start(&process.log, &[refusals::TARGET]).context("--log")?;
    essential::log_panics();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default(); // only once: nobody did before
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let ignored = ignore_signals(matches!(workers, Workers::Given(_)))?;
        let beginning = workers.beginning();
        let running = app::start(process, workers)?;
        let lifecycle = running.lifecycle();
        let served = async {
            let (ended, delay) = tokio::select! {
                _ = terminate.recv() => (ExitCode::SUCCESS, Delay::Whole),
                _ = interrupt.recv() => (ExitCode::SUCCESS, Delay::WhileConnected),
                thread = running.thread_ended() => {
                    tracing::error!(thread, "the process ends: it is not whole without this thread");
                    (ExitCode::FAILURE, Delay::Whole)
                }
            };
            // A second SIGTERM is no second wish: a pod's end sends one for its preStop hook, and one for itself.
            let again = async {
                interrupt.recv().await;
                lifecycle.cut();
                std::future::pending().await
            };
            tokio::select! {
                () = running.drain(delay) => ended,
                () = again => ended,
            }
        };
        tokio::select! {
            ended = served => Ok(ended),
            reason = beginning.failed() => Err(anyhow::Error::msg(reason).context("no worker can be started")),
            () = ignored => Ok(ExitCode::FAILURE), // it never ends
        }
    })
}

/// Signals whose default would end the process. Under `run` SIGHUP replaces the workers.
fn ignore_signals(hangup_too: bool) -> Result<impl Future<Output = ()>> {
    let mut hangup = signal(SignalKind::hangup())?;
    let (mut one, mut two) = (signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?);
    Ok(async move {
        loop {
            tokio::select! {
                _ = hangup.recv() => if hangup_too {
                    tracing::info!("SIGHUP: policy and certificate are followed by themselves, and need no signal");
                },
                _ = one.recv() => tracing::info!("SIGUSR1 is ignored"),
                _ = two.recv() => tracing::info!("SIGUSR2 is ignored"),
            }
        }
    })
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command for people")]
fn check(paths: &[std::path::PathBuf]) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for path in paths {
        match file::load_once(path) {
            Ok(_) => println!("{}: valid", path.display()),
            Err(violations) => {
                code = ExitCode::FAILURE;
                for violation in violations {
                    eprintln!("{}: {violation}", path.display());
                }
            }
        }
    }
    code
}

#[expect(clippy::print_stderr, reason = "it has no log")]
fn warden() -> ExitCode {
    match supervisor::warden::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("a warden is started by `outrigger-proxy run` alone: {error}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stderr, reason = "a command for people")]
fn drain(pid: i32) -> ExitCode {
    let asked = Pid::from_raw(pid).map(|process| kill_process(process, Signal::TERM));
    match asked {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("process {pid} cannot be asked to drain: {error}");
            ExitCode::FAILURE
        }
        None => {
            eprintln!("{pid} is no process");
            ExitCode::FAILURE
        }
    }
}

//! Node's reader, llhttp: `tests/node/reader.js`, a server over streams in memory.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::{Read, Reading, comparable, sorted};
use crate::tools::{Started, program};

/// A running Node.
pub struct Node {
    bytes: ChildStdin,
    readings: Lines<BufReader<ChildStdout>>,
    /// Methods that it knows.
    pub methods: Vec<String>,
    _process: Started,
}

/// Texts are bytes, a character each.
#[derive(Deserialize)]
struct Told {
    method: String,
    target: String,
    fields: Vec<(String, String)>,
    trailers: Vec<(String, String)>,
    /// In base64.
    body: String,
}

#[derive(Deserialize)]
struct Line {
    requests: Vec<Told>,
    refusal: Option<String>,
}

impl Node {
    pub fn start() -> Result<Self> {
        let mut command = Command::new(program("node"));
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("node/reader.js"));
        let mut process = Started::new(command.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let bytes = process.0.stdin.take().context("no input")?;
        let mut readings = BufReader::new(process.0.stdout.take().context("no output")?).lines();
        let methods = serde_json::from_str(&readings.next().context("Node says nothing")??)?;
        Ok(Self { bytes, readings, methods, _process: process })
    }

    /// What Node makes of each of these.
    pub fn read(&mut self, cases: &[Vec<u8>]) -> Result<Vec<Reading>> {
        let Self { bytes, readings, .. } = self;
        // Both ways at once: each side of a full pipe would wait for the other.
        std::thread::scope(|scope| {
            let sent = scope.spawn(|| send(bytes, cases));
            let heard = cases.iter().map(|_| next(readings)).collect();
            sent.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
            heard
        })
    }
}

fn send(to: &mut ChildStdin, cases: &[Vec<u8>]) -> Result<()> {
    for case in cases {
        to.write_all(&u32::try_from(case.len())?.to_be_bytes())?;
        to.write_all(case)?;
    }
    Ok(to.flush()?)
}

fn next(readings: &mut Lines<BufReader<ChildStdout>>) -> Result<Reading> {
    let line: Line = serde_json::from_str(&readings.next().context("Node ended")??)?;
    let requests = line.requests.into_iter().map(heard).collect::<Result<_>>()?;
    Ok(Reading { requests, refusal: line.refusal })
}

fn heard(told: Told) -> Result<Read> {
    let bytes = |fields: Vec<(String, String)>| {
        sorted(fields.into_iter().map(|(name, value)| (name, latin1(&value))))
    };
    Ok(Read {
        method: told.method,
        target: comparable(&told.target),
        fields: bytes(told.fields),
        trailers: bytes(told.trailers),
        body: STANDARD.decode(told.body)?,
    })
}

fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|char| u8::try_from(u32::from(char)).unwrap_or(b'?')).collect()
}

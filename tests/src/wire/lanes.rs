//! Runs cases side by side: each lane is one proxy with one recording worker, and takes cases one after the other,
//! so that every byte at the worker belongs to a known case.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::client::{self, Client, Cut, Plan};
use super::corpus::{Case, Expect, Hostile};
use super::grammar::show;
use super::h2;
use super::judge::{self, Answer, Deviation, told};
use super::recorder::{Recorded, Recorder, Script, echo};

/// One proxy in front of one worker.
pub struct Lane {
    /// Where it speaks HTTP/1.1.
    pub proxy: SocketAddr,
    /// Where it speaks HTTP/2 by prior knowledge.
    pub h2: SocketAddr,
    pub recorder: Recorder,
}

impl Lane {
    /// A proxy that speaks both on one port.
    pub fn of(proxy: SocketAddr, recorder: Recorder) -> Self {
        Self { proxy, h2: proxy, recorder }
    }
}

/// The verdict on one case.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub id: String,
    pub deviations: Vec<Deviation>,
    /// What the worker received and what the client saw, to read.
    pub evidence: String,
    pub forwarded: bool,
    pub took: Duration,
    /// What the case expects, and whether that is a rule of this proxy's own; `None` for a hostile answer.
    pub expected: Option<(Expect, bool)>,
}

/// One case of either kind.
#[derive(Clone, Debug)]
pub enum Job {
    Request(Box<Case>),
    /// A hostile worker, seen by a client of HTTP/1.1 or, when `h2`, of HTTP/2.
    Response {
        case: Box<Hostile>,
        h2: bool,
    },
}

/// Runs all jobs, one at a time on each lane.
pub async fn run(lanes: Vec<Lane>, jobs: Vec<Job>) -> Result<Vec<Verdict>> {
    let queue = Arc::new(Mutex::new(VecDeque::from(jobs)));
    let mut running = Vec::new();
    for lane in lanes {
        let queue = Arc::clone(&queue);
        running.push(tokio::spawn(async move {
            let mut verdicts = Vec::new();
            while let Some(job) = take(&queue) {
                verdicts.push(lane.run(&job).await);
            }
            verdicts
        }));
    }
    let mut verdicts = Vec::new();
    for lane in running {
        verdicts.extend(lane.await?);
    }
    verdicts.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(verdicts)
}

fn take(queue: &Mutex<VecDeque<Job>>) -> Option<Job> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

impl Lane {
    pub async fn run(&self, job: &Job) -> Verdict {
        let began = Instant::now();
        self.recorder.take();
        let (id, tried) = match job {
            Job::Request(case) => (case.id.clone(), self.request(case).await),
            Job::Response { case, h2: false } => (format!("{} (h1)", case.id), self.response_h1(case).await),
            Job::Response { case, h2: true } => (format!("{} (h2)", case.id), self.response_h2(case).await),
        };
        let (deviations, forwarded, evidence) = tried.unwrap_or_else(|error| {
            (vec![told(format!("the case could not be run: {error:#}"))], false, String::new())
        });
        let expected = match job {
            Job::Request(case) => Some((case.expect, case.own)),
            Job::Response { .. } => None,
        };
        Verdict { id, deviations, evidence, forwarded, took: began.elapsed(), expected }
    }

    async fn request(&self, case: &Case) -> Result<Tried> {
        let (mut answer, shown) = match &case.raw {
            Some(raw) => self.request_h1(case, &raw.0).await?,
            None => {
                let seen = h2::exchange(self.h2, case).await?;
                (Answer::from(&seen), format!("{seen:?}"))
            }
        };
        // the connection was dropped: what the proxy still holds of the case ends now
        let recorded = self.recorder.settle(Duration::from_secs(1)).await;
        if let Err(error) = self.probe(&case.id).await {
            answer.faults.push(format!("next request on a new connection: {error:#}"));
        }
        let late = self.recorder.settle(Duration::from_secs(1)).await;
        let deviations = [judge::request(case, &answer, &recorded), poison(&late)].concat();
        let forwarded = recorded.iter().any(|recorded| !recorded.messages.is_empty());
        Ok((deviations, forwarded, evidence(&recorded, &shown)))
    }

    async fn request_h1(&self, case: &Case, raw: &[u8]) -> Result<(Answer, String)> {
        let mut heads: Vec<_> = case.sees.iter().map(|seen| seen.method.0 == b"HEAD").collect();
        if heads.is_empty() {
            heads.push(raw.starts_with(b"HEAD "));
        } else if case.expect == Expect::Reject {
            heads.push(false);
        }
        let until_close = case.close || (case.fin && case.expect == Expect::Reject);
        let cut = match (case.drip, case.cut_at_line_ends) {
            (true, _) => Cut::Bytes,
            (false, true) => Cut::LineEnds,
            (false, false) => Cut::Nowhere,
        };
        let plan = Plan { bytes: raw.to_vec(), heads, cut, fin: case.fin, until_close };
        let mut client = Client::connect(self.proxy).await?;
        let seen = client.exchange(&plan).await;
        if let Some(bytes) = &case.tunnel {
            let switched = seen.responses.last().is_some_and(|last| last.status == 101);
            ensure!(switched, "no 101 but {}", show(&seen.bytes));
            ensure!(client.tunnel(&bytes.0).await? == bytes.0, "the tunnel changed the bytes");
        }
        Ok((Answer::from(&seen), show(&seen.bytes)))
    }

    async fn response_h1(&self, case: &Hostile) -> Result<Tried> {
        self.play(case);
        let mut client = Client::connect(self.proxy).await?;
        let seen = client.exchange(&get(&case.method, "/hostile")).await;
        let mut deviations = judge::response(case, &Answer::from(&seen));
        self.played().await;
        if !seen.closed {
            let next = client.exchange(&get("GET", "/probe/same")).await;
            let dropped = next.bytes.is_empty() && next.closed;
            if let Some(fault) = probe_fault(&next, "/probe/same").filter(|_| !dropped) {
                deviations.push(told(format!("next request on the same connection: {fault}")));
            }
        }
        self.after(&case.id, deviations, &show(&seen.bytes)).await
    }

    async fn response_h2(&self, case: &Hostile) -> Result<Tried> {
        self.play(case);
        let seen = h2::request(self.h2, &case.method, "/hostile").await?;
        let deviations = judge::response(case, &Answer::from(&seen));
        self.played().await;
        self.after(&case.id, deviations, &format!("{seen:?}")).await
    }

    fn play(&self, case: &Hostile) {
        let writes = case.raw.iter().map(|bytes| bytes.0.clone()).collect();
        self.recorder.play(Script { writes, then: case.then });
    }

    /// Waits until the worker has said all, and the proxy has had time to hear it.
    async fn played(&self) {
        self.recorder.played(Duration::from_secs(1)).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }

    /// Two requests on new connections: the first may meet the poisoned upstream connection, the second its heir.
    async fn after(&self, id: &str, mut deviations: Vec<Deviation>, shown: &str) -> Result<Tried> {
        for _ in 0..2 {
            if let Err(error) = self.probe(id).await {
                deviations.push(told(format!("next request on a new connection: {error:#}")));
            }
        }
        let recorded = self.recorder.settle(Duration::from_secs(1)).await;
        deviations.extend(poison(&recorded));
        Ok((deviations, true, evidence(&[], shown)))
    }

    /// A plain request that must get the answer to itself.
    pub async fn probe(&self, id: &str) -> Result<()> {
        let target = format!("/probe/{id}");
        let mut client = Client::connect(self.proxy).await?;
        let seen = client.exchange(&get("GET", &target)).await;
        match probe_fault(&seen, &target) {
            Some(fault) => anyhow::bail!(fault),
            None => Ok(()),
        }
    }
}

/// Deviations, whether the worker received a complete message, and what to show.
type Tried = (Vec<Deviation>, bool, String);

fn get(method: &str, target: &str) -> Plan {
    let bytes = format!("{method} {target} HTTP/1.1\r\nHost: conformance.test\r\n\r\n").into_bytes();
    Plan { bytes, heads: vec![method == "HEAD"], ..Plan::default() }
}

fn probe_fault(seen: &client::Seen, target: &str) -> Option<String> {
    let wanted = echo("GET", target, 0);
    let [response] = seen.responses.as_slice() else {
        return Some(format!("{} answers: {}", seen.responses.len(), show(&seen.bytes)));
    };
    let right = response.status == 200 && response.body == wanted.as_bytes();
    (!right).then(|| format!("status {}, body {}", response.status, show(&response.body)))
}

fn poison(recorded: &[Recorded]) -> Vec<Deviation> {
    let violations = recorded.iter().flat_map(|recorded| &recorded.violations);
    let late = |violation| format!("worker received afterwards: {violation}");
    violations.map(|violation| Deviation { kind: judge::Kind::Bytes, text: late(violation) }).collect()
}

fn evidence(recorded: &[Recorded], shown: &str) -> String {
    let mut text = format!("    client saw: {shown}\n");
    for connection in recorded.iter().filter(|recorded| !recorded.bytes.is_empty()) {
        text.push_str(&format!("    worker received: {}\n", show(&connection.bytes)));
    }
    text
}

/// A table line and, below it, each deviating case.
pub fn report(title: &str, verdicts: &[Verdict]) -> String {
    let deviating: Vec<_> = verdicts.iter().filter(|verdict| !verdict.deviations.is_empty()).collect();
    let forwarded = verdicts.iter().filter(|verdict| verdict.forwarded).count();
    let slowest = verdicts.iter().map(|verdict| verdict.took).max().unwrap_or_default();
    let mut text = format!(
        "{title:<18} {:>4} cases {:>4} reached the worker {:>4} deviate, slowest {:.1} s\n",
        verdicts.len(),
        forwarded,
        deviating.len(),
        slowest.as_secs_f32(),
    );
    for verdict in deviating {
        let told: Vec<_> = verdict.deviations.iter().map(ToString::to_string).collect();
        text.push_str(&format!("  {}: {}\n{}", verdict.id, told.join("; "), verdict.evidence));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::corpus;
    use crate::wire::peer::blind_relay;

    async fn relayed(jobs: Vec<Job>) -> Vec<Verdict> {
        let mut lanes = Vec::new();
        for _ in 0..8 {
            let recorder = Recorder::start().await.unwrap();
            lanes.push(Lane::of(blind_relay(recorder.address).await.unwrap(), recorder));
        }
        run(lanes, jobs).await.unwrap()
    }

    /// The oracle has teeth: what a relay lets through is seen, over both directions.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_blind_relay_is_caught() {
        let of = |id: &str| {
            let cases = corpus::h1_rejects().unwrap();
            Job::Request(Box::new(cases.into_iter().find(|case| case.id == id).unwrap()))
        };
        let cases =
            ["te-and-cl", "host-two-equal", "target-dots", "hop-h2c", "spoof-x-real-ip", "chunk-ext-nul"];
        for verdict in relayed(cases.into_iter().map(of).collect()).await {
            assert!(!verdict.deviations.is_empty(), "{}", verdict.id);
        }
        let hostile = corpus::hostile_responses().unwrap().into_iter();
        let hostile =
            hostile.filter(|case| ["up-te-unknown", "up-101-bare", "up-field-hop"].contains(&&*case.id));
        let jobs = hostile.map(|case| Job::Response { case: Box::new(case), h2: false }).collect();
        for verdict in relayed(jobs).await {
            assert!(!verdict.deviations.is_empty(), "{}", verdict.id);
        }
    }

    /// Whatever is plain and in order passes a relay: the oracle does not cry wolf.
    #[tokio::test(flavor = "multi_thread")]
    async fn plain_requests_through_a_relay_do_not_deviate() {
        let plain = [
            "ok-target-encoded-slash",
            "ok-head",
            "ok-length-binary",
            "ok-pipeline-head",
            "ok-websocket",
            "ok-drip",
        ];
        let cases = corpus::accepts().unwrap().into_iter().filter(|case| plain.contains(&&*case.id));
        let verdicts = relayed(cases.map(|case| Job::Request(Box::new(case))).collect()).await;
        assert_eq!(verdicts.len(), plain.len());
        assert!(
            verdicts.iter().all(|verdict| verdict.deviations.is_empty()),
            "{}",
            report("relay", &verdicts)
        );
    }
}

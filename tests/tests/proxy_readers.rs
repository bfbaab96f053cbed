//! The proxy's reader of HTTP/1.1 against others, on bytes that are nearly requests: whatever it takes, they take for the
//! same. `OUTRIGGER_FUZZ_SECONDS=600` runs longer than 30 s; a difference is told with the `OUTRIGGER_FUZZ_SEED` and
//! `OUTRIGGER_FUZZ_CASE` that show it again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fastrand::Rng;
use system_tests::readers::mutate::Seeds;
use system_tests::readers::node::Node;
use system_tests::readers::{Read, Reading, library, ours, recipient};

/// As many cases go to Node at once.
const BATCH: u64 = 256;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

/// Chance of one case of one run.
fn chance(seed: u64, case: u64) -> Rng {
    Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(case))
}

#[test]
fn what_the_proxy_takes_for_a_request_others_take_for_the_same() -> Result<()> {
    let seconds = Duration::from_secs(setting("OUTRIGGER_FUZZ_SECONDS").unwrap_or(30));
    let seed = setting("OUTRIGGER_FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let only = setting("OUTRIGGER_FUZZ_CASE");
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let (seeds, mut node) = (Seeds::of_the_corpus()?, Node::start()?);
    let (began, mut first, mut taken, mut refused) = (Instant::now(), only.unwrap_or(0), 0, 0);
    while began.elapsed() < seconds {
        let numbers: Vec<_> = (first..first + if only.is_some() { 1 } else { BATCH }).collect();
        let cases: Vec<_> = numbers.iter().map(|case| seeds.bytes(&mut chance(seed, *case))).collect();
        for ((case, bytes), by_node) in numbers.iter().zip(&cases).zip(node.read(&cases)?) {
            let ours = ours::read(&[bytes]);
            let others = Others {
                recipient: recipient::read(bytes),
                hyper: runtime.block_on(library::read(bytes)),
                node: by_node,
            };
            let again = format!("OUTRIGGER_FUZZ_SEED={seed} OUTRIGGER_FUZZ_CASE={case}");
            let shown = bytes.escape_ascii();
            // A fault in a head that has not ended may be seen now or at its end: the requests are the same.
            let in_pieces = ours::read(&cut(bytes, &mut chance(seed, *case)));
            let same = in_pieces.requests == ours.requests;
            ensure!(same, "{again}: where it is cut decides: {shown}\n{ours:#?}\n{in_pieces:#?}");
            if let Some(difference) = others.difference(&ours, bytes, &node.methods) {
                anyhow::bail!("{again}: {difference}\n{shown}\nours: {ours:#?}\n{others:#?}");
            }
            taken += ours.requests.len();
            refused += usize::from(ours.refusal.is_some());
        }
        first += BATCH;
        if only.is_some() {
            break;
        }
    }
    println!(
        "seed {seed}: {first} cases in {:?}, {taken} requests taken, {refused} refusals",
        began.elapsed()
    );
    ensure!(
        only.is_some() || (first as usize / 5 < taken && first as usize / 5 < refused),
        "the cases are one-sided"
    );
    Ok(())
}

/// The bytes in pieces.
fn cut<'b>(bytes: &'b [u8], random: &mut Rng) -> Vec<&'b [u8]> {
    let (mut pieces, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(random.usize(1..=rest.len().min(40)));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

#[derive(Debug)]
struct Others {
    recipient: Reading,
    hyper: Reading,
    node: Reading,
}

impl Others {
    /// In what another reader differs from ours: each of our requests must be the same for it. Where it refuses what the
    /// proxy takes, the reason must be one that is known.
    fn difference(&self, ours: &Reading, bytes: &[u8], methods: &[String]) -> Option<String> {
        for (at, read) in ours.requests.iter().enumerate() {
            let so_far = &ours.requests[..=at];
            let others = [
                ("the grammar", &self.recipient, false),
                ("hyper", &self.hyper, so_far.iter().any(hyper_refuses)),
                ("Node", &self.node, self.node_refuses(so_far, bytes, methods)),
            ];
            for (name, other, may_refuse) in others {
                match other.requests.get(at) {
                    Some(same) if same == read => {}
                    Some(_) => return Some(format!("request {at} is another one for {name}")),
                    None if may_refuse => {}
                    None => return Some(format!("request {at} is none for {name}")),
                }
            }
        }
        None
    }

    /// llhttp knows the methods of a list and reads nothing behind an offer to speak another protocol. It takes no tab beside
    /// the value of a field that frames. Behind the content, where the proxy drops them, it takes no such field, and a
    /// `Connection` or `Upgrade` for one of the head.
    fn node_refuses(&self, so_far: &[Read], bytes: &[u8], methods: &[String]) -> bool {
        let has = |fields: &[(String, Vec<u8>)], names: &[&str]| {
            fields.iter().any(|(name, _)| names.contains(&name.as_str()))
        };
        let before = so_far.split_last().map_or(&[][..], |(_, before)| before);
        let unknown = so_far.iter().any(|read| !methods.contains(&read.method));
        let upgraded = before.iter().any(|read| has(&read.fields, &["upgrade"]));
        let ended = before.iter().any(|read| has(&read.trailers, &["connection", "upgrade"]));
        let code = self.node.refusal.as_deref().unwrap_or_default();
        let framed = ["HPE_INVALID_CONTENT_LENGTH", "HPE_INVALID_TRANSFER_ENCODING"].contains(&code);
        let framed_behind =
            so_far.iter().any(|read| has(&read.trailers, &["content-length", "transfer-encoding"]));
        unknown || upgraded || ended || (framed && (framed_behind || bytes.contains(&b'\t')))
    }
}

/// hyper's URI has no such bytes in a query; the proxy passes queries on as they are.
fn hyper_refuses(read: &Read) -> bool {
    read.target.contains(['"', '<', '>'])
}

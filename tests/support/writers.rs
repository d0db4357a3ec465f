//! Clients that write to an `mv` keyspace until they are told to stop, and note every answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use polyarch_client::{Client, Supersede};
use tokio::task::JoinSet;

use super::ledger::{Ledger, Write};

/// Writers at work.
pub(crate) struct Writers {
    tasks: JoinSet<Ledger>,
    stop: Arc<AtomicBool>,
}

/// How fast and how much writers write.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pace {
    /// The pause before each write.
    pub(crate) every: Duration,
    /// Values are longer by up to so many bytes.
    pub(crate) padding: u64,
}

/// How many keys the writers meet on.
const KEYS: u64 = 200;

impl Writers {
    /// Starts so many writers on each client.
    pub(crate) fn start(clients: &[Client], on_each: usize, keyspace: &'static str, seed: u64) -> Self {
        Self::start_paced(clients, on_each, keyspace, seed, Pace::default())
    }

    /// The same, at a pace.
    pub(crate) fn start_paced(
        clients: &[Client],
        on_each: usize,
        keyspace: &'static str,
        seed: u64,
        pace: Pace,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for (at, client) in clients.iter().enumerate() {
            for writer in 0..on_each {
                let name = format!("{seed:x}.{at}.{writer}");
                let rng = Rng(seed ^ ((at as u64) << 32) ^ (writer as u64 + 1));
                let client = client.with_timeout(Duration::from_secs(2));
                tasks.spawn(work(client, keyspace, name, rng, stop.clone(), pace));
            }
        }
        Self { tasks, stop }
    }

    /// Lets each finish what it is at, and returns what they all noted.
    pub(crate) async fn finish(mut self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Ledger::default();
        while let Some(ledger) = self.tasks.join_next().await {
            all.merge(ledger.expect("a writer does not panic"));
        }
        all
    }
}

async fn work(
    client: Client,
    keyspace: &'static str,
    name: String,
    mut rng: Rng,
    stop: Arc<AtomicBool>,
    pace: Pace,
) -> Ledger {
    let mut ledger = Ledger::default();
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        if !pace.every.is_zero() {
            tokio::time::sleep(pace.every).await;
        }
        count += 1;
        let key = format!("key-{:03}", rng.below(KEYS));
        // Half of the writes replace what was read before them, the others join the siblings;
        // of the first, some delete. Siblings stay few since whoever reads replaces all.
        let blind = rng.below(10) < 3;
        let read = match blind {
            true => None,
            false => match client.get(keyspace, &key).await {
                Ok(read) => {
                    ledger.reads += 1;
                    read
                }
                Err(_) => continue,
            },
        };
        let shown = read.iter().flat_map(|r| r.siblings()).map(|s| s.dot).collect();
        let supersede = read.as_ref().map_or(Supersede::Nothing, |r| r.shown());
        let deletes = read.is_some() && rng.below(10) < 2;
        let padding = "-".repeat(rng.below(pace.padding + 1) as usize);
        let value = (!deletes).then(|| format!("{name}#{count}{padding}"));
        let mut write = Write { key, value, shown, gtid: None, acked_at: None };
        let begun = Instant::now();
        let done = match &write.value {
            Some(value) => client.put_with(keyspace, &write.key, value.clone(), supersede).await,
            None => client.delete_with(keyspace, &write.key, supersede).await,
        };
        match done {
            Ok(written) => {
                write.gtid = written.dot;
                ledger.took.push(begun.elapsed());
                ledger.acked(write);
            }
            // Refused without effect, or never sent.
            Err(error) if !error.is_outcome_unknown() => ledger.refused += 1,
            Err(_) => ledger.unknown(write),
        }
    }
    ledger
}

/// SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A seed to be printed, and given again by `POLYARCH_SEED`.
    pub(crate) fn from_environment() -> (u64, Self) {
        let given = std::env::var("POLYARCH_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            since.map_or(0, |since| since.as_nanos() as u64)
        });
        println!("POLYARCH_SEED={seed}");
        (seed, Self(seed))
    }
}

/// A number of a test's size from the environment.
pub(crate) fn size(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

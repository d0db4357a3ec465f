//! Clients that put and get, and how long each call took.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use polyarch_client::Client;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::cluster::{Cluster, KEYSPACE};
use super::plan::{End, Point, Workload};
use crate::failure::Failure;

/// Latencies are kept from a microsecond to two minutes, with three digits.
const LATENCY_NS_MIN: u64 = 1_000;
const LATENCY_NS_MAX: u64 = 120_000_000_000;
const LATENCY_DIGITS: u8 = 3;

/// Values are cut from so many random bytes, each elsewhere.
const RANDOM_BYTES: usize = 1 << 20;

/// Keys are written before they are read, so many in a batch, and so many batches at a time.
const FILL_BATCH_KEYS: u64 = 100;
const FILL_BATCHES: usize = 16;

/// How often the progress is drawn, and whether it is time to end is looked at.
const GLANCE: Duration = Duration::from_millis(100);

/// The clients of one point, connected.
pub(super) struct Clients<'a> {
    point: &'a Point,
    /// Of each its own socket, as if they were programs of their own.
    connections: Vec<Client>,
    random: Bytes,
}

/// What came of a load.
pub(super) struct Outcome {
    pub(super) operations: u64,
    pub(super) writes: u64,
    pub(super) elapsed: Duration,
    pub(super) connections: usize,
    pub(super) latencies: Histogram<u64>,
}

impl<'a> Clients<'a> {
    pub(super) fn connect(cluster: &Cluster, point: &'a Point) -> Result<Self, Failure> {
        let nodes = cluster.nodes();
        let connections = point.connections(nodes.len());
        let connections = (0..connections).map(|index| match point.placement {
            super::Placement::One => cluster.connect(&nodes[0].address),
            super::Placement::All => cluster.connect(&nodes[index % nodes.len()].address),
        });
        Ok(Self { point, connections: connections.collect::<Result<_, _>>()?, random: random_bytes() })
    }

    /// Writes every key once.
    pub(super) async fn fill(&self) -> Result<(), Failure> {
        let next = Arc::new(AtomicU64::new(0));
        let progress = Progress::of("filling", self.point.keys);
        let mut tasks = JoinSet::new();
        for index in 0..FILL_BATCHES {
            let client = self.connections[index % self.connections.len()].clone();
            let (next, draw, keys) = (next.clone(), self.draw(index as u64), self.point.keys);
            tasks.spawn(fill(client, next, draw, keys));
        }
        progress.watch(&mut tasks, || next.load(Ordering::Relaxed), || async { Ok(false) }).await
    }

    /// The load, without looking.
    pub(super) async fn warm_up(&self) -> Result<(), Failure> {
        if self.point.warm_up.is_zero() {
            return Ok(());
        }
        let end = End { requests: None, after: self.point.warm_up, checkpoints: None };
        self.run_until("warming up", end, None).await.map(drop)
    }

    pub(super) async fn run(&self, cluster: &Cluster) -> Result<Outcome, Failure> {
        self.run_until(self.point.workload.name(), self.point.end(), Some(cluster)).await
    }

    pub(super) async fn close(self) {
        for connection in self.connections {
            connection.close().await;
        }
    }

    async fn run_until(&self, title: &str, end: End, cluster: Option<&Cluster>) -> Result<Outcome, Failure> {
        let run = Arc::new(Run {
            requests_max: end.requests.unwrap_or(u64::MAX),
            taken: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let latencies: Vec<_> = self.connections.iter().map(|_| Arc::new(Mutex::new(new_histogram()))).collect();
        let mut checkpoints = match (end.checkpoints, cluster) {
            (Some((wanted, at_most)), Some(cluster)) => Some((Checkpoints::at(cluster, wanted).await?, at_most)),
            _ => None,
        };
        let progress = match end.requests {
            Some(requests) => Progress::of(title, requests),
            None => Progress::of(title, end.after.as_millis() as u64),
        };
        let begun = Instant::now();
        let mut tasks = JoinSet::new();
        for client in 0..self.point.clients as usize {
            for slot in 0..self.point.pipeline as usize {
                let at = client % self.connections.len();
                let draw = self.draw((client * self.point.pipeline as usize + slot) as u64);
                let worker = Worker {
                    run: run.clone(),
                    client: self.connections[at].clone(),
                    latencies: latencies[at].clone(),
                    workload: self.point.workload,
                    draw,
                };
                tasks.spawn(worker.work());
            }
        }
        let position = || match end.requests {
            Some(_) => run.taken.load(Ordering::Relaxed),
            None => begun.elapsed().as_millis() as u64,
        };
        let is_over = async || {
            if begun.elapsed() < end.after {
                return Ok(false);
            }
            Ok(match &mut checkpoints {
                Some((checkpoints, at_most)) => begun.elapsed() >= *at_most || checkpoints.are_done().await?,
                None => true,
            })
        };
        progress.watch_until(&mut tasks, position, is_over, &run.ended).await?;
        let elapsed = begun.elapsed();
        let mut all = new_histogram();
        for part in latencies {
            all += &*part.lock().unwrap_or_else(PoisonError::into_inner);
        }
        let (operations, writes) = (all.len(), run.writes.load(Ordering::Relaxed));
        Ok(Outcome { operations, writes, elapsed, connections: self.connections.len(), latencies: all })
    }

    fn draw(&self, seed: u64) -> Draw {
        Draw {
            random: Random(seed),
            key_digits: self.point.key_bytes - 1,
            keys: self.point.keys,
            values: self.random.clone(),
            value_bytes: self.point.value_bytes,
        }
    }
}

/// What the workers of a run share.
struct Run {
    requests_max: u64,
    taken: AtomicU64,
    writes: AtomicU64,
    ended: AtomicBool,
}

impl Run {
    /// Whether one more request is to be made.
    fn take(&self) -> bool {
        !self.ended.load(Ordering::Relaxed) && self.taken.fetch_add(1, Ordering::Relaxed) < self.requests_max
    }
}

/// One request of one client under way, again and again.
struct Worker {
    run: Arc<Run>,
    client: Client,
    latencies: Arc<Mutex<Histogram<u64>>>,
    workload: Workload,
    draw: Draw,
}

impl Worker {
    async fn work(mut self) -> Result<(), Failure> {
        let mut writes = 0;
        while self.run.take() {
            let key = self.draw.key();
            let puts = match self.workload {
                Workload::Put | Workload::Lag => true,
                Workload::Get => false,
                Workload::Mixed => self.draw.random.below(2) == 0,
            };
            let begun = Instant::now();
            match puts {
                true => {
                    self.client.put(KEYSPACE, &key, self.draw.value()).await?;
                    writes += 1;
                }
                false if self.client.get(KEYSPACE, &key).await?.is_none() => {
                    return Err(Failure::refused(format_args!("key {key} was written and is not there")));
                }
                false => {}
            }
            let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.latencies.lock().unwrap_or_else(PoisonError::into_inner).saturating_record(took);
        }
        self.run.writes.fetch_add(writes, Ordering::Relaxed);
        Ok(())
    }
}

async fn fill(client: Client, next: Arc<AtomicU64>, mut draw: Draw, keys: u64) -> Result<(), Failure> {
    loop {
        let first = next.fetch_add(FILL_BATCH_KEYS, Ordering::Relaxed);
        if first >= keys {
            return Ok(());
        }
        let mut batch = client.batch();
        for index in first..keys.min(first + FILL_BATCH_KEYS) {
            batch = batch.put(KEYSPACE, draw.key_at(index), draw.value());
        }
        batch.commit().await?;
    }
}

/// Whether every node has finished some checkpoints since it was first looked at.
struct Checkpoints<'a> {
    cluster: &'a Cluster,
    wanted: Vec<u64>,
}

impl<'a> Checkpoints<'a> {
    async fn at(cluster: &'a Cluster, more: u64) -> Result<Self, Failure> {
        let statuses = cluster.statuses().await?;
        Ok(Self { cluster, wanted: statuses.iter().map(|status| status.counters.checkpoints + more).collect() })
    }

    async fn are_done(&mut self) -> Result<bool, Failure> {
        let statuses = self.cluster.statuses().await?;
        Ok(statuses.iter().zip(&self.wanted).all(|(status, wanted)| status.counters.checkpoints >= *wanted))
    }
}

/// A bar on stderr, if that is a terminal.
struct Progress(ProgressBar);

impl Progress {
    fn of(title: &str, len: u64) -> Self {
        let style = ProgressStyle::with_template("{msg:12} [{bar:40}] {percent:>3} %  {elapsed}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
        Self(ProgressBar::new(len).with_style(style).with_message(title.to_owned()))
    }

    /// Waits for all tasks, and draws.
    async fn watch<F: Future<Output = Result<bool, Failure>>>(
        self,
        tasks: &mut JoinSet<Result<(), Failure>>,
        position: impl Fn() -> u64,
        is_over: impl Fn() -> F,
    ) -> Result<(), Failure> {
        self.watch_until(tasks, position, async || is_over().await, &AtomicBool::new(false)).await
    }

    /// Waits for all tasks, draws, and tells them to end once it is over. The first failure ends all.
    async fn watch_until(
        self,
        tasks: &mut JoinSet<Result<(), Failure>>,
        position: impl Fn() -> u64,
        mut is_over: impl AsyncFnMut() -> Result<bool, Failure>,
        ended: &AtomicBool,
    ) -> Result<(), Failure> {
        let mut glances = interval(GLANCE);
        glances.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                joined = tasks.join_next() => match joined {
                    Some(Ok(done)) => done?,
                    Some(Err(error)) => {
                        return Err(Failure::refused(format_args!("a client of the load failed: {error}")));
                    }
                    None => break,
                },
                _ = glances.tick() => {
                    self.0.set_position(position());
                    if !ended.load(Ordering::Relaxed) && is_over().await? {
                        ended.store(true, Ordering::Relaxed);
                    }
                }
            }
        }
        self.0.finish_and_clear();
        Ok(())
    }
}

/// What keys and values a client comes up with. The same for the same seed, so that runs compare.
pub(super) struct Draw {
    random: Random,
    key_digits: usize,
    keys: u64,
    values: Bytes,
    value_bytes: usize,
}

impl Draw {
    /// For one who needs few values.
    pub(super) fn single(key_bytes: usize, value_bytes: usize) -> Self {
        Self { random: Random(0), key_digits: key_bytes - 1, keys: 1, values: random_bytes(), value_bytes }
    }

    fn key(&mut self) -> String {
        let index = self.random.below(self.keys);
        self.key_at(index)
    }

    pub(super) fn key_at(&self, index: u64) -> String {
        format!("k{index:0width$}", width = self.key_digits)
    }

    /// Shares the random bytes: nothing is copied here that a node would be waited for.
    pub(super) fn value(&mut self) -> Bytes {
        let from = self.random.below(RANDOM_BYTES as u64) as usize;
        self.values.slice(from..from + self.value_bytes)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): even enough to choose keys by, and a seed makes it repeat.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `bound`; uneven by 2^-64 times the bound.
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

/// As long as the place where the last value may begin, and the longest value besides.
fn random_bytes() -> Bytes {
    let mut random = Random(0);
    let words = RANDOM_BYTES / 4;
    (0..words).flat_map(|_| random.next().to_le_bytes()).collect()
}

pub(super) fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(LATENCY_NS_MIN, LATENCY_NS_MAX, LATENCY_DIGITS).expect("the bounds are in order")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_have_their_lengths_and_keys_all_come_up() {
        let mut draw = Draw { keys: 10, ..Draw::single(16, 1 << 20) };
        let drawn: std::collections::BTreeSet<String> = (0..1_000).map(|_| draw.key()).collect();
        assert_eq!(drawn.len(), 10);
        assert!(drawn.iter().all(|key| key.len() == 16));
        assert!((0..100).all(|_| draw.value().len() == 1 << 20));
    }
}

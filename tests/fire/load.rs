//! All that clients do at once while a cluster is under fire.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use polyarch_client::Dot;
use tokio::task::{JoinHandle, JoinSet};

use crate::batches::{Batches, SumReader, Winners};
use crate::checks::{Held, Sibling};
use crate::field::Field;
use crate::sessions::{Chain, ChainReader, Churn, Values};
use crate::support::ledger::Ledger;
use crate::support::writers::{Pace, Writers};
use crate::tally::{Counted, Tally, micros};
use crate::wanderer::Wanderer;

/// Sessions of each kind.
const SESSIONS: u64 = 2;
/// Pauses, so that all writers together write some hundred times a second.
const PACE: Pace = Pace { every: Duration::from_millis(35), padding: 800 };
const BATCH_EVERY: Duration = Duration::from_millis(70);
const SESSION_EVERY: Duration = Duration::from_millis(40);

/// What was asked and answered on one cluster, over its rounds.
pub(crate) struct Story {
    seed: u64,
    parts: u64,
    ledger: Ledger,
    chains: Vec<Chain>,
    readers: Vec<ChainReader>,
    churns: Vec<Churn>,
    batches: Vec<Batches>,
    sums: SumReader,
    winners: Winners,
}

/// Clients at work.
pub(crate) struct Load {
    writers: Writers,
    others: JoinSet<Part>,
    stop: Arc<AtomicBool>,
    tally: Arc<Tally>,
    /// Of each session how often it came forward.
    steps: Vec<Arc<AtomicU64>>,
    rest: Story,
}

enum Part {
    Chain(Chain),
    Reader(ChainReader),
    Churn(Churn),
    Batches(Batches),
    Sums(SumReader),
}

impl Story {
    pub(crate) fn new(field: &Field, seed: u64) -> Self {
        let at = |part: u64| wanderer(field, seed ^ part << 8);
        let chains: Vec<Chain> = (0..SESSIONS).map(|n| Chain::new(format!("chain-{n}"), at(n))).collect();
        let batches = |id: u32| Batches::new(format!("batch-{id}"), field.client_of(id), seed ^ u64::from(id) << 16);
        Self {
            seed,
            parts: 100,
            ledger: Ledger::default(),
            readers: (20..).zip(&chains).map(|(n, chain)| chain.reader(at(n))).collect(),
            churns: (0..SESSIONS).map(|n| Churn::new(format!("churn-{n}"), at(40 + n))).collect(),
            batches: field.ids().into_iter().map(batches).collect(),
            sums: SumReader::new(at(60)),
            chains,
            winners: Winners::default(),
        }
    }

    /// Goes on with other sessions: what they have seen may be gone with a disk.
    pub(crate) fn renew(&mut self, field: &Field) {
        let (seed, parts) = (self.seed, &mut self.parts);
        let mut at = || {
            *parts += 1;
            wanderer(field, seed ^ *parts << 8)
        };
        self.chains.iter_mut().for_each(|chain| chain.renew(at()));
        self.readers.iter_mut().for_each(|reader| reader.renew(at()));
        self.churns.iter_mut().for_each(|churn| churn.renew(at()));
        self.sums = SumReader::new(at());
    }

    /// Lets clients work on all nodes.
    pub(crate) fn start(mut self, field: &Field, round: u64) -> Load {
        let clients: Vec<_> = field.ids().into_iter().map(|id| field.client_of(id)).collect();
        let writers = Writers::start_paced(&clients, 1, "adds", self.seed ^ round << 40, PACE);
        let (stop, tally) = (Arc::<AtomicBool>::default(), Arc::<Tally>::default());
        let mut others = JoinSet::new();
        let mut steps = Vec::new();
        let mut spawn = |part: Part, every| {
            others.spawn(work(part, every, Arc::clone(&stop), Arc::clone(&tally)));
        };
        for chain in self.chains.drain(..) {
            steps.push(chain.steps());
            spawn(Part::Chain(chain), SESSION_EVERY);
        }
        for reader in self.readers.drain(..) {
            steps.push(reader.steps());
            spawn(Part::Reader(reader), SESSION_EVERY);
        }
        for churn in self.churns.drain(..) {
            steps.push(churn.steps());
            spawn(Part::Churn(churn), SESSION_EVERY);
        }
        self.batches.drain(..).for_each(|batches| spawn(Part::Batches(batches), BATCH_EVERY));
        let idle = SumReader::new(wanderer(field, self.seed));
        spawn(Part::Sums(std::mem::replace(&mut self.sums, idle)), SESSION_EVERY);
        Load { writers, others, stop, tally, steps, rest: self }
    }

    /// All GTIDs that were acknowledged since they were last checked.
    pub(crate) fn acked(&self) -> BTreeSet<Dot> {
        let adds = self.ledger.all_acked().iter().filter_map(|write| write.gtid);
        let chains = self.chains.iter().flat_map(|chain| chain.registers.gtids());
        let churns = self.churns.iter().flat_map(|churn| churn.registers.gtids());
        let batches = self.batches.iter().flat_map(Batches::gtids);
        adds.chain(chains).chain(churns).chain(batches).collect()
    }

    /// Each breach in words, of what all nodes show; what was lost with a disk is as if it had never been.
    pub(crate) fn check(&mut self, shown: &[Held; 5], applied: &[Dot], lost: &BTreeSet<Dot>) -> Vec<String> {
        let [adds, churn, pairs, chains, sums] = shown;
        self.ledger.take_lost(applied);
        let adds = adds.iter().map(|(key, siblings)| {
            (key.clone(), siblings.iter().map(|(gtid, sibling)| (*gtid, sibling.value.clone())).collect())
        });
        let mut breaches = self.ledger.compare(&adds.collect());
        let (chains, churn) = (values(chains), values(churn));
        for registers in self.chains.iter_mut().map(|chain| &mut chain.registers) {
            breaches.extend(registers.check(&chains, lost));
        }
        for registers in self.churns.iter_mut().map(|churn| &mut churn.registers) {
            breaches.extend(registers.check(&churn, lost));
        }
        breaches.extend(self.winners.check(pairs, sums, &mut self.batches, lost));
        breaches
    }
}

impl Load {
    /// How often each session came forward so far.
    pub(crate) fn steps(&self) -> Vec<u64> {
        self.steps.iter().map(|steps| steps.load(Ordering::Relaxed)).collect()
    }

    /// Lets each finish what it is at, and says what they counted.
    pub(crate) async fn finish(mut self) -> (Story, Counted) {
        self.stop.store(true, Ordering::Relaxed);
        let writers: JoinHandle<Ledger> = tokio::spawn(self.writers.finish());
        let mut story = self.rest;
        while let Some(part) = self.others.join_next().await {
            match part.expect("a client does not panic") {
                Part::Chain(chain) => story.chains.push(chain),
                Part::Reader(reader) => story.readers.push(reader),
                Part::Churn(churn) => story.churns.push(churn),
                Part::Batches(batches) => story.batches.push(batches),
                Part::Sums(sums) => story.sums = sums,
            }
        }
        let mut ledger = writers.await.expect("a writer does not panic");
        let mut counted = self.tally.take();
        counted.acked += ledger.acked_len() as u64;
        counted.unknown += ledger.unknown_len() as u64;
        counted.refused += ledger.refused;
        counted.reads += ledger.reads;
        counted.took_us.extend(std::mem::take(&mut ledger.took).into_iter().map(micros));
        story.ledger.merge(ledger);
        (story, counted)
    }
}

async fn work(mut part: Part, every: Duration, stop: Arc<AtomicBool>, tally: Arc<Tally>) -> Part {
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(every).await;
        match &mut part {
            Part::Chain(chain) => chain.step(&tally).await,
            Part::Reader(reader) => reader.step(&tally).await,
            Part::Churn(churn) => churn.step(&tally).await,
            Part::Batches(batches) => batches.step(&tally).await,
            Part::Sums(sums) => sums.step(&tally).await,
        }
    }
    part
}

fn wanderer(field: &Field, seed: u64) -> Wanderer {
    Wanderer::new(&field.client, &field.addresses(), seed)
}

fn values(held: &Held) -> Values {
    let values = |siblings: &BTreeMap<Dot, Sibling>| siblings.values().map(|sibling| sibling.value.clone()).collect();
    held.iter().map(|(key, siblings)| (key.clone(), values(siblings))).collect()
}

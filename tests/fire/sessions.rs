//! Sessions that go from node to node: chains of causes over keys, read by others, and keys that are put and deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use polyarch_client::{Dot, Record, Supersede};

use crate::registers::Register;
use crate::tally::{Outcome, Tally};
use crate::wanderer::Wanderer;

/// Keys of a chain: each number is written to the first, then to the next.
const LINKS: usize = 3;
/// Keys that a session puts and deletes.
const SLOTS: u64 = 6;

/// What all nodes show of a keyspace: of each key the values.
pub(crate) type Values = BTreeMap<String, BTreeSet<String>>;

/// Keys that one session writes, those too that it does not write any more.
#[derive(Default)]
pub(crate) struct Registers(BTreeMap<String, Register>);

impl Registers {
    pub(crate) fn gtids(&self) -> impl Iterator<Item = Dot> {
        self.0.values().flat_map(Register::gtids)
    }

    /// Each breach in words; what is shown counts from now on.
    pub(crate) fn check(&mut self, shown: &Values, lost: &BTreeSet<Dot>) -> Vec<String> {
        let (mut breaches, nothing) = (Vec::new(), BTreeSet::new());
        for (key, register) in &mut self.0 {
            let values = shown.get(key).unwrap_or(&nothing);
            let value = values.first().map(String::as_str);
            if values.len() > 1 || !register.may_show(value, lost) {
                breaches.push(format!("{key} shows {values:?} after {register:?}"));
            }
            register.settle(value);
        }
        breaches
    }

    /// Writes to one key, and says whether nobody knows if that was done: the key is not to be written again.
    async fn write(&mut self, keyspace: &str, key: &str, value: Option<String>, at: &mut Wanderer, to: &Tally) -> Done {
        let (client, begun) = (at.anywhere(), Instant::now());
        let done = match &value {
            Some(value) => client.put_with(keyspace, key, value.clone(), Supersede::Held).await,
            None => client.delete(keyspace, key).await,
        };
        let register = self.0.entry(key.to_owned()).or_default();
        match to.outcome(done, begun.elapsed()) {
            Outcome::Acked(written) => {
                register.acked(written.dot, value);
                Done::Yes
            }
            Outcome::Unknown => {
                register.unknown(value);
                Done::Unknown
            }
            Outcome::Refused => Done::No,
        }
    }
}

enum Done {
    Yes,
    No,
    Unknown,
}

/// A session that writes 1 to three keys, one after the other, then 2, and so on.
pub(crate) struct Chain {
    name: String,
    /// Beyond it new keys are taken; the reader follows.
    generation: Arc<AtomicU64>,
    /// Writes that are done in this generation.
    written: u64,
    pub(crate) registers: Registers,
    at: Wanderer,
    steps: Arc<AtomicU64>,
}

impl Chain {
    pub(crate) fn new(name: String, at: Wanderer) -> Self {
        let (generation, steps) = (Arc::default(), Arc::default());
        Self { name, generation, written: 0, registers: Registers::default(), at, steps }
    }

    /// A session that reads what this one writes.
    pub(crate) fn reader(&self, at: Wanderer) -> ChainReader {
        let (name, generation, steps) = (self.name.clone(), Arc::clone(&self.generation), Arc::default());
        ChainReader { name, generation, following: 0, seen: [0; LINKS], at, steps }
    }

    /// How many steps were of use.
    pub(crate) fn steps(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.steps)
    }

    /// Goes on as another session, with other keys.
    pub(crate) fn renew(&mut self, at: Wanderer) {
        self.at = at;
        self.next_generation();
    }

    fn next_generation(&mut self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        self.written = 0;
    }

    pub(crate) async fn step(&mut self, tally: &Tally) {
        let (number, link) = (1 + self.written / LINKS as u64, self.written as usize % LINKS);
        let key = key(&self.name, self.generation.load(Ordering::Relaxed), link);
        match self.registers.write("chains", &key, Some(number.to_string()), &mut self.at, tally).await {
            Done::Yes => {
                self.written += 1;
                self.steps.fetch_add(1, Ordering::Relaxed);
            }
            Done::Unknown => self.next_generation(),
            Done::No => {}
        }
    }
}

/// Follows a chain: what it has seen it sees again, or what came later, and of what it sees it sees the causes.
pub(crate) struct ChainReader {
    name: String,
    generation: Arc<AtomicU64>,
    following: u64,
    seen: [u64; LINKS],
    at: Wanderer,
    steps: Arc<AtomicU64>,
}

impl ChainReader {
    pub(crate) fn steps(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.steps)
    }

    /// Goes on as another session.
    pub(crate) fn renew(&mut self, at: Wanderer) {
        self.at = at;
        self.seen = [0; LINKS];
    }

    pub(crate) async fn step(&mut self, tally: &Tally) {
        let generation = self.generation.load(Ordering::Relaxed);
        if generation != self.following {
            (self.following, self.seen) = (generation, [0; LINKS]);
        }
        let mut cause = 0;
        for link in (0..LINKS).rev() {
            let key = key(&self.name, generation, link);
            let Ok(record) = self.at.anywhere().get("chains", &key).await else { return };
            tally.read();
            let number = record.as_ref().and_then(Record::value).map_or(0, |value| number(value));
            let least = self.seen[link].max(cause);
            if number < least {
                let seen = self.seen;
                tally.breach(format!("a session that saw {seen:?} of {key} and then {cause} is shown {record:?}"));
            }
            self.seen[link] = number;
            cause = number;
        }
        self.steps.fetch_add(1, Ordering::Relaxed);
    }
}

fn key(name: &str, generation: u64, link: usize) -> String {
    format!("{name}.{generation}.{link}")
}

fn number(value: &[u8]) -> u64 {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX)
}

/// A session that puts and deletes, and reads before each write what it must.
pub(crate) struct Churn {
    name: String,
    slots: BTreeMap<u64, u64>,
    writes: u64,
    pub(crate) registers: Registers,
    at: Wanderer,
    steps: Arc<AtomicU64>,
}

impl Churn {
    pub(crate) fn new(name: String, at: Wanderer) -> Self {
        let (slots, registers, steps) = (BTreeMap::new(), Registers::default(), Arc::default());
        Self { name, slots, writes: 0, registers, at, steps }
    }

    pub(crate) fn steps(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.steps)
    }

    /// Goes on as another session, with other keys.
    pub(crate) fn renew(&mut self, at: Wanderer) {
        self.at = at;
        (0..SLOTS).for_each(|slot| *self.slots.entry(slot).or_default() += 1);
    }

    pub(crate) async fn step(&mut self, tally: &Tally) {
        let slot = self.at.below(SLOTS);
        let generation = *self.slots.entry(slot).or_default();
        let key = format!("{}.{slot}.{generation}", self.name);
        let Ok(record) = self.at.anywhere().get("churn", &key).await else { return };
        tally.read();
        let shown: Vec<&[u8]> = record.iter().flat_map(Record::values).map(AsRef::as_ref).collect();
        let last = self.registers.0.get(&key).and_then(Register::last);
        let expected: Vec<&[u8]> = last.iter().map(|value| value.as_bytes()).collect();
        if shown != expected {
            tally.breach(format!("{key}: its session last wrote {last:?} and is shown {record:?}"));
        }
        self.writes += 1;
        let deletes = last.is_some() && self.at.below(2) == 0;
        let value = (!deletes).then(|| format!("{key}#{}", self.writes));
        match self.registers.write("churn", &key, value, &mut self.at, tally).await {
            Done::Yes => _ = self.steps.fetch_add(1, Ordering::Relaxed),
            Done::Unknown => *self.slots.entry(slot).or_default() += 1,
            Done::No => {}
        }
    }
}

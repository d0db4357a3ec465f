//! Readers beside a writer and its checkpoints.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use polyarch_crdt::{FieldPath, Record};
use polyarch_protocol::RecordKey;
use polyarch_store::files::simulated::SimulatedDisk;
use polyarch_store::files::{Directory, Files};
use polyarch_store::state::{
    MemoryOpener, MemoryState, ScanRange, SledConfig, StateDirectory, StateOpener, StateStore,
};
use polyarch_store::{CheckpointConfig, StateReader, StoreConfig, StoreFiles};

use crate::support::{Node, Sees, Write, key, keyspace};

const PAIRS: u32 = 300;
const WRITES: u32 = 6_000;

/// The seq of the write that a key shows.
fn shown(record: &Record) -> u64 {
    record.siblings(&FieldPath::opaque()).first().map_or(0, |sibling| sibling.dot.seq)
}

/// Every write set changes two keys that lie far from each other, or deletes both.
fn pair(number: u32) -> [u32; 2] {
    [number % PAIRS, number % PAIRS + PAIRS]
}

/// What one reader saw: it may only see more from then on.
#[derive(Default)]
struct Witness {
    seen: BTreeMap<RecordKey, u64>,
}

impl Witness {
    fn see(&mut self, key: &RecordKey, seq: u64) {
        let before = self.seen.insert(key.clone(), seq).unwrap_or(0);
        assert!(seq >= before, "{key:?} went from {before} back to {seq}");
    }

    /// Looks at single keys and at all of them.
    fn look<S: StateStore>(&mut self, reader: &StateReader<S>, round: u32) {
        for number in [round % PAIRS, (round * 7) % PAIRS + PAIRS] {
            self.see(&key(number), shown(&reader.get(&key(number)).unwrap()));
        }
        let all = reader.scan(&ScanRange::prefix(keyspace(), b""), usize::MAX).unwrap();
        let all: BTreeMap<RecordKey, u64> = all.into_iter().map(|(key, record)| (key, shown(&record))).collect();
        for number in 0..PAIRS {
            let [one, two] = pair(number).map(|number| all.get(&key(number)).copied().unwrap_or(0));
            assert_eq!(one, two, "a write set is seen whole");
        }
        all.iter().for_each(|(key, seq)| self.see(key, *seq));
        self.pages(reader);
    }

    /// The pages of a scan are in order, without gaps and repetitions.
    fn pages<S: StateStore>(&mut self, reader: &StateReader<S>) {
        let mut range = ScanRange::prefix(keyspace(), b"");
        let mut found: Vec<RecordKey> = Vec::new();
        loop {
            let page = reader.scan(&range, 37).unwrap();
            let Some((last, _)) = page.last() else { break };
            range = range.after(last.clone());
            found.extend(page.iter().map(|(key, _)| key.clone()));
        }
        assert!(found.is_sorted_by(|one, two| one < two));
        let missing = self.seen.iter().find(|(key, seq)| **seq > 0 && found.binary_search(key).is_err());
        assert_eq!(missing, None, "what was there stays there");
    }
}

/// Ends the readers, also when the writer fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn readers_see_no_value_go_back<F: Files, O: StateOpener>(files: impl Into<StoreFiles<F>>, opener: O) {
    let config = StoreConfig {
        checkpoint: CheckpointConfig { memtable_bytes_max: 60_000, ..CheckpointConfig::default() },
        ..StoreConfig::default()
    };
    let mut node = Node::open(files, opener, &config).unwrap();
    let (stop, looks) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut checkpoints = 0;
    thread::scope(|scope| {
        for _ in 0..2 {
            let reader = node.store.reader();
            scope.spawn(|| {
                let reader = reader;
                let mut witness = Witness::default();
                for round in 0.. {
                    witness.look(&reader, round);
                    looks.fetch_add(1, Ordering::Relaxed);
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        let _stop = StopAtEnd(&stop);
        let (finished, running) = mpsc::channel();
        for number in 0..WRITES {
            let changes = pair(number * 13).map(|key| (key, Sees::All, true)).to_vec();
            node.write(&Write { origin: 0, changes });
            if number % 8 != 0 {
                continue;
            }
            node.store.sync().unwrap();
            if let Some(job) = node.store.begin_checkpoint(&node.frontier) {
                let finished = finished.clone();
                scope.spawn(move || drop(finished.send(job.run())));
            }
            for done in running.try_iter() {
                node.store.finish_checkpoint(done.unwrap());
                checkpoints += 1;
            }
        }
    });
    assert!(checkpoints > 3, "{checkpoints} checkpoints");
    assert!(looks.load(Ordering::Relaxed) > 3);
}

#[test]
fn beside_checkpoints_in_memory_no_value_goes_back() {
    readers_see_no_value_go_back(SimulatedDisk::new(1, 4_096), MemoryOpener::new(MemoryState::new()));
}

#[test]
fn beside_checkpoints_in_sled_no_value_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let files = Directory::open(dir.path()).unwrap();
    readers_see_no_value_go_back(files, StateDirectory::sled(dir.path(), SledConfig::default()));
}

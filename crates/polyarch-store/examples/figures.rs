//! What the store costs, for whoever changes it: `cargo run --release -p polyarch-store --example figures`.

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use polyarch_crdt::{Dot, FieldPath, Hlc};
use polyarch_protocol::{Change, Dependencies, Effect, Frontier, RecordKey, Storage, WriteSet};
use polyarch_store::files::simulated::SplitMix64;
use polyarch_store::state::ScanRange;
use polyarch_store::{CheckpointConfig, DiskStore, StoreConfig};
use support::{keyspace, origin};

const KEYS: u64 = 1_000_000;

/// Seconds of processor time of this process so far.
fn cpu() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn resident_mb() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1_024
}

fn measured<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (start, before) = (Instant::now(), cpu());
    let result = work();
    let (seconds, processor) = (start.elapsed().as_secs_f64(), cpu() - before);
    println!("{what:<62} {seconds:>7.3} s {processor:>7.2} CPU s {:>5} MB resident", resident_mb());
    result
}

fn config() -> StoreConfig {
    // Checkpoints are made by hand here.
    let checkpoint =
        CheckpointConfig { memtable_bytes_max: usize::MAX, log_bytes_max: u64::MAX, ..CheckpointConfig::default() };
    StoreConfig { checkpoint, ..StoreConfig::default() }
}

struct Node {
    store: DiskStore,
    frontier: Frontier,
}

impl Node {
    fn open(path: &Path) -> Self {
        let (store, frontier, _) = DiskStore::open_directory(path, &config()).unwrap();
        Self { store, frontier }
    }

    /// One write as a coordinator makes it: 16 B key, 100 B value.
    fn put(&mut self, number: u64) {
        let key = RecordKey::new(keyspace(), format!("{:016x}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).as_bytes());
        let seq = self.frontier.heads.applied().seq(origin(0)) + 1;
        let record = self.store.record(&key).unwrap();
        let change = Change {
            keyspace: keyspace(),
            key: key.key_bytes(),
            field: FieldPath::opaque(),
            supersedes: record.siblings(&FieldPath::opaque()).iter().map(|sibling| sibling.dot).collect(),
            effect: Effect::Put(Bytes::from(SplitMix64::new(seq).next_u64().to_le_bytes().repeat(13)[..100].to_vec())),
        };
        let dependencies = match seq {
            1 => Dependencies::Whole { predecessor: None, applied: Default::default() },
            _ => Dependencies::Changed(Default::default()),
        };
        let write_set =
            WriteSet { dot: Dot::new(origin(0), seq), hlc: Hlc::new(seq, 0), dependencies, changes: vec![change] };
        let bytes = write_set.encode();
        self.store.append(&bytes, &self.frontier.heads).unwrap();
        let _ = self.frontier.apply(&mut self.store, &write_set, &bytes).unwrap();
        if seq.is_multiple_of(64) {
            self.store.sync().unwrap();
        }
    }

    fn checkpoint(&mut self) {
        self.store.sync().unwrap();
        let job = self.store.begin_checkpoint_now(&self.frontier).unwrap();
        self.store.finish_checkpoint(job.run().unwrap());
    }
}

fn main() {
    let dir = tempfile::tempdir_in(std::env::var("FIGURES_DIR").unwrap_or_else(|_| "/tmp".into())).unwrap();
    let path = dir.path().join("data");
    let mut node = Node::open(&path);
    let mut random = SplitMix64::new(7);
    measured("100,000 writes of new keys, groups of 64", || (0..100_000).for_each(|n| node.put(n)));
    measured("checkpoint of 100,000 new records", || node.checkpoint());
    measured("100,000 writes of keys in the state, groups of 64", || {
        (0..100_000).for_each(|_| node.put(random.below(100_000)));
    });
    measured("checkpoint of those (63,000 records)", || node.checkpoint());
    measured("900,000 writes of new keys, with 9 checkpoints", || {
        for n in 100_000..KEYS {
            node.put(n);
            if n % 100_000 == 99_999 {
                node.checkpoint();
            }
        }
    });
    measured("100,000 writes of random keys of 1,000,000", || (0..100_000).for_each(|_| node.put(random.below(KEYS))));
    let reader = node.store.reader();
    measured("100,000 reads of random keys, memtable and state", || {
        for _ in 0..100_000 {
            let number = random.below(KEYS).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let key = RecordKey::new(keyspace(), format!("{number:016x}").as_bytes());
            assert!(!reader.get(&key).unwrap().is_empty());
        }
    });
    measured("checkpoint of 95,000 random records of 1,000,000", || node.checkpoint());
    measured("scan of 1,000,000 records in pages of 1,000", || {
        let mut range = ScanRange::prefix(keyspace(), b"");
        let mut found = 0;
        while let Some((last, _)) = {
            let page = reader.scan(&range, 1_000).unwrap();
            found += page.len() as u64;
            page.last().cloned()
        } {
            range = range.after(last);
        }
        assert_eq!(found, KEYS);
    });
    println!("state: {} MB", reader.state_bytes().unwrap() >> 20);
    (0..100_000).for_each(|_| node.put(random.below(KEYS)));
    node.store.sync().unwrap();
    drop((node, reader));
    measured("open with 100,000 write sets to replay", || drop(Node::open(&path)));
}

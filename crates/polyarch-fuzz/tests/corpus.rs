//! Every input that was found and kept, and every seed, through its target: within its bounds, and without a panic.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use polyarch_fuzz::{TARGETS, Target};

/// Corpora are committed: what they may take of the repository, all together.
const CORPUS_BYTES_MAX: u64 = 2 << 20;
/// Inputs without which a corpus tells nothing.
const INPUTS_MIN: usize = 20;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn inputs(target: &Target) -> Vec<PathBuf> {
    let directory = corpus().join(target.name);
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut inputs: Vec<_> = entries.map(|entry| entry.expect("the directory is read").path()).collect();
    inputs.sort_unstable();
    inputs
}

/// Runs all inputs of a target; says what the most expensive of them cost.
fn replay(name: &str) {
    let target = Target::find(name).expect("there is such a target");
    let files = inputs(target);
    assert!(files.len() >= INPUTS_MIN, "{name}: {} inputs", files.len());
    let read = files.iter().map(|path| (path.display().to_string(), fs::read(path).expect("an input is read")));
    let seeds = (target.seeds)().into_iter().enumerate().map(|(number, seed)| (format!("seed {number}"), seed));
    let (mut share, mut time) = (0.0_f64, std::time::Duration::ZERO);
    for (input, data) in read.chain(seeds) {
        println!("{name}: {input}");
        assert!(data.len() <= target.len_max, "{input}: {} bytes, at most {}", data.len(), target.len_max);
        let cost = target.check(&data);
        share = share.max(cost.peak_bytes as f64 / target.memory.of(data.len()) as f64);
        time = time.max(cost.time);
    }
    println!("{name}: at most {:.0} % of the memory that an input may hold, and {time:?}", 100.0 * share);
}

macro_rules! replayed {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        #[test]
        fn each_target_is_replayed() {
            let replayed = [$(stringify!($name)),*];
            assert!(TARGETS.iter().map(|target| target.name).eq(replayed));
        }
    };
}

replayed! {
    wire_frames
    compressed_groups
    applied_sets
    contexts_and_tokens
    histories
    log_recovery
    snapshot_parts
    snapshot_requests
    backups
    hostile_members
    configurations
    names
    command_lines
}

#[test]
fn corpora_are_small_and_each_is_of_a_target() {
    let entries = fs::read_dir(corpus()).expect("the directory is read");
    let found: BTreeSet<_> = entries.map(|entry| entry.expect("the directory is read").file_name()).collect();
    let expected: BTreeSet<_> = TARGETS.iter().map(|target| target.name.into()).collect();
    assert_eq!(found, expected);
    let sizes = TARGETS.iter().flat_map(inputs).map(|path| fs::metadata(path).expect("an input is there").len());
    let bytes: u64 = sizes.sum();
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes");
}

//! How many records a second the log takes, synced in groups, and at what price.
//!
//! `cargo run --release -p polyarch-store --example log_bench [DIRECTORY]`: the directory is to be
//! on the disk in question; by default it is a temporary one. Records have 170 bytes.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use polyarch_crdt::{Dot, Origin};
use polyarch_protocol::{ChainHeads, LogPosition, LogReadError};
use polyarch_store::files::Directory;
use polyarch_store::log::{Log, LogConfig};

const RECORD_BYTES: usize = 170;
const RUN: Duration = Duration::from_secs(3);

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let base = std::env::args().nth(1).map_or(temporary.path().to_owned(), PathBuf::from);
    let mut heads = ChainHeads::default();
    for server_id in 1..=3 {
        heads.extend(Dot::new(Origin::new(server_id, 7), 1), b"first");
    }
    println!("records of {RECORD_BYTES} B; sync p50 / p99 / max in ms");
    println!("{:>6} {:>12} {:>16} {:>24}", "group", "records/s", "CPU s per 100k", "sync");
    for group in [1, 16, 64, 256] {
        let files = Directory::open(base.join(format!("log_bench_{group}")))?;
        let (mut log, _) = Log::open(files, LogConfig::default(), None)?;
        let (records, elapsed, cpu, mut syncs) = run(&mut log, &heads, group)?;
        syncs.sort_unstable();
        let at = |permille: usize| syncs[(syncs.len() - 1) * permille / 1000].as_secs_f64() * 1e3;
        println!(
            "{group:>6} {:>12.0} {:>16.3} {:>11.2} / {:.2} / {:.1}",
            records as f64 / elapsed.as_secs_f64(),
            cpu * 1e5 / records as f64,
            at(500),
            at(990),
            at(1000)
        );
        if group == 256 {
            replay(&log)?;
        }
    }
    Ok(())
}

type Figures = (u64, Duration, f64, Vec<Duration>);

fn run(log: &mut Log<Directory>, heads: &ChainHeads, group: u64) -> Result<Figures, Box<dyn Error>> {
    let mut record = [7; RECORD_BYTES];
    let mut syncs = Vec::new();
    let (start, cpu) = (Instant::now(), cpu_seconds()?);
    let mut records = 0;
    while start.elapsed() < RUN {
        for _ in 0..group {
            records += 1;
            record[..8].copy_from_slice(&u64::to_le_bytes(records));
            log.append(&record, heads)?;
        }
        let sync = Instant::now();
        log.sync()?;
        syncs.push(sync.elapsed());
    }
    Ok((records, start.elapsed(), cpu_seconds()? - cpu, syncs))
}

fn replay(log: &Log<Directory>) -> Result<(), LogReadError> {
    let (start, mut bytes) = (Instant::now(), 0);
    log.replay(LogPosition::default(), |_, write_set| {
        bytes += write_set.len();
        Ok::<_, LogReadError>(())
    })?;
    println!("replay of {} MB: {:.0} MB/s", bytes / 1_000_000, bytes as f64 / 1e6 / start.elapsed().as_secs_f64());
    Ok(())
}

/// User and system time of this process.
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks as f64 / 100.0)
}

//! What is not part of any run: the clock, and the repository.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use polyarch_sim::Rng;
use time::OffsetDateTime;

/// Fresh seeds begin at multiples of this.
const FRESH_STEP: u64 = 1_000_000;

/// The commit that is checked out, with `-dirty` where the code differs from it.
pub(crate) fn commit() -> String {
    let Some(commit) = git(&["rev-parse", "--short=10", "HEAD"]) else { return "unknown".to_owned() };
    // What a run writes itself, a ledger and regressions, does not count.
    let paths = ["--", "Cargo.toml", "Cargo.lock", "crates", ":!crates/polyarch-sim/regressions"];
    let changes = git(&[&["status", "--porcelain", "--untracked-files=no"][..], &paths[..]].concat());
    match changes.is_some_and(|changes| changes.is_empty()) {
        true => commit,
        false => format!("{commit}-dirty"),
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// Today, in UTC.
pub(crate) fn date() -> String {
    OffsetDateTime::now_utc().date().to_string()
}

/// The first of seeds that were most likely never run: drawn from the clock.
pub(crate) fn fresh_seed() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Rng::new(since_epoch.as_nanos() as u64).below(1 << 30) * FRESH_STEP
}

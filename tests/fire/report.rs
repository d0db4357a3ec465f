//! What a run did and found, as Markdown; printed at its end, and written after each round to the file that
//! `POLYARCH_FIRE_REPORT` names.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::relay::Counts;
use crate::tally::Counted;

/// A run's figures. Told when it is dropped, also by a panic.
pub(crate) struct Report {
    pub(crate) form: &'static str,
    pub(crate) seed: u64,
    pub(crate) began: Instant,
    pub(crate) clusters: u64,
    pub(crate) rounds: u64,
    /// By name and number of nodes, in how many rounds.
    pub(crate) topologies: BTreeMap<String, u64>,
    pub(crate) faults: BTreeMap<String, u64>,
    pub(crate) relayed: Arc<Counts>,
    pub(crate) counted: Counted,
    /// Acknowledged writes that a replaced disk alone had.
    pub(crate) excused: u64,
    pub(crate) gtids_read: u64,
    pub(crate) gtids_in_logs: u64,
    pub(crate) digests: u64,
    pub(crate) longest_to_equality: Duration,
    pub(crate) resident_kib: u64,
}

impl Report {
    pub(crate) fn new(form: &'static str, seed: u64) -> Self {
        Self {
            form,
            seed,
            began: Instant::now(),
            clusters: 0,
            rounds: 0,
            topologies: BTreeMap::new(),
            faults: BTreeMap::new(),
            relayed: Arc::default(),
            counted: Counted::default(),
            excused: 0,
            gtids_read: 0,
            gtids_in_logs: 0,
            digests: 0,
            longest_to_equality: Duration::ZERO,
            resident_kib: 0,
        }
    }

    fn text(&self, outcome: &str) -> String {
        let mut text = format!("# Under fire, {}\n\n| what | figure |\n|---|---:|\n", self.form);
        let mut row = |what: &str, figure: String| writeln!(text, "| {what} | {figure} |").expect("a string grows");
        row("outcome", outcome.to_owned());
        row("seed", self.seed.to_string());
        row("seconds", self.began.elapsed().as_secs().to_string());
        row("clusters", self.clusters.to_string());
        row("rounds", self.rounds.to_string());
        for (topology, rounds) in &self.topologies {
            row(&format!("... begun as {topology}"), rounds.to_string());
        }
        for (fault, count) in &self.faults {
            row(fault, count.to_string());
        }
        let counts = &self.relayed;
        let relayed: [(&str, &AtomicU64); 7] = [
            ("passed", &counts.passed),
            ("blocked", &counts.blocked),
            ("lost", &counts.lost),
            ("doubled", &counts.doubled),
            ("corrupted", &counts.corrupted),
            ("out of order", &counts.overtaken),
            ("late", &counts.late),
        ];
        for (what, count) in relayed {
            row(&format!("datagrams {what} by the relay"), count.load(Ordering::Relaxed).to_string());
        }
        let counted = &self.counted;
        row("writes acknowledged", counted.acked.to_string());
        row("writes of unknown outcome", counted.unknown.to_string());
        row("writes refused", counted.refused.to_string());
        row("reads", counted.reads.to_string());
        row("acknowledged writes that only a replaced disk had", self.excused.to_string());
        row("GTIDs compared in reads", self.gtids_read.to_string());
        row("GTIDs compared in logs", self.gtids_in_logs.to_string());
        row("digests compared", self.digests.to_string());
        let mut took = counted.took_us.clone();
        took.sort_unstable();
        for percent in [50, 99] {
            let rank = took.get((took.len() * percent / 100).min(took.len().saturating_sub(1)));
            row(&format!("p{percent} of acknowledged writes"), format!("{:.1} ms", *rank.unwrap_or(&0) as f64 / 1e3));
        }
        row("longest time from healing to equality", format!("{:.1} s", self.longest_to_equality.as_secs_f64()));
        row("greatest resident memory of a node", format!("{} MiB", self.resident_kib >> 10));
        row("breaches", counted.breaches.len().to_string());
        for breach in counted.breaches.iter().take(50) {
            writeln!(text, "\n- {breach}").expect("a string grows");
        }
        text
    }
}

impl Report {
    /// Writes what there is so far, for a run that somebody ends.
    pub(crate) fn save(&self, outcome: &str) -> String {
        let text = self.text(outcome);
        if let Some(path) = std::env::var_os("POLYARCH_FIRE_REPORT")
            && let Err(error) = std::fs::write(&path, &text)
        {
            eprintln!("{}: {error}", path.display());
        }
        text
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let has_passed = !std::thread::panicking() && self.counted.breaches.is_empty();
        println!("{}", self.save(if has_passed { "every promise held" } else { "**FAILED**" }));
    }
}

//! Power cuts, kills and failing disks at any moment.
//!
//! The law, checked after each: the log holds all that was ever reported as durable, then some
//! first part of what was staged behind it, and nothing else.

use bytes::Bytes;
use polyarch_protocol::LogPosition;
use proptest::prelude::*;

use super::life::{Life, small_config};
use crate::files::simulated::{SimulatedDisk, SplitMix64};
use crate::log::{LogConfig, LogError};

/// A disk and all that was promised about the log on it.
struct Ordeal {
    disk: SimulatedDisk,
    config: LogConfig,
    random: SplitMix64,
    lives: u64,
    /// What the log said is durable, since its first retained segment.
    durable: Vec<(LogPosition, Bytes)>,
    /// What it may hold behind that.
    staged: Vec<(LogPosition, Bytes)>,
    /// What a checkpoint would say.
    known_synced: Option<LogPosition>,
    /// Segments before this may be gone.
    kept: LogPosition,
}

/// The fault of a life whose disk is full and does all else that it should.
const DISK_FULL: u64 = 3;

/// What went wrong, in words.
type Broken = String;

impl Ordeal {
    fn new(seed: u64, config: &LogConfig) -> Self {
        let mut random = SplitMix64::new(seed);
        let page_bytes = if random.below(2) == 0 { 512 } else { 4096 };
        Self {
            disk: SimulatedDisk::new(random.next_u64(), page_bytes),
            config: LogConfig {
                allocate_bytes: 1 + random.below(5_000),
                tail_bytes_max: random.below(4_000) as usize,
                ..config.clone()
            },
            random,
            lives: 0,
            durable: Vec::new(),
            staged: Vec::new(),
            known_synced: None,
            kept: LogPosition::default(),
        }
    }

    fn run(mut self, lives: u64) -> Result<(), Broken> {
        for _ in 0..lives {
            let life = self.open()?;
            self.live(life);
            self.end_life();
        }
        let life = self.open()?;
        life.check_all_reads();
        let twice = self.open()?;
        match twice.frames == life.frames && twice.recovery.discarded_bytes == 0 {
            true => Ok(()),
            false => Err(format!("opened twice, {:?} is not {:?}", twice.recovery, life.recovery)),
        }
    }

    /// Opens the log, perhaps after some attempts that the power cut short, and compares.
    fn open(&mut self) -> Result<Life<SimulatedDisk>, Broken> {
        while self.random.below(4) == 0 {
            self.disk.stop_after(self.random.below(8));
            let opened = Life::open(&self.disk, self.config.clone(), self.known_synced);
            if let Ok(life) = &opened {
                self.compare(life)?;
            }
            if let Err(error @ (LogError::Damaged(_) | LogError::Version { .. })) = opened {
                return Err(error.to_string());
            }
            self.end_life();
        }
        self.disk.restart();
        self.lives += 1;
        let life = Life::open(&self.disk, self.config.clone(), self.known_synced).map_err(|error| error.to_string())?;
        self.compare(&life)?;
        Ok(life.numbered(self.lives))
    }

    fn compare(&mut self, life: &Life<SimulatedDisk>) -> Result<(), Broken> {
        let first = &life.log.segments()[0];
        if first.number > self.kept.segment.max(1) {
            return Err(format!("segment {} is the first, {} was to be kept", first.number, self.kept));
        }
        self.durable.retain(|(end, _)| end.segment >= first.number);
        let (held, owed) = (&life.frames, self.durable.len());
        if held.len() < owed || held[..owed] != self.durable {
            return Err(format!("durable was {:?}, the log holds {:?}", self.durable.last(), held.last()));
        }
        let behind = &held[owed..];
        if !self.staged.starts_with(behind) {
            return Err(format!("behind what was durable the log holds {behind:?}, staged was {:?}", self.staged));
        }
        self.durable = held.clone();
        self.staged.clear();
        Ok(())
    }

    /// Appends, syncs and removes until something fails or it is enough.
    fn live(&mut self, mut life: Life<SimulatedDisk>) {
        let fault = self.random.below(6);
        match fault {
            0 => self.disk.stop_after(self.random.below(60)),
            1 => self.disk.fail_sync_after(self.random.below(25)),
            2 => self.disk.fail_write_after(self.random.below(25)),
            DISK_FULL => self.disk.set_space(Some(self.random.below(12_000))),
            _ => {}
        }
        for _ in 0..self.random.below(30) {
            // Frames of one length: then old and new frames begin at the same places.
            let bytes = if self.random.below(4) > 0 { 60 } else { self.random.below(900) as usize };
            let appended = (0..self.random.below(12)).try_for_each(|_| life.append(bytes));
            self.staged = life.frames[self.durable.len()..].to_vec();
            match appended {
                Err(LogError::Full { .. }) if self.random.below(4) == 0 => self.disk.set_space(None),
                Ok(()) | Err(LogError::Full { .. }) => {}
                Err(_) => break,
            }
            if self.random.below(8) == 0 {
                break;
            }
            let synced = life.log.sync();
            assert!(synced.is_ok() || fault != DISK_FULL, "{synced:?} on a disk that is only full");
            let Ok(end) = synced else { break };
            self.durable.append(&mut self.staged);
            if self.random.below(6) == 0 {
                self.known_synced = Some(end);
            }
            if self.random.below(10) == 0 && !self.remove(&mut life, end) {
                break;
            }
        }
        self.disk.set_space(None);
    }

    fn remove(&mut self, life: &mut Life<SimulatedDisk>, end: LogPosition) -> bool {
        self.kept =
            LogPosition { segment: end.segment.saturating_sub(self.random.below(3)).max(self.kept.segment), offset: 0 };
        life.log.remove_segments_before(self.kept).is_ok()
    }

    fn end_life(&mut self) {
        match self.random.below(3) {
            0 => self.disk.restart(),
            _ => self.disk.crash(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_was_durable_survives_everything(seed: u64) {
        Ordeal::new(seed, &small_config()).run(6).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn it_survives_where_segments_are_shorter_than_groups(seed: u64) {
        let config = LogConfig { segment_bytes: 400, ..small_config() };
        Ordeal::new(seed, &config).run(6).map_err(TestCaseError::fail)?;
    }
}

/// Every single moment of an opening, of a first one as of one after a torn group.
#[test]
fn a_crash_at_any_moment_of_an_opening_loses_nothing() {
    for seed in 0..60 {
        for moment in 0..12 {
            let disk = SimulatedDisk::new(seed, 512);
            disk.stop_after(moment);
            drop(Life::open(&disk, small_config(), None));
            disk.crash();
            let mut life = Life::open(&disk, small_config(), None).unwrap();
            assert_eq!(life.frames, []);
            life.append_group(10, 100);
            life.log.sync().unwrap();
            let durable = life.frames.clone();
            life.append_group(30, 100);
            disk.stop_after(seed % 7);
            drop(life.log.sync());
            disk.crash();
            disk.stop_after(moment);
            drop(Life::open(&disk, small_config(), None));
            disk.crash();
            let again = Life::open(&disk, small_config(), None).unwrap();
            assert!(again.frames.starts_with(&durable) && life.frames.starts_with(&again.frames));
        }
    }
}

#[cfg(feature = "seeded-bugs")]
mod seeded_bugs {
    use super::*;
    use crate::log::LogBugs;

    fn assert_seen(bugs: LogBugs) {
        let config = LogConfig { bugs, ..small_config() };
        let broken = |seed| {
            let run = std::panic::AssertUnwindSafe(|| Ordeal::new(seed, &config).run(6).is_err());
            std::panic::catch_unwind(run).unwrap_or(true)
        };
        let first = (0..2_000).find(|seed| broken(*seed));
        assert!(first.is_some(), "{bugs:?} was not seen");
        println!("{bugs:?}: seen by seed {first:?}");
    }

    #[test]
    fn a_log_without_syncs_is_seen() {
        assert_seen(LogBugs { no_sync: true, ..LogBugs::default() });
    }

    #[test]
    fn a_recovery_without_a_sync_is_seen() {
        assert_seen(LogBugs { no_sync_at_recovery: true, ..LogBugs::default() });
    }

    #[test]
    fn a_log_that_ends_late_is_seen() {
        assert_seen(LogBugs { ends_late_after_torn_group: true, ..LogBugs::default() });
    }
}

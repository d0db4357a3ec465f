use super::format::SEGMENT_BYTES_MAX;

/// How a log is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// Bytes of one segment, after which the next begins; a single frame may reach beyond.
    /// Default 64 MiB, at most 1 GiB.
    pub segment_bytes: u64,
    /// Bytes by which a segment's file grows at once, written with zeros ahead of the frames so
    /// that most syncs change no metadata. In steps and not at once, for zeroing 64 MiB holds the
    /// appender for 50 ms, 4 MiB for 3 ms. Never beyond the segment's own size. Default 4 MiB.
    pub allocate_bytes: u64,
    /// Bytes of the disk that the log leaves free, where it knows how many are: room for checkpoints,
    /// and for files that must be written before any can be removed. Default 0.
    pub reserve_bytes: u64,
    /// Bytes of the last durable frames that readers find in memory. Default 16 MiB.
    pub tail_bytes_max: usize,
    /// Bytes between two marks in memory; each segment begins with one on disk. Default 1 MiB.
    pub mark_bytes: u64,
    /// Most marks in memory besides those of the segments; the oldest go first. Default 256.
    pub marks_max: usize,
    /// A random number for a log that does not exist yet; one that exists keeps its own. It keeps
    /// a client from writing a value that recovery would take for a frame, so no client or peer
    /// may know it. Default 0, which is for tests only.
    pub salt: u32,
    /// Faults to switch on, so that a simulator can show that it sees them.
    #[cfg(feature = "seeded-bugs")]
    pub bugs: LogBugs,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            allocate_bytes: 4 << 20,
            reserve_bytes: 0,
            tail_bytes_max: 16 << 20,
            mark_bytes: 1 << 20,
            marks_max: 256,
            salt: 0,
            #[cfg(feature = "seeded-bugs")]
            bugs: LogBugs::default(),
        }
    }
}

impl LogConfig {
    pub(super) fn validated(mut self) -> Self {
        self.segment_bytes = self.segment_bytes.min(SEGMENT_BYTES_MAX);
        self.allocate_bytes = self.allocate_bytes.min(self.segment_bytes).max(1);
        self
    }
}

/// Faults that a simulation must notice. Unreachable from any shipped binary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg(feature = "seeded-bugs")]
pub struct LogBugs {
    /// A sync writes, reports success, and does not sync.
    pub no_sync: bool,
    /// Recovery does not write once more, and sync, what may be in the page cache only.
    pub no_sync_at_recovery: bool,
    /// Recovery takes valid frames behind an invalid one for part of the log.
    pub ends_late_after_torn_group: bool,
    /// A disk without room is taken for one that failed.
    pub full_is_failed: bool,
}

/// What is faulty; nothing in a build without the feature.
#[cfg(feature = "seeded-bugs")]
impl LogConfig {
    pub(super) fn leaves_out_sync(&self) -> bool {
        self.bugs.no_sync
    }

    pub(super) fn leaves_out_recovery_sync(&self) -> bool {
        self.bugs.no_sync_at_recovery
    }

    pub(super) fn ends_late(&self) -> bool {
        self.bugs.ends_late_after_torn_group
    }

    pub(super) fn takes_full_for_failed(&self) -> bool {
        self.bugs.full_is_failed
    }
}

#[cfg(not(feature = "seeded-bugs"))]
impl LogConfig {
    pub(super) fn leaves_out_sync(&self) -> bool {
        false
    }

    pub(super) fn leaves_out_recovery_sync(&self) -> bool {
        false
    }

    pub(super) fn ends_late(&self) -> bool {
        false
    }

    pub(super) fn takes_full_for_failed(&self) -> bool {
        false
    }
}

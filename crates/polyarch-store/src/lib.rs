//! The log, the memtable and the state: how one node keeps what it was told.
//!
//! The [log] is the truth: write sets in the order they were applied here. The
//! [state] is what they add up to, written by checkpoints in the background, and between
//! the two lies the [memtable]. [`Store`] puts them together for the replica, and [`verify()`] checks
//! them against each other. What a peer's log no longer has comes as a snapshot
//! ([`SnapshotReceiver`]), and is joined beside the running store ([`Store::begin_join`]). One that is
//! kept is a backup ([`BackupDirectory`], [`verify_backup`]).

pub mod files;
pub mod log;
pub mod memtable;
pub mod state;

mod backup;
mod checkpointer;
mod join;
mod lock;
mod log_check;
mod marks;
mod open;
mod overlay;
mod pins;
mod published;
mod repair;
mod salvage;
mod snapshot;
mod store;
mod verify;

pub use backup::{
    BackupDirectory, BackupDirectoryError, BackupManifest, BackupOrigin, BackupReport, BackupSurvey, SurveyError,
    verify_backup,
};
pub use checkpointer::{CheckpointConfig, CheckpointDone, CheckpointError, CheckpointJob, CheckpointSummary};
pub use join::{JoinConfig, JoinError, JoinJob, JoinPhase, JoinProgress, Joined, RetiredState};
pub use lock::{DirectoryLock, LockError};
pub use log_check::LogFinding;
pub use marks::MarkError;
pub use open::{OpenError, OpenReport, StateReport};
pub use pins::Pin;
pub use published::StateReader;
pub use repair::{
    LeftOut, Parting, RepairError, RepairPart, RepairParts, RepairReport, Repaired, make_repair, repair, resume_repair,
    settle, whole_checkpoint, write_marks,
};
pub use salvage::{Salvage, SalvageReader};
pub use snapshot::{DonorRecords, SequenceError, SnapshotError, SnapshotPhase, SnapshotProgress, SnapshotReceiver};
#[cfg(feature = "seeded-bugs")]
pub use store::SeededBugs;
pub use store::{AdoptError, DiskStore, Store, StoreConfig, StoreFiles};
pub use verify::{
    DumpError, LogEntry, Problem, VerifyConfig, VerifyError, VerifyReport, chain_heads, dump, verify, verify_parts,
};

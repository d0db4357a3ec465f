//! What is fuzzed: functions of bytes that panic when something is wrong.

mod backups;
mod frames;
mod histories;
mod logs;
mod members;
mod sealed;
mod sets;
mod snapshots;
mod texts;

pub use backups::backups;
pub use frames::{compressed_groups, wire_frames};
pub use histories::histories;
pub use logs::log_recovery;
pub use members::hostile_members;
pub use sealed::contexts_and_tokens;
pub use sets::applied_sets;
pub use snapshots::{snapshot_parts, snapshot_requests};
pub use texts::{command_lines, configurations, names};

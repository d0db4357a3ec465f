//! The kinds of faults there are, how often each is drawn, and in which worlds.

use crate::scenario::LogRemoval;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// A link breaks; it may be dialled again at once.
    LoseLink,
    /// Messages from one node to another do not arrive, those the other way do.
    OneWay,
    /// A node hears nobody.
    Isolate,
    /// The nodes fall into two parts.
    Halves,
    /// The way between two nodes comes and goes, several times.
    Flapping,
    /// Two nodes that are linked are linked once more.
    DoubleLink,
    /// A link breaks with write sets on their way, which are asked for again.
    LoseLinkInFeed,
    /// Messages take long.
    SlowNetwork,
    /// The power fails on one node.
    PowerCut,
    /// The power fails on all nodes.
    PowerCutAll,
    /// The power fails while a node writes and syncs.
    PowerCutInSync,
    /// The power fails while a node starts.
    PowerCutInRecovery,
    /// The power fails while a checkpoint is written.
    PowerCutInCheckpoint,
    /// A process ends, its machine goes on.
    Kill,
    /// A sync fails; the node is restarted, and some time later the power may fail.
    SyncFails,
    /// A write fails.
    WriteFails,
    /// A disk is full for a while.
    DiskFull,
    /// A state store comes up as it was some checkpoints ago.
    StateRollsBack,
    /// A state store does not open.
    StateDamaged,
    /// A segment of a node's log is not as it was written: bits, or a page.
    DamageLog,
    /// The same of a small file beside it.
    DamageMarks,
    /// The same of a snapshot on its way in.
    DamageSnapshot,
    /// The same of what waits since a repair.
    DamageSalvage,
    /// A wall clock jumps ahead.
    ClockAhead,
    /// A wall clock jumps back.
    ClockBack,
    /// A wall clock stands still.
    ClockFreeze,
    /// A wall clock jumps to and fro, by hours at times.
    ClockStrobe,
    /// A machine is suspended.
    Pause,
    /// An operator takes a link down.
    OperatorCut,
    /// A node comes up on an older image of its disk; some images are used again.
    SetBack,
    /// All nodes come up on older images of their disks, each of another age.
    SetBackAll,
    /// A node comes up with an empty disk.
    LoseDisk,
    /// A copy of a node's disk is started on another machine, beside it.
    Clone,
    /// A node lets go of all log that its store can do without, whoever lacks it.
    CutLog,
    /// All nodes do.
    CutAllLogs,
    /// The power fails while a node joins a snapshot.
    PowerCutInJoin,
    /// The power fails while a node adopts one.
    PowerCutInAdoption,
    /// A node's process ends while it sends a snapshot.
    KillDonor,
    /// A node's process ends while it takes one in.
    KillReceiver,
}

impl Fault {
    /// Whether it happens in a world that treats its logs so.
    pub(crate) fn happens_with(self, removal: LogRemoval) -> bool {
        match self {
            // What all had is needed again.
            Self::SetBack | Self::SetBackAll | Self::LoseDisk | Self::Clone | Self::StateDamaged => {
                removal != LogRemoval::WhatAllHave
            }
            Self::DamageLog | Self::DamageMarks | Self::DamageSnapshot | Self::DamageSalvage => {
                removal != LogRemoval::WhatAllHave
            }
            Self::CutLog
            | Self::CutAllLogs
            | Self::PowerCutInJoin
            | Self::PowerCutInAdoption
            | Self::KillDonor
            | Self::KillReceiver => removal == LogRemoval::Cuts,
            _ => true,
        }
    }

    /// Whether what comes of it may need a snapshot, which members of the first version do not send: a repair lets
    /// a log begin anew.
    pub(crate) fn may_need_snapshots(self) -> bool {
        matches!(self, Self::DamageLog | Self::DamageMarks | Self::DamageSnapshot | Self::DamageSalvage)
    }
}

/// All kinds of faults, with how often each is drawn.
pub const FAULTS: [(Fault, u64); 39] = [
    (Fault::LoseLink, 8),
    (Fault::OneWay, 5),
    (Fault::Isolate, 8),
    (Fault::Halves, 6),
    (Fault::Flapping, 4),
    (Fault::DoubleLink, 4),
    (Fault::LoseLinkInFeed, 6),
    (Fault::SlowNetwork, 4),
    (Fault::PowerCut, 8),
    (Fault::PowerCutAll, 2),
    (Fault::PowerCutInSync, 8),
    (Fault::PowerCutInRecovery, 3),
    (Fault::PowerCutInCheckpoint, 10),
    (Fault::Kill, 6),
    (Fault::SyncFails, 5),
    (Fault::WriteFails, 2),
    (Fault::DiskFull, 6),
    (Fault::StateRollsBack, 4),
    (Fault::StateDamaged, 2),
    (Fault::DamageLog, 8),
    (Fault::DamageMarks, 2),
    (Fault::DamageSnapshot, 4),
    (Fault::DamageSalvage, 3),
    (Fault::ClockAhead, 3),
    (Fault::ClockBack, 3),
    (Fault::ClockFreeze, 3),
    (Fault::ClockStrobe, 3),
    (Fault::Pause, 5),
    (Fault::OperatorCut, 2),
    (Fault::SetBack, 6),
    (Fault::SetBackAll, 1),
    (Fault::LoseDisk, 1),
    (Fault::Clone, 4),
    (Fault::CutLog, 12),
    (Fault::CutAllLogs, 16),
    (Fault::PowerCutInJoin, 5),
    (Fault::PowerCutInAdoption, 5),
    (Fault::KillDonor, 6),
    (Fault::KillReceiver, 5),
];

use std::fmt;

use polyarch_crdt::{Dot, Hlc, Origin};

use crate::buckets::DifferingKey;
use crate::catalog::MemberStatus;
use crate::client::listed;
use crate::digest::of_all_buckets;
use crate::topology::Topology;

/// Something an operator may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A member's link is up.
    Linked {
        /// The member.
        server_id: u32,
    },
    /// A member's link is lost.
    Unlinked {
        /// The member.
        server_id: u32,
    },
    /// A member was refused.
    Refused {
        /// The member.
        server_id: u32,
        /// Why.
        reason: String,
    },
    /// Alarm: a member sends what this version does not know. Its links are closed, and it is left
    /// alone for 10 s each time. Told once for each process of a member.
    Unreadable {
        /// The member.
        server_id: u32,
        /// What it is.
        reason: String,
    },
    /// This server opened an epoch.
    EpochOpened {
        /// The new origin.
        origin: Origin,
        /// The last write set of its epoch before.
        predecessor: Option<Dot>,
    },
    /// A peer held more of this process's epoch than the process itself: it was set back. The
    /// epoch is closed and the peer's write sets are taken in.
    EpochClosed {
        /// The epoch.
        origin: Origin,
        /// The last write set this process has of it.
        had: u64,
        /// What the peer has.
        peer_has: u64,
    },
    /// Alarm: two members hold different histories of one origin. Its feed is stopped.
    Fork {
        /// The last write set whose chain differs.
        dot: Dot,
        /// The member with the other history.
        server_id: u32,
    },
    /// Alarm: a write set cannot be read here. Its origin's feed is stopped, the others go on.
    Poisoned {
        /// The origin.
        origin: Origin,
        /// Why.
        reason: String,
    },
    /// Alarm: equal applied-sets, different digests: a bug or a damaged disk.
    DigestMismatch {
        /// The member.
        server_id: u32,
        /// The digest here.
        ours: u128,
        /// The digest there.
        theirs: u128,
    },
    /// Alarm: the buckets of the digest in which a member differs. Told again when there are others.
    BucketsDiffer {
        /// The member.
        server_id: u32,
        /// All buckets in which the two differ, in order.
        buckets: Vec<u16>,
    },
    /// Alarm: the keys that a member holds otherwise, of the first buckets that differ.
    KeysDiffer {
        /// The member.
        server_id: u32,
        /// The first of them, in order.
        keys: Vec<DifferingKey>,
        /// How many there are in all.
        count: u64,
        /// Whether all keys of those buckets were compared; there may be too many.
        is_all: bool,
    },
    /// Alarm: this node's records are not those that its digest was kept up with: its own disk, or a
    /// bug here.
    RecordsAltered {
        /// The buckets that they do not add up to.
        buckets: Vec<u16>,
    },
    /// A member that differed is equal again.
    DigestsEqual {
        /// The member.
        server_id: u32,
    },
    /// Alarm: two living processes have one server id. Neither takes writes until one is gone.
    Twin {
        /// The server id.
        server_id: u32,
        /// Where they were seen.
        addresses: Vec<String>,
    },
    /// A member's status changed.
    MemberChanged {
        /// The member.
        server_id: u32,
        /// What it was; `None` for a new one.
        from: Option<MemberStatus>,
        /// What it is.
        to: MemberStatus,
    },
    /// Alarm: a member says that this server was removed. It takes no writes while that is so.
    ToldRemoved {
        /// The member that says so.
        by: u32,
    },
    /// The topology changed.
    TopologyChanged {
        /// What it is.
        to: Topology,
    },
    /// Alarm: two topologies were set at the same time. All members use the one of the later
    /// stamp; this one lost.
    TopologyLost {
        /// The write set that set it.
        dot: Dot,
        /// What it wanted.
        topology: Topology,
    },
    /// A member's log no longer reaches back far enough, or cannot be read, for an origin.
    NotFed {
        /// The origin.
        origin: Origin,
        /// The member.
        server_id: u32,
    },
    /// A snapshot is fetched: what this node lacks no member's log still has.
    SnapshotBegun {
        /// The donor.
        from: u32,
    },
    /// A snapshot could not be fetched or joined; nothing was changed, and it is tried again. An alarm
    /// once, when so many failed in a row that it is no matter of a link or a donor that is gone.
    SnapshotFailed {
        /// The donor.
        from: u32,
        /// Why.
        reason: String,
        /// How many have failed since one was joined, this one among them.
        failures: u32,
    },
    /// A snapshot was joined with what this node had.
    SnapshotJoined {
        /// The donor, if this process fetched it.
        from: Option<u32>,
        /// Of how many origins there is more now.
        origins: usize,
    },
    /// Alarm: the bounds of the log are reached, and what a member is not known to have was removed.
    LeftBehind {
        /// The member.
        server_id: u32,
    },
    /// Alarm: a stamp lies absurdly far ahead; the write set was applied, its stamp not merged.
    StampAhead {
        /// The write set.
        dot: Dot,
        /// Its stamp.
        hlc: Hlc,
        /// How far ahead, in milliseconds.
        ahead_ms: u64,
    },
    /// Alarm: a member's wall clock differs by more than `clock_offset_max_ms`.
    ClockOffset {
        /// The member.
        server_id: u32,
        /// Its clock less ours, in milliseconds.
        offset_ms: i64,
    },
    /// Alarm: this node's wall clock is far ahead of those of a majority of the members. It takes no
    /// writes while that is so.
    ClockAhead {
        /// By this much at least, in milliseconds.
        ahead_ms: u64,
        /// Of these members, in order.
        of: Vec<u32>,
    },
    /// That is over.
    ClockRight,
    /// Alarm: an earlier process of this server stamped writes far ahead of the present time. So does
    /// this one, for a server's stamps only rise.
    OwnStampsAhead {
        /// The greatest of them.
        hlc: Hlc,
        /// How far ahead, in milliseconds.
        ahead_ms: u64,
    },
    /// An operator let stopped feeds go on.
    FeedsRetried {
        /// Of these origins.
        origins: Vec<Origin>,
    },
    /// Alarm: a member has write sets that this server wrote in earlier processes and no longer has:
    /// it runs on an old image or backup of its disk, or on an empty one. They are fetched.
    OwnWritesLost {
        /// The member.
        from: u32,
        /// At least one.
        epochs: Vec<LostEpoch>,
    },
    /// All that this server had lost of its own, as far as members showed, is durably here again.
    OwnWritesRegained {
        /// How many write sets, since the process began.
        write_sets: u64,
        /// Of how many epochs.
        epochs: u64,
    },
    /// All write sets that a repair had left waiting have their place.
    SalvageApplied,
    /// Alarm: write sets that a repair left waiting follow on others which no linked member has.
    SalvageStuck {
        /// How many wait.
        write_sets: u64,
        /// The first of each origin that cannot be applied, in order.
        first: Vec<Dot>,
    },
    /// Alarm: the write sets that a repair left waiting cannot be read. The node goes on without them.
    SalvageUnreadable {
        /// Why.
        reason: String,
    },
    /// Alarm: the disk failed; this node writes no more until it is restarted.
    StorageFailed {
        /// What the disk said.
        reason: String,
    },
    /// Alarm: the disk has no room. This node writes nothing until it has.
    DiskFull {
        /// What the disk said.
        reason: String,
    },
    /// The disk has room again; this node writes again.
    DiskHasRoom,
}

/// How much of an epoch of its own a server had lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostEpoch {
    /// The epoch.
    pub origin: Origin,
    /// The last write set of it that is here; 0 for none.
    pub had: u64,
    /// The last one that the member has.
    pub peer_has: u64,
}

/// A server that was restarted often has many; a line names the first.
struct OfEpochs<'a>(&'a [LostEpoch]);

impl fmt::Display for OfEpochs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, others @ ..] = self.0 else { return Ok(()) };
        write!(f, "of epoch {} those behind {} up to {}", first.origin, first.had, first.peer_has)?;
        match others.len() {
            0 => Ok(()),
            others => write!(f, ", and of {others} more epochs"),
        }
    }
}

/// A line names the first few.
struct Listed<'a>(&'a [Dot]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMED_MAX: usize = 4;
        for (at, dot) in self.0.iter().take(NAMED_MAX).enumerate() {
            write!(f, "{}{dot}", if at == 0 { "" } else { ", " })?;
        }
        match self.0.len().saturating_sub(NAMED_MAX) {
            0 => Ok(()),
            others => write!(f, " and {others} more"),
        }
    }
}

/// The failure of a snapshot that is an alarm.
const SNAPSHOT_FAILURES_TOLD: u32 = 6;

impl Event {
    /// Whether someone should be woken.
    pub fn is_alarm(&self) -> bool {
        if let Self::SnapshotFailed { failures, .. } = self {
            return *failures == SNAPSHOT_FAILURES_TOLD;
        }
        !matches!(
            self,
            Self::Linked { .. }
                | Self::Unlinked { .. }
                | Self::EpochOpened { .. }
                | Self::MemberChanged { .. }
                | Self::TopologyChanged { .. }
                | Self::NotFed { .. }
                | Self::DigestsEqual { .. }
                | Self::SnapshotBegun { .. }
                | Self::SnapshotJoined { .. }
                | Self::SalvageApplied
                | Self::DiskHasRoom
                | Self::FeedsRetried { .. }
                | Self::ClockRight
                | Self::OwnWritesRegained { .. }
        )
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linked { server_id } => write!(f, "link to member {server_id} is up"),
            Self::Unlinked { server_id } => write!(f, "link to member {server_id} is down"),
            Self::Refused { server_id, reason } => write!(f, "refused member {server_id}: {reason}"),
            Self::Unreadable { server_id, reason } => {
                write!(f, "member {server_id} sends what this version does not know ({reason}); upgrade this node")
            }
            Self::EpochOpened { origin, predecessor: None } => {
                write!(f, "opened epoch {origin}, the first of this server")
            }
            Self::EpochOpened { origin, predecessor: Some(dot) } => write!(f, "opened epoch {origin} after {dot}"),
            Self::EpochClosed { origin, had, peer_has } => {
                write!(
                    f,
                    "closed epoch {origin}: this process has {had} of its write sets, a peer has {peer_has}; was this machine set back?"
                )
            }
            Self::Fork { dot, server_id } => {
                write!(f, "fork: member {server_id} holds another history up to {dot}; feed of that origin stopped")
            }
            Self::Poisoned { origin, reason } => write!(f, "feed of {origin} stopped: {reason}"),
            Self::DigestMismatch { server_id, ours, theirs } => {
                write!(
                    f,
                    "applied the same as member {server_id} but digests differ ({ours:032x} here, {theirs:032x} there); `polyarch diff {server_id}` lists what differs"
                )
            }
            Self::BucketsDiffer { server_id, buckets } => {
                let count = of_all_buckets(buckets.len());
                write!(f, "member {server_id} differs in {count} of the digest: {}", first_of(buckets))
            }
            Self::KeysDiffer { server_id, count: 0, is_all: true, .. } => {
                write!(
                    f,
                    "the records of the buckets in which member {server_id} differs are the same; the digest that one of the two keeps is wrong. Stop it and run `polyarch verify`"
                )
            }
            Self::KeysDiffer { server_id, keys, count, is_all } => {
                let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
                let rest = match is_all {
                    true => "",
                    false => "; there are more in those buckets than were compared",
                };
                let count_of = if *count == 1 { "1 key".to_owned() } else { format!("{count} keys") };
                write!(f, "member {server_id} holds {count_of} otherwise: {}{rest}", shortened(&keys, *count))
            }
            Self::RecordsAltered { buckets } => {
                write!(
                    f,
                    "this node's records are not those that it applied, in buckets {}: its disk altered them, or a bug did. Stop it and run `polyarch verify`",
                    first_of(buckets)
                )
            }
            Self::DigestsEqual { server_id } => {
                write!(f, "member {server_id}, which differed, is equal to this node again")
            }
            Self::Twin { server_id, addresses } => {
                write!(
                    f,
                    "two living processes have server id {server_id}, at {}; neither takes writes until one is stopped",
                    addresses.join(" and ")
                )
            }
            Self::MemberChanged { server_id, from: None, to } => write!(f, "member {server_id} is new, and {to}"),
            Self::MemberChanged { server_id, from: Some(from), to } => {
                write!(f, "member {server_id} was {from} and is {to}")
            }
            Self::ToldRemoved { by } => {
                write!(f, "member {by} says that this server was removed; it takes no writes until it rejoins")
            }
            Self::TopologyChanged { to } => write!(f, "the topology is {to}"),
            Self::TopologyLost { dot, topology } => {
                write!(
                    f,
                    "two topologies were set at the same time; {topology}, set by {dot}, lost. Set the one you want again"
                )
            }
            Self::NotFed { origin, server_id } => {
                write!(f, "member {server_id} can no longer feed {origin} from its log")
            }
            Self::SnapshotBegun { from } => {
                write!(f, "no member's log still has what this node lacks; fetching a snapshot from member {from}")
            }
            Self::SnapshotFailed { from, reason, failures } => {
                write!(f, "no snapshot from member {from}: {reason}; nothing was changed, and it is tried again")?;
                match *failures >= SNAPSHOT_FAILURES_TOLD {
                    true => {
                        write!(f, " ({failures} have failed; until one does not, this node lacks what others have)")
                    }
                    false => Ok(()),
                }
            }
            Self::SnapshotJoined { from, origins } => {
                let donor = from.map_or_else(String::new, |from| format!(" of member {from}"));
                write!(f, "joined a snapshot{donor}: there is more of {origins} origins now")
            }
            Self::LeftBehind { server_id } => {
                write!(f, "the log no longer reaches back to where member {server_id} is; it will be sent a snapshot")
            }
            Self::StampAhead { dot, hlc, ahead_ms } => {
                write!(f, "{dot} is stamped {hlc}, {ahead_ms} ms ahead of this clock")
            }
            Self::ClockOffset { server_id, offset_ms } => {
                write!(f, "the clock of member {server_id} is off by {offset_ms} ms")
            }
            Self::ClockAhead { ahead_ms, of } => {
                write!(
                    f,
                    "this node's clock is {} s ahead of those of members {}, a majority; it takes no writes until its clock is right",
                    ahead_ms / 1_000,
                    listed(of)
                )
            }
            Self::ClockRight => write!(f, "this node's clock is no longer ahead of a majority; it takes writes again"),
            Self::OwnStampsAhead { hlc, ahead_ms } => {
                write!(
                    f,
                    "this server stamped writes up to {hlc}, {} s ahead of its clock, and goes on from there until that time has come; \
                     was its clock wrong?",
                    ahead_ms / 1_000
                )
            }
            Self::FeedsRetried { origins } => {
                let origins: Vec<String> = origins.iter().map(Origin::to_string).collect();
                write!(f, "an operator lets stopped feeds go on: {}", origins.join(", "))
            }
            Self::OwnWritesLost { from, epochs } => {
                let lost: u64 = epochs.iter().map(|epoch| epoch.peer_has.saturating_sub(epoch.had)).sum();
                write!(f, "this server had lost {lost} of its own write sets, {}; ", OfEpochs(epochs))?;
                write!(f, "was it restored from an old image or backup, or started with an empty directory? ")?;
                write!(f, "They are being fetched from member {from}")
            }
            Self::OwnWritesRegained { write_sets, epochs } => {
                write!(
                    f,
                    "all {write_sets} of this server's own write sets that were lost, of {epochs} epochs, are here again"
                )
            }
            Self::SalvageApplied => f.write_str("all write sets that a repair had left waiting are applied"),
            Self::SalvageStuck { write_sets, first } => write!(
                f,
                "{write_sets} write sets that a repair had found follow on others that no linked member has: {}; they \
                 wait until one brings them, or `polyarch repair --abandon` writes them to a file",
                Listed(first)
            ),
            Self::SalvageUnreadable { reason } => write!(
                f,
                "the write sets that a repair had found cannot be read, and wait: {reason}; \
                 stop the node and run `polyarch repair --force`, which takes what is whole of them"
            ),
            Self::StorageFailed { reason } => write!(f, "storage failed, no more writes until a restart: {reason}"),
            Self::DiskFull { reason } => {
                write!(f, "the disk is full, no more writes until there is room on it: {reason}")
            }
            Self::DiskHasRoom => f.write_str("the disk has room again; this node writes again"),
        }
    }
}

/// The first few of many buckets.
fn first_of(buckets: &[u16]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = buckets.iter().take(SHOWN).map(u16::to_string).collect();
    shortened(&shown, buckets.len() as u64)
}

/// What is shown of so many.
fn shortened(shown: &[String], count: u64) -> String {
    match count.saturating_sub(shown.len() as u64) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

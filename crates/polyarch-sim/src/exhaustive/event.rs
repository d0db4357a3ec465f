//! What can happen in an order, and how it is written.

use std::fmt;
use std::str::FromStr;

use super::NODES;

/// Something that happens to the three nodes.
///
/// Nodes and keys are named by their places. The order of the variants and of their fields is the one by
/// which the least of orders that come to the same is found: fields that name nodes come in the order in
/// which these count as named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A client writes a key.
    Write {
        /// On this node.
        at: usize,
        /// The key.
        key: usize,
        /// A value; `false` deletes.
        puts: bool,
        /// What it replaces.
        context: Context,
        /// The sync follows at once, and the answer. Without, it is staged when the next thing happens.
        is_synced: bool,
    },
    /// A node takes what it lacks from another's log.
    Feed {
        /// Who takes.
        to: usize,
        /// From whom.
        from: usize,
        /// How much of it.
        how: Feeding,
    },
    /// A node's process ends, and another starts on what is left of its disk.
    End {
        /// The node.
        at: usize,
        /// What is left.
        how: Ending,
    },
    /// A node writes a checkpoint, and lets go of what it need not absorb any more.
    Checkpoint {
        /// The node.
        at: usize,
    },
    /// A node begins to fetch a snapshot: the donor's walk begins.
    Walk {
        /// Who fetches.
        to: usize,
        /// The donor.
        from: usize,
        /// The walk comes past so many of the keys before the next thing happens.
        keys: usize,
    },
    /// The rest of the snapshot comes, and is joined beside the running store.
    Merge {
        /// Who fetches.
        to: usize,
        /// The donor.
        from: usize,
    },
    /// The rest of the snapshot comes, is joined, and adopted.
    Join {
        /// Who fetches.
        to: usize,
        /// The donor.
        from: usize,
    },
    /// All of this at once.
    Snapshot {
        /// Who fetches.
        to: usize,
        /// The donor.
        from: usize,
    },
}

/// What a client's write replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Context {
    /// No context: whatever the node holds.
    Held,
    /// An empty one: nothing.
    Nothing,
    /// What the node showed before that last changed.
    Stale,
    /// What that node shows now, which may be the one that is written to.
    ShownBy(usize),
}

/// How much of what a node lacks comes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feeding {
    /// All.
    Whole,
    /// One write set; then the link is lost.
    One,
    /// All, and it is not synced when the next thing happens.
    Unsynced,
}

/// What the end of a process leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// The power is cut: what was synced, and nothing else.
    Cut,
    /// The process is killed between a write of its log and the sync: all that was staged, though a power cut
    /// would yet take it.
    Killed,
    /// The disk is put back to what it held in the beginning.
    SetBack,
}

impl Event {
    /// The nodes that it changes or looks at, a bit each. Events that have none in common may be
    /// exchanged, and nothing is different.
    pub(super) fn nodes(self) -> u8 {
        self.named().into_iter().flatten().fold(0, |nodes, at| nodes | 1 << at)
    }

    /// The nodes that it names, in the order of its fields.
    pub(super) fn named(self) -> [Option<usize>; 2] {
        match self {
            Self::Write { at, context: Context::ShownBy(other), .. } => [Some(at), Some(other)],
            Self::Write { at, .. } | Self::End { at, .. } | Self::Checkpoint { at } => [Some(at), None],
            Self::Feed { to, from, .. }
            | Self::Walk { to, from, .. }
            | Self::Merge { to, from }
            | Self::Join { to, from }
            | Self::Snapshot { to, from } => [Some(to), Some(from)],
        }
    }

    /// All that can be written down.
    fn all(keys: usize) -> Vec<Self> {
        let mut all = Vec::new();
        let contexts =
            [Context::Held, Context::Nothing, Context::Stale].into_iter().chain((0..NODES).map(Context::ShownBy));
        let contexts: Vec<Context> = contexts.collect();
        for at in 0..NODES {
            for key in 0..keys {
                for (puts, is_synced) in [(true, true), (false, true), (true, false), (false, false)] {
                    all.extend(contexts.iter().map(|context| Self::Write {
                        at,
                        key,
                        puts,
                        context: *context,
                        is_synced,
                    }));
                }
            }
            all.extend([Ending::Cut, Ending::Killed, Ending::SetBack].map(|how| Self::End { at, how }));
            all.push(Self::Checkpoint { at });
            for from in (0..NODES).filter(|from| *from != at) {
                let to = at;
                all.extend([Feeding::Whole, Feeding::One, Feeding::Unsynced].map(|how| Self::Feed { to, from, how }));
                all.extend((0..=keys).map(|keys| Self::Walk { to, from, keys }));
                all.extend([Self::Merge { to, from }, Self::Join { to, from }, Self::Snapshot { to, from }]);
            }
        }
        all
    }
}

fn node(at: usize) -> char {
    char::from(b'a' + at as u8)
}

fn key(key: usize) -> char {
    char::from(b'k' + key as u8)
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Write { at, key: of, puts, context, is_synced } => {
                let verb = if puts { "puts" } else { "deletes" };
                write!(f, "{} {verb} {}", node(at), key(of))?;
                match context {
                    Context::Held => {}
                    Context::Nothing => write!(f, " beside")?,
                    Context::Stale => write!(f, " as once shown")?,
                    Context::ShownBy(by) => write!(f, " as {} shows", node(by))?,
                }
                f.write_str(if is_synced { "" } else { " unsynced" })
            }
            Self::Feed { to, from, how } => {
                write!(f, "{} <- {}", node(to), node(from))?;
                f.write_str(match how {
                    Feeding::Whole => "",
                    Feeding::One => " one",
                    Feeding::Unsynced => " unsynced",
                })
            }
            Self::End { at, how: Ending::Cut } => write!(f, "{} cut", node(at)),
            Self::End { at, how: Ending::Killed } => write!(f, "{} killed", node(at)),
            Self::End { at, how: Ending::SetBack } => write!(f, "{} set back", node(at)),
            Self::Checkpoint { at } => write!(f, "{} checkpoint", node(at)),
            Self::Walk { to, from, keys } => write!(f, "{} fetches {} of {}", node(to), keys, node(from)),
            Self::Merge { to, from } => write!(f, "{} merges {}", node(to), node(from)),
            Self::Join { to, from } => write!(f, "{} joins {}", node(to), node(from)),
            Self::Snapshot { to, from } => write!(f, "{} snapshot {}", node(to), node(from)),
        }
    }
}

impl FromStr for Event {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::all(super::KEYS_MAX).into_iter().find(|event| event.to_string() == text);
        found.ok_or_else(|| format!("`{text}` is nothing that can happen"))
    }
}

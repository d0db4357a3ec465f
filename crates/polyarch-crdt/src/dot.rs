use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One life of one server: the process that accepted a write, not the machine it ran on.
///
/// `server_id` is chosen by the operator and unique in the cluster. `epoch` is a random number
/// drawn at a process's first own write, so that a GTID never names two payloads, whatever disk
/// image or clone the process was started from. Printed as `3-9f2c01ab` (epoch in hex).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// The server, 1 or greater; 0 is reserved for the system.
    pub server_id: u32,
    /// The server's epoch, random.
    pub epoch: u32,
}

/// One write set: the `seq`-th of its origin, from 1 on and without gaps.
///
/// What replication calls a GTID and CRDT theory calls a dot. Printed as `3-9f2c01ab:42`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dot {
    /// Who wrote it.
    pub origin: Origin,
    /// Its place among the origin's write sets; the first is 1.
    pub seq: u64,
}

impl Origin {
    /// The origin of one server's epoch.
    pub const fn new(server_id: u32, epoch: u32) -> Self {
        Self { server_id, epoch }
    }
}

impl Dot {
    /// The `seq`-th write set of `origin`.
    pub const fn new(origin: Origin, seq: u64) -> Self {
        Self { origin, seq }
    }
}

impl From<Dot> for crdts::Dot<Origin> {
    fn from(dot: Dot) -> Self {
        crdts::Dot::new(dot.origin, dot.seq)
    }
}

impl From<crdts::Dot<Origin>> for Dot {
    fn from(dot: crdts::Dot<Origin>) -> Self {
        Dot::new(dot.actor, dot.counter)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:08x}", self.server_id, self.epoch)
    }
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.origin, self.seq)
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a GTID of the form `SERVER_ID-EPOCH:SEQ`, as in `3-9f2c01ab:42`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a GTID; one looks like 3-9f2c01ab:42 (server id, epoch as 8 hex digits, sequence number)")]
pub struct ParseDotError {
    text: String,
}

impl FromStr for Dot {
    type Err = ParseDotError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = (|| {
            let (origin, seq) = text.split_once(':')?;
            let (server_id, epoch) = origin.split_once('-')?;
            let dot =
                Dot::new(Origin::new(server_id.parse().ok()?, u32::from_str_radix(epoch, 16).ok()?), seq.parse().ok()?);
            // Only the canonical form is a GTID: no signs, no leading zeros, no short epochs.
            let is_canonical = dot.to_string() == text;
            (is_canonical && dot.seq > 0 && dot.origin.server_id > 0).then_some(dot)
        })();
        parsed.ok_or_else(|| ParseDotError { text: text.chars().take(80).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gtid_prints_and_parses_as_itself() {
        let dot = Dot::new(Origin::new(3, 0x9f2c_01ab), 42);
        assert_eq!(dot.to_string(), "3-9f2c01ab:42");
        assert_eq!("3-9f2c01ab:42".parse(), Ok(dot));
        assert_eq!("3-00000001:1".parse(), Ok(Dot::new(Origin::new(3, 1), 1)));
    }

    #[test]
    fn what_is_not_canonical_is_no_gtid() {
        for text in ["", "3", "3:1", "3-1:1", "+3-00000001:1", "3-00000001:01", "3-00000001:", "3-0000000A:1"] {
            assert!(text.parse::<Dot>().is_err(), "{text}");
        }
    }
}

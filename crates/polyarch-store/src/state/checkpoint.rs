use std::collections::BTreeSet;

use bytes::Bytes;
use polyarch_protocol::{ChainHeads, Frontier, LogPosition, RecordKey};
use serde::{Deserialize, Serialize};

use super::StateError;

/// The layout of a checkpoint that the log adds up to.
const VERSION_1: u8 = 1;
/// The same with its provenance, where that is another.
const VERSION_2: u8 = 2;

/// What a state knows about itself: how far it is, and which of its records await a clean-up.
///
/// On disk: version (1), then in postcard the position, the frontier, and the keys in
/// [`Checkpoint::absorbing`] as byte strings. Version 2 has the provenance behind them; it is written
/// only where that is not [`Provenance::Log`], so that versions of polyarch that know none read the
/// others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Replay goes on from here: all that lies before is in the records.
    pub position: LogPosition,
    /// The frontier there: applied-set, chain heads, digest, greatest stamp.
    pub frontier: Frontier,
    /// The records that hold absorb entries. Without this index an entry of a record that nobody
    /// writes again would stay for ever.
    pub absorbing: BTreeSet<RecordKey>,
    /// Whether the log adds up to it.
    pub provenance: Provenance,
}

/// How a state came to what it holds. Variants are appended only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Provenance {
    /// It is what it was before with the log up to its position applied.
    #[default]
    Log,
    /// A snapshot is being joined into it, and not to its end: it is of no use.
    Joining,
    /// A snapshot was joined into it at its position. The log before that adds up to these heads
    /// only; the segment that is begun there begins with the heads of the frontier.
    Joined(ChainHeads),
}

#[derive(Serialize, Deserialize)]
struct CheckpointV1 {
    position: LogPosition,
    frontier: Frontier,
    absorbing: Vec<Bytes>,
}

#[derive(Serialize, Deserialize)]
struct CheckpointV2 {
    body: CheckpointV1,
    provenance: Provenance,
}

impl Checkpoint {
    /// The bytes that a backend keeps.
    pub fn encode(&self) -> Vec<u8> {
        let body = CheckpointV1 {
            position: self.position,
            frontier: self.frontier.clone(),
            absorbing: self.absorbing.iter().map(|key| Bytes::copy_from_slice(key.as_bytes())).collect(),
        };
        let encoded = match &self.provenance {
            Provenance::Log => postcard::to_extend(&body, vec![VERSION_1]),
            provenance => {
                let body = CheckpointV2 { body, provenance: provenance.clone() };
                postcard::to_extend(&body, vec![VERSION_2])
            }
        };
        encoded.expect("a Vec takes all that is written")
    }

    /// Reads what [`Checkpoint::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are of a newer version, or no checkpoint.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let damaged = |what: &str| StateError::Damaged(format!("its checkpoint {what}"));
        let (body, provenance) = match bytes {
            [VERSION_1, body @ ..] => match postcard::take_from_bytes::<CheckpointV1>(body) {
                Ok((body, [])) => (body, Provenance::Log),
                _ => return Err(damaged("does not decode")),
            },
            [VERSION_2, body @ ..] => match postcard::take_from_bytes(body) {
                Ok((CheckpointV2 { body, provenance }, [])) => (body, provenance),
                _ => return Err(damaged("does not decode")),
            },
            [version, ..] => return Err(StateError::Version(*version)),
            [] => return Err(damaged("is empty")),
        };
        if !body.frontier.digest.is_consistent() {
            return Err(damaged("holds a digest whose sums do not fit together"));
        }
        let absorbing = body.absorbing.into_iter().map(RecordKey::from_bytes).collect::<Option<_>>();
        Ok(Self {
            position: body.position,
            frontier: body.frontier,
            absorbing: absorbing.ok_or_else(|| damaged("names a key that is too short"))?,
            provenance,
        })
    }
}

#[cfg(test)]
mod tests {
    use polyarch_crdt::{Dot, Origin};
    use polyarch_protocol::KeyspaceId;
    use proptest::prelude::*;

    use super::*;

    fn some(provenance: Provenance) -> Checkpoint {
        let position = LogPosition { segment: 7, offset: 4_711 };
        let absorbing = BTreeSet::from([RecordKey::new(KeyspaceId::SYSTEM, b"k")]);
        Checkpoint { position, absorbing, provenance, ..Checkpoint::default() }
    }

    #[test]
    fn a_checkpoint_decodes_as_itself() {
        let mut heads = ChainHeads::default();
        heads.extend(Dot::new(Origin::new(1, 2), 1), b"bytes");
        for (provenance, version) in
            [(Provenance::Log, VERSION_1), (Provenance::Joining, VERSION_2), (Provenance::Joined(heads), VERSION_2)]
        {
            let checkpoint = some(provenance);
            assert_eq!(checkpoint.encode()[0], version);
            assert_eq!(Checkpoint::decode(&checkpoint.encode()).unwrap(), checkpoint);
        }
    }

    proptest! {
        #[test]
        fn bytes_that_are_no_checkpoint_are_an_error(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..100) {
            for version in [VERSION_1, VERSION_2] {
                let _ = Checkpoint::decode(&bytes);
                bytes.insert(0, version);
                let _ = Checkpoint::decode(&bytes);
            }
            for whole in [some(Provenance::Log).encode(), some(Provenance::Joining).encode()] {
                prop_assert!(Checkpoint::decode(&whole[..whole.len() - 1 - cut]).is_err());
            }
        }
    }
}

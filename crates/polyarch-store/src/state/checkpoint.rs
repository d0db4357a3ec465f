use std::collections::BTreeSet;

use bytes::Bytes;
use polyarch_protocol::{ChainHeads, Frontier, FrontierV1, LogPosition, RecordKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::StateError;

/// The layout of an encoded checkpoint.
const VERSION: u8 = 2;
/// The one before, which is read and no longer written.
const VERSION_1: u8 = 1;

/// What a state knows about itself: how far it is, and which of its records await a clean-up.
///
/// On disk: version (1), then in postcard the position, the frontier, the keys in
/// [`Checkpoint::absorbing`] as byte strings, and the provenance. Version 1, of polyarch 0.1.0, has no
/// provenance, and in its frontier no stamps of each server.
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
struct Body<F> {
    position: LogPosition,
    frontier: F,
    absorbing: Vec<Bytes>,
}

impl Checkpoint {
    /// The bytes that a backend keeps.
    pub fn encode(&self) -> Vec<u8> {
        let body = Body {
            position: self.position,
            frontier: self.frontier.clone(),
            absorbing: self.absorbing.iter().map(|key| Bytes::copy_from_slice(key.as_bytes())).collect(),
        };
        postcard::to_extend(&(body, &self.provenance), vec![VERSION]).expect("a Vec takes all that is written")
    }

    /// Reads what [`Checkpoint::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are of a newer version, or no checkpoint.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let damaged = |what: &str| StateError::Damaged(format!("its checkpoint {what}"));
        let undecodable = || damaged("does not decode");
        let (body, provenance): (Body<Frontier>, Provenance) = match bytes {
            [VERSION, body @ ..] => read(body).ok_or_else(undecodable)?,
            [VERSION_1, body @ ..] => {
                let Body { position, frontier, absorbing } = read::<Body<FrontierV1>>(body).ok_or_else(undecodable)?;
                (Body { position, frontier: frontier.into(), absorbing }, Provenance::Log)
            }
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

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((read, [])) => Some(read),
        _ => None,
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
        for provenance in [Provenance::Log, Provenance::Joining, Provenance::Joined(heads)] {
            let checkpoint = some(provenance);
            assert_eq!(Checkpoint::decode(&checkpoint.encode()).unwrap(), checkpoint);
        }
    }

    #[test]
    fn a_checkpoint_of_version_1_is_read() {
        let body = Body {
            position: LogPosition { segment: 7, offset: 4_711 },
            frontier: FrontierV1::default(),
            absorbing: vec![Bytes::copy_from_slice(RecordKey::new(KeyspaceId::SYSTEM, b"k").as_bytes())],
        };
        let old = postcard::to_extend(&body, vec![VERSION_1]).unwrap();
        let read = Checkpoint::decode(&old).unwrap();
        assert_eq!((read.position, read.frontier, read.absorbing.len()), (body.position, Frontier::default(), 1));
        assert!(Checkpoint::decode(&old[..old.len() - 1]).is_err());
    }

    proptest! {
        #[test]
        fn bytes_that_are_no_checkpoint_are_an_error(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..100) {
            for version in [VERSION_1, VERSION] {
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

//! The hash of a chain up to any write set that the log still has.

use polyarch_crdt::Dot;
use polyarch_protocol::{ChainHash, ChainHead, LogReadError, LogSource, WriteSet};

/// Bytes of the log that are read at once.
const BYTES_AT_ONCE: usize = 1 << 20;

/// The hash of its origin's chain up to `dot`; `None` when the log ends before it, or begins behind it. Goes
/// on from the last mark before it, so that it reads a segment at most, or what lies between two marks.
pub(crate) fn chain_hash(log: &impl LogSource, dot: Dot) -> Result<Option<ChainHash>, LogReadError> {
    let Some(mark) = log.last_mark(&|heads| heads.applied().seq(dot.origin) <= dot.seq) else { return Ok(None) };
    let (mut head, mut position) = (mark.heads.head(dot.origin), mark.position);
    while head.seq < dot.seq {
        let batch = log.read(position, BYTES_AT_ONCE)?;
        if batch.write_sets.is_empty() {
            return Ok(None);
        }
        for bytes in &batch.write_sets {
            if head.seq == dot.seq {
                break;
            }
            let Ok(next) = WriteSet::peek_dot(bytes) else { continue };
            match next.origin == dot.origin {
                true if next.seq == head.seq + 1 => {
                    head = ChainHead { seq: next.seq, hash: head.hash.extended(bytes) };
                }
                // A snapshot brought what lies between.
                true if next.seq > head.seq + 1 => return Ok(None),
                _ => {}
            }
        }
        position = batch.next;
    }
    Ok(Some(head.hash))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use polyarch_crdt::{Hlc, Origin};
    use polyarch_protocol::{ChainHeads, Dependencies, LogBatch, LogMark, LogPosition};

    use super::*;

    const O: Origin = Origin { server_id: 1, epoch: 2 };
    const OTHER: Origin = Origin { server_id: 2, epoch: 2 };

    /// A log whose positions count write sets, with a mark at some of them.
    struct Log {
        write_sets: Vec<Bytes>,
        marks: Vec<LogMark>,
    }

    impl LogSource for Log {
        fn last_mark(&self, reached: &dyn Fn(&ChainHeads) -> bool) -> Option<LogMark> {
            self.marks.iter().rfind(|mark| reached(&mark.heads)).cloned()
        }

        fn read(&self, from: LogPosition, _bytes_max: usize) -> Result<LogBatch, LogReadError> {
            let from = from.offset as usize;
            let write_sets: Vec<Bytes> = self.write_sets.iter().skip(from).take(2).cloned().collect();
            let next = LogPosition { segment: 1, offset: (from + write_sets.len()) as u64 };
            Ok(LogBatch { write_sets, next, joined: None })
        }
    }

    #[test]
    fn a_hash_is_found_behind_the_first_mark_and_nowhere_else() {
        let mut heads = ChainHeads::default();
        let mut log = Log { write_sets: Vec::new(), marks: Vec::new() };
        let mut hashes = Vec::new();
        for number in 0..20 {
            if [6, 13].contains(&number) {
                let position = LogPosition { segment: 1, offset: number };
                log.marks.push(LogMark { position, heads: heads.clone() });
            }
            let origin = if number % 3 == 0 { OTHER } else { O };
            let dot = Dot::new(origin, heads.applied().seq(origin) + 1);
            let (hlc, changes) = (Hlc::new(number, 0), Vec::new());
            let write_set = WriteSet { dot, hlc, dependencies: Dependencies::Changed(Default::default()), changes };
            let bytes = write_set.encode();
            heads.extend(dot, &bytes);
            log.write_sets.push(bytes);
            hashes.push((dot, heads.head(origin).hash, number));
        }
        for (dot, hash, number) in hashes {
            let found = chain_hash(&log, dot).unwrap();
            // The mark at 6 has the heads of what came right before it.
            let is_known = number >= 6 || [3, 5].contains(&number);
            assert_eq!(found, is_known.then_some(hash), "{dot}");
        }
        assert_eq!(chain_hash(&log, Dot::new(O, 99)).unwrap(), None);
        assert_eq!(chain_hash(&log, Dot::new(Origin { server_id: 9, epoch: 9 }, 1)).unwrap(), None);
    }
}

//! A snapshot on its way in: the parts of a walk as they came from the donor, in one file.
//!
//! ```text
//! file "incoming.snapshot"
//! +--------+------+-----------------------------------------------------------------+
//! | offset | size |                                                                 |
//! +--------+------+-----------------------------------------------------------------+
//! |      0 |    8 | magic: "polysnap"                                               |
//! |      8 |    4 | format version: 1                                               |
//! |     12 |    4 | CRC of bytes 0..12                                              |
//! +--------+------+-----------------------------------------------------------------+
//!
//! frame, one behind the other
//! +--------+------+-----------------------------------------------------------------+
//! |      0 |    4 | L, the length of the part                                       |
//! |      4 |    4 | CRC of bytes 0..4 and then of the part, begun with the CRC of   |
//! |        |      | the frame before, for the first with that of the file's header  |
//! |      8 |    L | the part, as the donor sent it                                  |
//! +--------+------+-----------------------------------------------------------------+
//! ```
//!
//! Numbers are little-endian, checksums CRC-32C. The first part is a `Begin`. The file ends at the
//! first frame that is not valid; what lies behind is overwritten when the fetch goes on. Nothing but
//! time is lost with any of it, so it is synced only every few MiB and at the end.
//!
//! The file of a backup is the same under the name `backup.snapshot`, and is not removed when it was
//! joined.

mod donor;
mod read;
mod sequence;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use polyarch_protocol::codec::CodecError;
use polyarch_protocol::limits::wire;
use polyarch_protocol::{ChainHeads, KeysHeld, Resume, SnapshotBegin, SnapshotId, SnapshotPart};

use crate::files::{Files, LogFile};
pub use sequence::SequenceError;

pub use donor::DonorRecords;
use read::Read;
pub(crate) use read::{Frames, SnapshotRecordReader};
use sequence::Phase;
pub(crate) use sequence::Sequence;

/// The file of a snapshot that is to be joined here.
pub(crate) const INCOMING: &str = "incoming.snapshot";
/// The file of a snapshot that is kept: a backup.
pub(crate) const BACKUP: &str = "backup.snapshot";
const MAGIC: [u8; 8] = *b"polysnap";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 16;
const FRAME_HEADER_BYTES: usize = 8;
/// Bytes that are written before they are synced: what a power cut may take.
const SYNC_BYTES: u64 = 8 << 20;

/// Takes a snapshot into a file, part by part, and takes a fetch up again that broke off.
///
/// It belongs to one thread, which waits for the disk in [`SnapshotReceiver::push`]. Dropped, it
/// leaves the file for [`SnapshotReceiver::open`].
pub struct SnapshotReceiver<F: Files> {
    files: F,
    name: &'static str,
    file: F::File,
    // Boxed, for a receiver is handed about whole.
    sequence: Box<Sequence>,
    /// Where the next frame goes, and the CRC it begins with.
    end: u64,
    crc: u32,
    synced: u64,
    // A failed sync is never tried again.
    sync_failed: bool,
}

/// How far a fetch is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotProgress {
    /// What comes next.
    pub phase: SnapshotPhase,
    /// Records that are there whole.
    pub records: u64,
    /// Write sets of the donor's log that are there; after a resume some may be there twice.
    pub write_sets: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// What comes next of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotPhase {
    /// Records, or the log.
    Records,
    /// The log, or the end.
    Log,
    /// Nothing: it is whole.
    Whole,
}

/// Why a part was not taken, or the file is not to be read. What was taken before is still there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The disk is full or fails. A write may be tried again when there is space; after a failed sync
    /// the file is to be opened again, which finds what of it is sound.
    #[error("cannot {operation} the snapshot: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A sync failed before. Open the file again.
    #[error("the snapshot takes nothing more since it could not be synced")]
    Poisoned,
    /// What came is no part of a snapshot.
    #[error("the donor sent no part of a snapshot: {0}")]
    Codec(#[from] CodecError),
    /// What came is longer than any part.
    #[error("the donor sent a part of {0} bytes")]
    TooLong(usize),
    /// What came does not follow on what was there.
    #[error("the donor sent a part that does not follow on the one before: {0}")]
    Sequence(#[from] SequenceError),
    /// The donor cannot go on.
    #[error("the donor has given up: {0}")]
    GivenUp(String),
    /// The file is not what was written: fetch the snapshot again.
    #[error("the snapshot is damaged at byte {0}")]
    Damaged(u64),
    /// A newer version of polyarch wrote the file.
    #[error("the snapshot has format version {0}, which this version of polyarch does not know")]
    Version(u32),
}

impl SnapshotError {
    pub(crate) fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { operation, source }
    }
}

impl<F: Files> SnapshotReceiver<F> {
    /// Begins a snapshot with its first part, a `Begin`, in the place of one that is there.
    ///
    /// # Errors
    /// When it is no `Begin`, then nothing was changed; or when the disk fails, then either is there,
    /// or none.
    pub fn begin(files: F, begin: &[u8]) -> Result<Self, SnapshotError> {
        Self::begin_as(INCOMING, files, begin)
    }

    /// Begins a backup: as [`SnapshotReceiver::begin`], in a directory of its own.
    ///
    /// # Errors
    /// As [`SnapshotReceiver::begin`].
    pub fn begin_backup(files: F, begin: &[u8]) -> Result<Self, SnapshotError> {
        Self::begin_as(BACKUP, files, begin)
    }

    fn begin_as(name: &'static str, files: F, begin: &[u8]) -> Result<Self, SnapshotError> {
        let SnapshotPart::Begin(first) = decode(begin)? else {
            return Err(SequenceError::NoBegin.into());
        };
        remove(&files, name)?;
        let file = files.create(name).map_err(SnapshotError::io("create"))?;
        let header = header();
        file.write_at(&header, 0).map_err(SnapshotError::io("write"))?;
        let crc = crc32c::crc32c(&header[..12]);
        let sequence = Box::new(Sequence::new(first));
        let end = HEADER_BYTES as u64;
        let mut receiver = Self { files, name, file, sequence, end, crc, synced: 0, sync_failed: false };
        receiver.write(begin)?;
        receiver.sync()?;
        receiver.files.sync_directory().map_err(SnapshotError::io("sync the directory with"))?;
        Ok(receiver)
    }

    /// Takes up what is there of a snapshot; `None` when nothing is. Reads the whole file.
    ///
    /// # Errors
    /// When it cannot be read, or a newer version wrote it.
    pub fn open(files: F) -> Result<Option<Self>, SnapshotError> {
        let file = files.open(INCOMING);
        Self::open_as(INCOMING, files, file)
    }

    /// Takes up what is there of a backup, to go on with it.
    ///
    /// # Errors
    /// As [`SnapshotReceiver::open`].
    pub fn open_backup(files: F) -> Result<Option<Self>, SnapshotError> {
        let file = files.open(BACKUP);
        Self::open_as(BACKUP, files, file)
    }

    /// The same for one that is only read from, and joined: it need not be writable, and takes no more.
    ///
    /// # Errors
    /// As [`SnapshotReceiver::open`].
    pub fn read_backup(files: F) -> Result<Option<Self>, SnapshotError> {
        let file = files.open_to_read(BACKUP);
        Self::open_as(BACKUP, files, file)
    }

    fn open_as(name: &'static str, files: F, file: io::Result<F::File>) -> Result<Option<Self>, SnapshotError> {
        let file = match file {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(SnapshotError::io("open"))?,
        };
        let seen = files.open_to_read(name).map_err(SnapshotError::io("open"))?;
        let Some(Read { sequence, end, crc }) = read::read(seen)? else { return Ok(None) };
        let sequence = Box::new(sequence);
        Ok(Some(Self { files, name, file, sequence, end, crc, synced: end, sync_failed: false }))
    }

    /// What the snapshot began with.
    pub fn begun(&self) -> &SnapshotBegin {
        self.sequence.begin()
    }

    /// The walk it is of.
    pub fn id(&self) -> SnapshotId {
        self.begun().id
    }

    /// What to ask the donor for, to go on.
    pub fn resume(&self) -> Resume {
        let keys = match self.sequence.phase() {
            Phase::Records => {
                KeysHeld::Through(self.sequence.last_key().map(|key| Bytes::copy_from_slice(key.as_bytes())))
            }
            Phase::Log | Phase::Whole => KeysHeld::All,
        };
        Resume { id: self.id(), keys }
    }

    /// Takes the next part, as the donor sent it. The last one is durable, with all before it, when
    /// this returns.
    ///
    /// # Errors
    /// When the part is not the next of this snapshot, or the donor has given up, or the disk is full
    /// or fails. Nothing was taken.
    pub fn push(&mut self, part: &[u8]) -> Result<(), SnapshotError> {
        if self.sync_failed {
            return Err(SnapshotError::Poisoned);
        }
        let decoded = decode(part)?;
        if let SnapshotPart::GivenUp(reason) = decoded {
            return Err(SnapshotError::GivenUp(reason));
        }
        let next = self.sequence.followed_by(&decoded)?;
        self.write(part)?;
        *self.sequence = next;
        match self.is_whole() || self.end - self.synced >= SYNC_BYTES {
            true => self.sync(),
            false => Ok(()),
        }
    }

    /// Whether all of it is there.
    pub fn is_whole(&self) -> bool {
        self.sequence.phase() == Phase::Whole
    }

    /// W: what the snapshot adds up to, once it is whole.
    pub fn heads(&self) -> Option<&ChainHeads> {
        self.sequence.end().map(Arc::as_ref)
    }

    /// How far it is.
    pub fn progress(&self) -> SnapshotProgress {
        progress(&self.sequence, self.end)
    }

    /// Removes it, durably.
    ///
    /// # Errors
    /// When it may still be there.
    pub fn remove(self) -> Result<(), SnapshotError> {
        remove(&self.files, self.name)
    }

    /// Lets go of it once it was joined: an incoming one is removed, a backup stays.
    pub(crate) fn joined(self) -> Result<(), SnapshotError> {
        match self.name {
            BACKUP => Ok(()),
            _ => self.remove(),
        }
    }

    /// Reads it from the beginning.
    pub(crate) fn reader(&self) -> Result<SnapshotRecordReader<F::File>, SnapshotError> {
        let file = self.files.open_to_read(self.name).map_err(SnapshotError::io("open"))?;
        Ok(SnapshotRecordReader::new(Frames::new(file, Some(self.end))?))
    }

    fn write(&mut self, part: &[u8]) -> Result<(), SnapshotError> {
        let len = (part.len() as u32).to_le_bytes();
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(self.crc, &len), part);
        let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + part.len());
        frame.extend_from_slice(&len);
        frame.extend_from_slice(&crc.to_le_bytes());
        frame.extend_from_slice(part);
        self.file.write_at(&frame, self.end).map_err(SnapshotError::io("write"))?;
        self.end += frame.len() as u64;
        self.crc = crc;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), SnapshotError> {
        let synced = self.file.sync();
        self.sync_failed = synced.is_err();
        synced.map_err(SnapshotError::io("sync"))?;
        self.synced = self.end;
        Ok(())
    }
}

/// Removes what is there of a snapshot, durably.
fn remove<F: Files>(files: &F, name: &str) -> Result<(), SnapshotError> {
    match files.remove(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        removed => removed.map_err(SnapshotError::io("remove"))?,
    }
    files.sync_directory().map_err(SnapshotError::io("sync the directory without"))
}

fn decode(part: &[u8]) -> Result<SnapshotPart, SnapshotError> {
    match part.len() > wire::FRAME_BYTES_MAX {
        true => Err(SnapshotError::TooLong(part.len())),
        false => Ok(SnapshotPart::decode(part)?),
    }
}

fn header() -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let crc = crc32c::crc32c(&header[..12]);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// How far a snapshot is that is there, for whoever only looks; `None` when none is.
pub(crate) fn look<F: Files>(files: &F) -> Result<Option<SnapshotProgress>, SnapshotError> {
    let file = match files.open_to_read(INCOMING) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(SnapshotError::io("open"))?,
    };
    Ok(read::read(file)?.map(|Read { sequence, end, .. }| progress(&sequence, end)))
}

fn progress(sequence: &Sequence, bytes: u64) -> SnapshotProgress {
    let phase = match sequence.phase() {
        Phase::Records => SnapshotPhase::Records,
        Phase::Log => SnapshotPhase::Log,
        Phase::Whole => SnapshotPhase::Whole,
    };
    SnapshotProgress { phase, records: sequence.records(), write_sets: sequence.write_sets(), bytes }
}

#[cfg(test)]
mod tests {
    use polyarch_protocol::peer::ClusterId;

    use super::*;
    use crate::files::simulated::SimulatedDisk;

    #[test]
    fn the_bytes_are_frozen() {
        let disk = SimulatedDisk::new(1, 512);
        let start = polyarch_protocol::FrontierOutline::default();
        let begin = SnapshotBegin { id: SnapshotId(1), cluster_id: ClusterId(2), donor: 3, start };
        let part = SnapshotPart::Begin(begin).encode();
        drop(SnapshotReceiver::begin(disk.clone(), &part).unwrap());
        let file = disk.contents(INCOMING).unwrap();
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(&file[..HEADER_BYTES]), "706f6c79736e61700100000094d28a80");
        assert_eq!(hex(&file[HEADER_BYTES..][..FRAME_HEADER_BYTES]), "0a000000f02c7e98");
        assert_eq!(file[HEADER_BYTES + FRAME_HEADER_BYTES..], part);
    }
}

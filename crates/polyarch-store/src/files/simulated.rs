//! A disk in memory that does what disks may do: it forgets what was not synced, page by page and
//! in any order, tears groups, fails, fills up, and lies.
//!
//! It keeps each file twice, as processes see it and as a power cut would leave it. All chance
//! comes from the seed it is made with, so a run can be repeated.
//!
//! What it does beyond forgetting:
//!
//! - a page written several times since the last sync may come back in any of its versions;
//! - a file that grew may come back with any length in between;
//! - names that were added, removed or changed since the last sync of the directory may each come
//!   back as they were, whatever happened to the file;
//! - a failed sync writes some of the pages and takes *all* of them for clean (Rebello et al.,
//!   *Can Applications Recover from fsync Failures?*, 2020): until they are written again no later
//!   sync makes them durable, though every process reads them. File lengths and names are
//!   metadata, which the journal keeps trying to write.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Files, LogFile};

/// Versions of a page between two syncs that a crash may choose from, besides the last.
const PAGE_VERSIONS_MAX: usize = 4;

/// The random numbers of SplitMix64 (Steele, Lea, Flood 2014): a few lines, so that a simulation
/// needs no crate and no version of one to repeat a seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound.max(1)
    }

    fn is_below(&mut self, count: u64, of: u64) -> bool {
        self.below(of) < count
    }
}

/// One flat directory on a simulated disk. Clones are handles to the same disk.
///
/// ```
/// use polyarch_store::files::simulated::SimulatedDisk;
/// use polyarch_store::files::{Files, LogFile};
///
/// let disk = SimulatedDisk::new(7, 512);
/// disk.create("synced")?.sync()?;
/// disk.sync_directory()?;
/// disk.open("synced")?.write_at(b"kept", 0)?;
/// disk.open("synced")?.sync()?;
/// disk.crash();
/// assert_eq!(disk.contents("synced").as_deref(), Some(&b"kept"[..]));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct SimulatedDisk(Arc<Mutex<Disk>>);

/// How often something was done to a disk since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskCounts {
    /// Calls of [`LogFile::write_at`].
    pub writes: u64,
    /// Calls of [`LogFile::sync`].
    pub syncs: u64,
    /// Calls of [`Files::sync_directory`].
    pub directory_syncs: u64,
    /// All calls that change or sync anything: what [`SimulatedDisk::stop_after`] counts.
    pub changes: u64,
    /// Crashes that kept one part of what a file was to have and lost another.
    pub torn_crashes: u64,
    /// Of these, those that kept a page of a file and lost one before it.
    pub reordered_crashes: u64,
}

#[derive(Debug)]
struct Disk {
    random: SplitMix64,
    page_bytes: usize,
    /// Handles from before a crash or restart are dead.
    generation: u64,
    files_made: u64,
    files: BTreeMap<u64, FileState>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    unsynced_names: Vec<NameChange>,
    faults: Faults,
    counts: DiskCounts,
}

#[derive(Debug, Clone)]
enum NameChange {
    Added(String, u64),
    Removed(String),
    Renamed { from: String, to: String, file: u64 },
}

#[derive(Debug, Default)]
struct Faults {
    stop_after: Option<u64>,
    stopped: bool,
    sync_after: Option<u64>,
    write_after: Option<u64>,
    space_bytes: Option<u64>,
}

#[derive(Debug, Default)]
struct FileState {
    /// As processes see it.
    bytes: Vec<u8>,
    /// As a power cut leaves it, where it keeps nothing that is not synced.
    durable: Vec<u8>,
    /// Pages that the next sync writes, with what they held since the last one.
    dirty: BTreeMap<usize, Vec<Vec<u8>>>,
}

impl SimulatedDisk {
    /// An empty disk that loses `page_bytes` at a time: 512 for a disk's sectors, 4096 for the
    /// page cache.
    ///
    /// # Panics
    /// When `page_bytes` is 0.
    pub fn new(seed: u64, page_bytes: usize) -> Self {
        assert!(page_bytes > 0, "a page has bytes");
        Self(Arc::new(Mutex::new(Disk {
            random: SplitMix64::new(seed),
            page_bytes,
            generation: 0,
            files_made: 0,
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            faults: Faults::default(),
            counts: DiskCounts::default(),
        })))
    }

    /// The power fails and comes back: of what was not synced, any part is lost. Open files are
    /// dead, and so are faults that were asked for, but for a full disk.
    pub fn crash(&self) {
        self.0.lock().crash();
    }

    /// The power fails and comes back, and nothing that was not synced is left. Otherwise as
    /// [`SimulatedDisk::crash`].
    pub fn lose_unsynced(&self) {
        self.0.lock().lose_unsynced();
    }

    /// All processes end at once and the system goes on: nothing is lost yet. Open files are dead.
    pub fn restart(&self) {
        self.0.lock().begin_generation();
    }

    /// The power goes during the changing call after the next `changes`: that call is done in part,
    /// it and all later ones fail, until [`crash`](Self::crash).
    pub fn stop_after(&self, changes: u64) {
        self.0.lock().faults.stop_after = Some(changes);
    }

    /// One sync fails, of a file or the directory: the one after the next `syncs`.
    pub fn fail_sync_after(&self, syncs: u64) {
        self.0.lock().faults.sync_after = Some(syncs);
    }

    /// One write fails and is done in part: the one after the next `writes`.
    pub fn fail_write_after(&self, writes: u64) {
        self.0.lock().faults.write_after = Some(writes);
    }

    /// All files together may have this many bytes; `None`, as at the beginning, for no bound.
    pub fn set_space(&self, bytes: Option<u64>) {
        self.0.lock().faults.space_bytes = bytes;
    }

    /// Changes a file behind everybody's back, on the disk and in the page cache: flipped bits, a
    /// file cut short, rubbish. Creates the file, durably, if there is none.
    pub fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.0.lock();
        let id = match disk.names.get(name) {
            Some(id) => *id,
            None => {
                let id = disk.add_file(name);
                disk.durable_names.insert(name.into(), id);
                id
            }
        };
        let file = disk.files.get_mut(&id).expect("a name has a file");
        change(&mut file.bytes);
        file.durable = file.bytes.clone();
        file.dirty.clear();
    }

    /// Removes a file behind everybody's back, durably.
    pub fn lose(&self, name: &str) {
        let mut disk = self.0.lock();
        disk.names.remove(name);
        disk.durable_names.remove(name);
    }

    /// A file as processes see it.
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let disk = self.0.lock();
        disk.names.get(name).map(|id| disk.files[id].bytes.clone())
    }

    /// What was done to the disk so far.
    pub fn counts(&self) -> DiskCounts {
        self.0.lock().counts
    }
}

impl Disk {
    fn crash(&mut self) {
        self.begin_generation();
        let keep = self.random.below(5);
        for change in std::mem::take(&mut self.unsynced_names) {
            if self.random.is_below(keep, 4) {
                change.apply(&mut self.durable_names);
            }
        }
        self.names = self.durable_names.clone();
        let names = &self.names;
        self.files.retain(|id, _| names.values().any(|named| named == id));
        let (mut is_torn, mut is_reordered) = (false, false);
        for file in self.files.values_mut() {
            let kept = file.crash(&mut self.random, keep, self.page_bytes);
            is_torn |= kept.contains(&true) && kept.contains(&false);
            is_reordered |= kept.iter().skip_while(|is_kept| **is_kept).any(|is_kept| *is_kept);
        }
        self.counts.torn_crashes += u64::from(is_torn);
        self.counts.reordered_crashes += u64::from(is_reordered);
    }

    fn lose_unsynced(&mut self) {
        self.begin_generation();
        self.unsynced_names.clear();
        self.names = self.durable_names.clone();
        let names = &self.names;
        self.files.retain(|id, _| names.values().any(|named| named == id));
        for file in self.files.values_mut() {
            file.dirty.clear();
            file.bytes.clone_from(&file.durable);
        }
    }

    fn begin_generation(&mut self) {
        self.generation += 1;
        let added = self.unsynced_names.iter().filter_map(NameChange::file);
        let named: Vec<u64> = self.names.values().chain(self.durable_names.values()).copied().chain(added).collect();
        self.files.retain(|id, _| named.contains(id));
        self.faults = Faults { space_bytes: self.faults.space_bytes, ..Faults::default() };
    }

    fn add_file(&mut self, name: &str) -> u64 {
        self.files_made += 1;
        self.files.insert(self.files_made, FileState::default());
        self.names.insert(name.into(), self.files_made);
        self.files_made
    }

    fn file(&mut self, id: u64) -> &mut FileState {
        self.files.get_mut(&id).expect("files go only with the handles to them")
    }

    /// Begins a call that changes something.
    fn change(&mut self) -> Outcome {
        if self.faults.stopped {
            return Outcome::Refused(no_power());
        }
        self.counts.changes += 1;
        if countdown(&mut self.faults.stop_after) {
            self.faults.stopped = true;
            return Outcome::InPart(no_power());
        }
        Outcome::Done
    }

    fn change_names(&mut self, change: NameChange) -> io::Result<()> {
        let outcome = self.change();
        let happens = match outcome {
            Outcome::Done => true,
            Outcome::InPart(_) => self.random.is_below(1, 2),
            Outcome::Refused(_) => false,
        };
        if happens {
            change.clone().apply(&mut self.names);
            self.unsynced_names.push(change);
        }
        outcome.into_result()
    }

    fn write(&mut self, id: u64, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.counts.writes += 1;
        let outcome = match self.change() {
            Outcome::Done if countdown(&mut self.faults.write_after) => {
                Outcome::InPart(io::Error::other("simulated: the write failed"))
            }
            outcome => outcome,
        };
        let len = match outcome {
            Outcome::Done => bytes.len(),
            Outcome::InPart(_) => self.random.below(bytes.len() as u64 + 1) as usize,
            Outcome::Refused(_) => 0,
        };
        let end = self.end_within_space(id, offset + len as u64);
        let len = end.saturating_sub(offset) as usize;
        let page_bytes = self.page_bytes;
        self.file(id).write(&bytes[..len], offset as usize, page_bytes);
        match outcome {
            Outcome::Done if len < bytes.len() => {
                Err(io::Error::new(io::ErrorKind::StorageFull, "simulated: the disk is full"))
            }
            outcome => outcome.into_result(),
        }
    }

    fn allocate(&mut self, id: u64, len: u64) -> io::Result<()> {
        let outcome = self.change();
        if let Outcome::Done = outcome {
            let end = self.end_within_space(id, len);
            let file = self.file(id);
            // What was never written reads as zeros, before and after a crash.
            file.bytes.resize(file.bytes.len().max(end as usize), 0);
            if end < len {
                return Err(io::Error::new(io::ErrorKind::StorageFull, "simulated: the disk is full"));
            }
        }
        outcome.into_result()
    }

    /// `end`, or less where the disk is full.
    fn end_within_space(&self, id: u64, end: u64) -> u64 {
        let free = self.free_bytes().unwrap_or(u64::MAX);
        end.min((self.files[&id].bytes.len() as u64).saturating_add(free))
    }

    fn free_bytes(&self) -> Option<u64> {
        let used: u64 = self.names.values().map(|id| self.files[id].bytes.len() as u64).sum();
        self.faults.space_bytes.map(|space| space.saturating_sub(used))
    }

    fn sync(&mut self, id: u64) -> io::Result<()> {
        self.counts.syncs += 1;
        let outcome = self.begin_sync();
        let page_bytes = self.page_bytes;
        let mut random = self.random.clone();
        match &outcome {
            Outcome::Done => self.file(id).sync(page_bytes),
            Outcome::InPart(_) => self.file(id).fail_sync(&mut random, page_bytes),
            Outcome::Refused(_) => {}
        }
        self.random = random;
        outcome.into_result()
    }

    fn sync_names(&mut self) -> io::Result<()> {
        self.counts.directory_syncs += 1;
        let outcome = self.begin_sync();
        if let Outcome::Done = outcome {
            self.unsynced_names.clear();
            self.durable_names = self.names.clone();
        }
        outcome.into_result()
    }

    fn begin_sync(&mut self) -> Outcome {
        match self.change() {
            Outcome::Done if countdown(&mut self.faults.sync_after) => {
                Outcome::InPart(io::Error::other("simulated: the sync failed"))
            }
            outcome => outcome,
        }
    }
}

/// How far a changing call comes.
enum Outcome {
    Done,
    InPart(io::Error),
    Refused(io::Error),
}

impl Outcome {
    fn into_result(self) -> io::Result<()> {
        match self {
            Self::Done => Ok(()),
            Self::InPart(error) | Self::Refused(error) => Err(error),
        }
    }
}

/// Whether the moment has come for a fault that happens once.
fn countdown(after: &mut Option<u64>) -> bool {
    let now = *after == Some(0);
    *after = after.and_then(|left| left.checked_sub(1));
    now
}

fn no_power() -> io::Error {
    io::Error::other("simulated: there is no power")
}

impl NameChange {
    fn file(&self) -> Option<u64> {
        match self {
            Self::Added(_, file) | Self::Renamed { file, .. } => Some(*file),
            Self::Removed(_) => None,
        }
    }

    fn apply(self, names: &mut BTreeMap<String, u64>) {
        match self {
            Self::Added(name, file) => {
                names.insert(name, file);
            }
            Self::Removed(name) => {
                names.remove(&name);
            }
            Self::Renamed { from, to, file } => {
                names.remove(&from);
                names.insert(to, file);
            }
        }
    }
}

impl FileState {
    fn write(&mut self, bytes: &[u8], offset: usize, page_bytes: usize) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len();
        for page in offset / page_bytes..end.div_ceil(page_bytes) {
            let before = page_of(&self.bytes, page, page_bytes).to_vec();
            match self.dirty.get_mut(&page) {
                None => drop(self.dirty.insert(page, Vec::new())),
                Some(versions) if versions.len() < PAGE_VERSIONS_MAX => versions.push(before),
                Some(_) => {}
            }
        }
        self.bytes.resize(self.bytes.len().max(end), 0);
        self.bytes[offset..end].copy_from_slice(bytes);
    }

    fn sync(&mut self, page_bytes: usize) {
        self.durable.resize(self.bytes.len(), 0);
        for page in std::mem::take(&mut self.dirty).into_keys() {
            put_page(&mut self.durable, page, page_of(&self.bytes, page, page_bytes), page_bytes);
        }
    }

    /// Writes some pages and takes all for clean.
    fn fail_sync(&mut self, random: &mut SplitMix64, page_bytes: usize) {
        let keep = random.below(5);
        for page in std::mem::take(&mut self.dirty).into_keys() {
            if random.is_below(keep, 4) {
                let content = page_of(&self.bytes, page, page_bytes);
                let len = self.durable.len().max(page * page_bytes + content.len());
                self.durable.resize(len, 0);
                put_page(&mut self.durable, page, content, page_bytes);
            }
        }
    }

    /// Says of each page that was not synced, in order, whether it is there.
    fn crash(&mut self, random: &mut SplitMix64, keep: u64, page_bytes: usize) -> Vec<bool> {
        let mut kept = Vec::new();
        let grown = (self.bytes.len() - self.durable.len()) as u64;
        let len = self.durable.len()
            + match random.below(3) {
                0 => 0,
                1 => random.below(grown + 1) as usize,
                _ => grown as usize,
            };
        self.durable.resize(self.bytes.len(), 0);
        for (page, versions) in std::mem::take(&mut self.dirty) {
            let is_kept = random.is_below(keep, 4);
            kept.push(is_kept);
            if is_kept {
                let version = random.below(versions.len() as u64 + 1) as usize;
                let content = match versions.get(version) {
                    Some(version) => version,
                    None => page_of(&self.bytes, page, page_bytes),
                };
                put_page(&mut self.durable, page, content, page_bytes);
            }
        }
        self.durable.truncate(len);
        self.bytes = self.durable.clone();
        kept
    }
}

fn page_of(bytes: &[u8], page: usize, page_bytes: usize) -> &[u8] {
    let start = (page * page_bytes).min(bytes.len());
    &bytes[start..(start + page_bytes).min(bytes.len())]
}

fn put_page(bytes: &mut [u8], page: usize, content: &[u8], page_bytes: usize) {
    let start = page * page_bytes;
    bytes[start..start + content.len()].copy_from_slice(content);
}

impl Files for SimulatedDisk {
    type File = SimulatedFile;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<SimulatedFile> {
        let mut disk = self.0.lock();
        if disk.names.contains_key(name) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("simulated: {name} exists")));
        }
        disk.files_made += 1;
        let id = disk.files_made;
        disk.files.insert(id, FileState::default());
        disk.change_names(NameChange::Added(name.into(), id))?;
        Ok(self.handle(id, &disk))
    }

    fn open(&self, name: &str) -> io::Result<SimulatedFile> {
        let disk = self.0.lock();
        let id = disk.names.get(name).ok_or_else(|| no_file(name))?;
        Ok(self.handle(*id, &disk))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.0.lock();
        if !disk.names.contains_key(name) {
            return Err(no_file(name));
        }
        disk.change_names(NameChange::Removed(name.into()))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.0.lock();
        let file = *disk.names.get(from).ok_or_else(|| no_file(from))?;
        disk.change_names(NameChange::Renamed { from: from.into(), to: to.into(), file })
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.0.lock().sync_names()
    }

    fn free_bytes(&self) -> Option<u64> {
        self.0.lock().free_bytes()
    }
}

fn no_file(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("simulated: there is no {name}"))
}

/// An open file of a [`SimulatedDisk`].
#[derive(Debug)]
pub struct SimulatedFile {
    disk: SimulatedDisk,
    id: u64,
    generation: u64,
}

impl SimulatedDisk {
    fn handle(&self, id: u64, disk: &Disk) -> SimulatedFile {
        SimulatedFile { disk: self.clone(), id, generation: disk.generation }
    }
}

impl SimulatedFile {
    fn with<T>(&self, f: impl FnOnce(&mut Disk, u64) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.disk.0.lock();
        match disk.generation == self.generation {
            true => f(&mut disk, self.id),
            false => Err(io::Error::other("simulated: opened before a crash or restart")),
        }
    }
}

impl LogFile for SimulatedFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|disk, id| Ok(disk.file(id).bytes.len() as u64))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.with(|disk, id| disk.allocate(id, len))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.with(|disk, id| {
            let bytes = &disk.file(id).bytes;
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let read = buf.len().min(bytes.len() - from);
            buf[..read].copy_from_slice(&bytes[from..from + read]);
            Ok(read)
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.with(|disk, id| disk.write(id, bytes, offset))
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|disk, id| disk.sync(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_with_file(seed: u64) -> (SimulatedDisk, SimulatedFile) {
        let disk = SimulatedDisk::new(seed, 512);
        let file = disk.create("a").unwrap();
        file.write_at(&[1; 4096], 0).unwrap();
        file.sync().unwrap();
        disk.sync_directory().unwrap();
        (disk, file)
    }

    #[test]
    fn what_is_synced_survives_and_of_the_rest_any_part_does() {
        let mut torn = 0;
        for seed in 0..100 {
            let (disk, file) = disk_with_file(seed);
            file.write_at(&[2; 2048], 1024).unwrap();
            file.write_at(&[2; 1000], 4096).unwrap();
            disk.crash();
            let bytes = disk.contents("a").unwrap();
            assert!(bytes.len() >= 4096 && bytes.len() <= 5096);
            assert!(bytes[..1024].iter().chain(&bytes[3072..4096]).all(|byte| *byte == 1));
            torn += u64::from(bytes[1024..3072].contains(&1) && bytes[1024..3072].contains(&2));
            assert!(file.len().is_err(), "the handle is of another life");
        }
        assert!(torn > 20, "{torn} of 100 were torn");
    }

    #[test]
    fn names_come_and_go_only_with_a_sync_of_the_directory() {
        let (mut kept, mut lost) = (0, 0);
        for seed in 0..100 {
            let (disk, _) = disk_with_file(seed);
            disk.create("b").unwrap().sync().unwrap();
            disk.remove("a").unwrap();
            disk.crash();
            kept += u64::from(disk.contents("b").is_some());
            lost += u64::from(disk.contents("a").is_none());
        }
        assert!((20..80).contains(&kept) && (20..80).contains(&lost), "{kept} {lost}");
    }

    #[test]
    fn after_a_failed_sync_only_what_is_written_again_becomes_durable() {
        let lost = (0..100).filter(|seed| {
            let (disk, file) = disk_with_file(*seed);
            file.write_at(&[2; 1024], 0).unwrap();
            disk.fail_sync_after(0);
            assert!(file.sync().is_err());
            assert_eq!(file.sync().ok(), Some(()), "the second sync lies");
            assert_eq!(disk.contents("a").unwrap()[..1024], [2; 1024]);
            disk.crash();
            disk.contents("a").unwrap()[..1024] != [2; 1024]
        });
        assert!(lost.count() > 20);
        let (disk, file) = disk_with_file(1);
        file.write_at(&[2; 1024], 0).unwrap();
        disk.fail_sync_after(0);
        assert!(file.sync().is_err());
        file.write_at(&[2; 1024], 0).unwrap();
        file.sync().unwrap();
        disk.crash();
        assert_eq!(disk.contents("a").unwrap()[..1024], [2; 1024]);
    }

    #[test]
    fn a_full_disk_and_lost_power_refuse_the_call_at_hand() {
        let (disk, file) = disk_with_file(3);
        disk.set_space(Some(5000));
        assert_eq!(file.write_at(&[2; 1000], 4096).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.len().unwrap(), 5000);
        assert_eq!(file.allocate(9000).unwrap_err().kind(), io::ErrorKind::StorageFull);
        disk.set_space(None);
        file.allocate(9000).unwrap();

        disk.stop_after(1);
        file.sync().unwrap();
        assert!(file.write_at(&[3; 10], 0).is_err());
        assert!(file.sync().is_err() && disk.create("c").is_err());
        disk.crash();
        assert_eq!(disk.open("a").unwrap().len().unwrap(), 9000);
    }

    #[test]
    fn the_same_seed_gives_the_same_disk() {
        let run = |seed| {
            let (disk, file) = disk_with_file(seed);
            file.write_at(&[2; 9000], 700).unwrap();
            disk.crash();
            disk.contents("a")
        };
        assert_eq!(run(5), run(5));
        assert!((0..50).any(|seed| run(seed) != run(5)));
    }

    #[test]
    fn a_small_file_is_the_old_or_the_new_one() {
        for (seed, stop) in (0..200).map(|seed| (seed, seed % 8)) {
            let disk = SimulatedDisk::new(seed, 512);
            disk.write_atomically("small", b"old").unwrap();
            disk.stop_after(stop);
            let done = disk.write_atomically("small", b"newer").is_ok();
            disk.crash();
            let read = disk.read_small("small", 100).unwrap().unwrap();
            assert!(read == b"newer" || read == b"old" && !done, "{read:?}");
            disk.write_atomically("small", b"newest").unwrap();
            assert_eq!(disk.read_small("small", 100).unwrap().as_deref(), Some(&b"newest"[..]));
            assert!(disk.read_small("small", 3).is_err());
            assert_eq!(disk.read_small("none", 3).unwrap(), None);
        }
    }
}

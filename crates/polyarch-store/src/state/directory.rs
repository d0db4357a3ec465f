use std::any::Any;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use crate::files::{private_directory, private_file};

use super::{SledConfig, SledState, StateError, StateOpener, StateStore, Succession};

/// The state's place in a data directory.
pub(crate) const STATE: &str = "state";
/// A file that a backend leaves beside its own when it met damage, so that the next open knows.
const SUSPECT: &str = "DAMAGED";

/// What the name of a state begins with that was set aside.
const SET_ASIDE: &str = "state.damaged-";
/// What the name of a state that is not yet the current one is followed by, in the name of a file
/// beside it. Without the file it is the current one.
const JOINING: &str = ".joining";

type Open<S> = dyn Fn(&Path) -> Result<S, StateError> + Send + Sync;

/// A state in a data directory, opened under a watchdog.
///
/// ```text
/// data/state/0001/            the backend's files
/// data/state/0002/            a state that a snapshot is joined into, as long as this file is there:
/// data/state/0002.joining     removed, durably, it makes 0002 the current one
/// data/state.damaged-1/0001/  a state that was set aside; the next is data/state/0002/
/// ```
///
/// The current state is the one with the greatest number and no such file. An open removes those with
/// one, and those with smaller numbers. (A directory that is renamed would serve as well, had sled not
/// opened it by its name.)
///
/// Another reason for the numbers is that an open that hung cannot be ended, only left behind:
/// should it wake up, it works on paths that are gone, and not on its successor's files.
pub struct StateDirectory<S> {
    place: Arc<Place<S>>,
}

/// Where the states are, and how one is opened.
struct Place<S> {
    data: PathBuf,
    patience: Duration,
    open: Arc<Open<S>>,
    /// Held while a state is marked as not yet current and while older ones are removed, which goes by
    /// these marks and runs on a thread of its own.
    marking: Mutex<()>,
}

impl StateDirectory<SledState> {
    /// sled's state in the data directory `data`.
    pub fn sled(data: impl Into<PathBuf>, config: SledConfig) -> Self {
        Self::new(data, config.open_timeout, move |dir| SledState::open(dir, &config))
    }
}

impl<S: StateStore> StateDirectory<S> {
    /// A state that `open` opens in a directory it is given, within `patience`.
    pub fn new(
        data: impl Into<PathBuf>,
        patience: Duration,
        open: impl Fn(&Path) -> Result<S, StateError> + Send + Sync + 'static,
    ) -> Self {
        Self { place: Arc::new(Place { data: data.into(), patience, open: Arc::new(open), marking: Mutex::default() }) }
    }
}

impl<S: StateStore> StateDirectory<S> {
    /// Opens the current state though it is marked as damaged: for who reads and counts all of it next. The
    /// mark is gone then, for it may have been a disk that stood still.
    pub(crate) fn open_suspect(&mut self) -> Result<S, StateError> {
        let number = self.place.current().map_err(StateError::io("found"))?;
        match fs::remove_file(self.place.directory(number).join(SUSPECT)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StateError::io("freed of its mark")(error)),
            _ => self.open(),
        }
    }
}

impl<S: StateStore> Place<S> {
    fn state(&self) -> PathBuf {
        self.data.join(STATE)
    }

    fn directory(&self, number: u64) -> PathBuf {
        self.state().join(format!("{number:04}"))
    }

    fn marker(&self, number: u64) -> PathBuf {
        self.state().join(format!("{number:04}{JOINING}"))
    }

    fn numbers(&self) -> io::Result<Numbers> {
        numbers_in(&self.state())
    }

    /// The number of the current state, or of the first.
    fn current(&self) -> io::Result<u64> {
        match self.numbers()?.current() {
            Some(number) => Ok(number),
            None => Ok(self.greatest_set_aside()? + 1),
        }
    }

    /// The greatest number that a state had which was set aside.
    fn greatest_set_aside(&self) -> io::Result<u64> {
        let set_aside = self.set_aside_count()?;
        let mut greatest = set_aside;
        for count in 1..=set_aside {
            let numbers = numbers_in(&self.data.join(set_aside_name(count)))?;
            greatest = greatest.max(numbers.directories.last().copied().unwrap_or(0));
        }
        Ok(greatest)
    }

    fn set_aside_count(&self) -> io::Result<u64> {
        let numbers = fs::read_dir(&self.data)?.map(|entry| {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(SET_ASIDE));
            Ok(number.and_then(|number| number.parse().ok()).unwrap_or(0))
        });
        Ok(numbers.collect::<io::Result<Vec<u64>>>()?.into_iter().max().unwrap_or(0))
    }

    /// Creates the directory so that it outlasts a power cut.
    fn create(&self, dir: &Path) -> io::Result<()> {
        private_directory().recursive(true).create(dir)?;
        for dir in [dir, &self.state(), &self.data] {
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    }

    fn open(&self, number: u64) -> Result<S, StateError> {
        let dir = self.directory(number);
        self.create(&dir).map_err(StateError::io("created"))?;
        if let Some(why) = suspicion(&dir) {
            return Err(StateError::Damaged(why));
        }
        let open = Arc::clone(&self.open);
        let opened_in = dir.clone();
        let state = watched(self.patience, move || open(&opened_in))?;
        // A backend may create directories of its own without syncing their parent.
        File::open(&dir).and_then(|dir| dir.sync_all()).map_err(StateError::io("synced"))?;
        Ok(state)
    }

    fn sync(&self) -> io::Result<()> {
        File::open(self.state())?.sync_all()
    }

    fn begin_next(&self) -> io::Result<u64> {
        let _marking = self.marking.lock();
        let number = self.current()? + 1;
        // Before the directory: at no moment may it be taken for the current state.
        private_directory().recursive(true).create(self.state())?;
        private_file().create(true).truncate(false).open(self.marker(number))?;
        self.sync()?;
        Ok(number)
    }

    fn adopt_next(&self) -> io::Result<()> {
        let joining = self.numbers()?.joining;
        let number = joining.last().ok_or_else(|| io::Error::other("there is no next state"))?;
        File::open(self.directory(*number))?.sync_all()?;
        fs::remove_file(self.marker(*number))?;
        self.sync()
    }

    /// Removes what is not yet the current state.
    fn remove_joining(&self) -> io::Result<()> {
        for number in self.numbers()?.joining {
            remove_directory(&self.directory(number))?;
            // What is left of the directory, should the power go, is still marked.
            self.sync()?;
            fs::remove_file(self.marker(number))?;
            self.sync()?;
        }
        Ok(())
    }

    fn remove_older(&self) -> io::Result<()> {
        let _marking = self.marking.lock();
        let numbers = self.numbers()?;
        let Some(current) = numbers.current() else { return Ok(()) };
        let older: Vec<u64> = numbers.directories.into_iter().filter(|number| *number < current).collect();
        for number in &older {
            remove_directory(&self.directory(*number))?;
        }
        if older.is_empty() { Ok(()) } else { self.sync() }
    }
}

/// The numbers of states.
#[derive(Default)]
struct Numbers {
    directories: BTreeSet<u64>,
    /// Those with a marker, whether they have a directory or not.
    joining: BTreeSet<u64>,
}

impl Numbers {
    fn current(&self) -> Option<u64> {
        self.directories.difference(&self.joining).last().copied()
    }
}

/// What is in a directory of states, which need not exist.
fn numbers_in(dir: &Path) -> io::Result<Numbers> {
    let mut numbers = Numbers::default();
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(numbers),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        match name.strip_suffix(JOINING) {
            Some(number) => numbers.joining.extend(number.parse::<u64>().ok()),
            None => numbers.directories.extend(name.parse::<u64>().ok()),
        }
    }
    Ok(numbers)
}

fn set_aside_name(count: u64) -> String {
    format!("{SET_ASIDE}{count}")
}

fn remove_directory(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

impl<S: StateStore> Succession<S> for Place<S> {
    fn begin(&self) -> Result<S, StateError> {
        self.abandon()?;
        let number = self.begin_next().map_err(StateError::io("begun anew beside itself"))?;
        self.open(number)
    }

    fn adopt(&self) -> Result<(), StateError> {
        self.adopt_next().map_err(StateError::io("replaced"))
    }

    fn abandon(&self) -> Result<(), StateError> {
        self.remove_joining().map_err(StateError::io("freed of an unfinished one"))
    }

    fn remove_previous(&self) -> Result<(), StateError> {
        self.remove_older().map_err(StateError::io("freed of an older one"))
    }
}

impl<S: StateStore> StateOpener for StateDirectory<S> {
    type State = S;

    fn open(&mut self) -> Result<S, StateError> {
        self.place.abandon()?;
        self.place.remove_previous()?;
        self.place.open(self.place.current().map_err(StateError::io("found"))?)
    }

    fn set_aside(&mut self) -> Result<String, StateError> {
        let place = &self.place;
        let rename = || {
            let aside = place.data.join(set_aside_name(place.set_aside_count()? + 1));
            fs::rename(place.state(), &aside)?;
            File::open(&place.data)?.sync_all()?;
            Ok(aside.display().to_string())
        };
        rename().map_err(StateError::io("set aside"))
    }

    fn succession(&self) -> Arc<dyn Succession<S>> {
        Arc::clone(&self.place) as Arc<dyn Succession<S>>
    }

    fn guarded<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        // A read goes over all records; an open only over an index.
        watched(self.place.patience.saturating_mul(10), read)
    }
}

/// Notes that the state in `dir` was met damaged: the next open refuses it, and it is rebuilt.
pub(super) fn suspect(dir: &Path, why: &str) {
    let noted = fs::write(dir.join(SUSPECT), why).and_then(|()| File::open(dir)?.sync_all());
    if let Err(error) = noted {
        tracing::error!(directory = %dir.display(), %error, "cannot note that the state is damaged");
    }
}

fn suspicion(dir: &Path) -> Option<String> {
    fs::read(dir.join(SUSPECT)).ok().map(|why| String::from_utf8_lossy(&why).into_owned())
}

/// Runs `work` on a thread of its own, and gives it up when it panics or takes longer than `patience`.
///
/// # Errors
/// Those of `work`, [`StateError::Panicked`] and [`StateError::Hung`]; after the latter the thread
/// is left behind, since there is no way to end it, and what it returns is dropped.
pub fn watched<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> Result<T, StateError> + Send + 'static,
) -> Result<T, StateError> {
    let (done, outcome) = mpsc::sync_channel(1);
    let spawned = thread::Builder::new().name("state-watched".into()).spawn(move || {
        let _ = done.send(caught(work));
    });
    spawned.map_err(StateError::io("opened on a thread"))?;
    match outcome.recv_timeout(patience) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => Err(StateError::Hung(patience)),
        Err(RecvTimeoutError::Disconnected) => Err(StateError::Panicked("its thread ended".into())),
    }
}

/// Turns a panic of `work` into an error. The caller sees to it that nothing is used again that a
/// panic may have left half changed.
pub(super) fn caught<T>(work: impl FnOnce() -> Result<T, StateError>) -> Result<T, StateError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(StateError::Panicked(panic_message(&*panic))))
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a message").chars().take(400).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_and_a_hang_are_errors() {
        let hour = Duration::from_secs(3_600);
        assert!(matches!(watched(hour, || Ok(7)), Ok(7)));
        let panicked = watched::<()>(hour, || panic!("no {}", "way"));
        assert!(matches!(panicked, Err(StateError::Panicked(text)) if text == "no way"));
        let (_never, wait) = mpsc::channel::<()>();
        let hung = watched(Duration::from_millis(10), move || Ok(wait.recv().is_ok()));
        assert!(matches!(hung, Err(StateError::Hung(_))));
    }
}

use std::any::Any;
use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::files::private_directory;

use super::{SledConfig, SledState, StateError, StateOpener, StateStore};

/// The state's place in a data directory.
pub(crate) const STATE: &str = "state";
/// A file that a backend leaves beside its own when it met damage, so that the next open knows.
const SUSPECT: &str = "DAMAGED";

type Open<S> = dyn Fn(&Path) -> Result<S, StateError> + Send + Sync;

/// A state in a data directory, opened under a watchdog.
///
/// ```text
/// data/state/0001/            the backend's files
/// data/state.damaged-1/0001/  a state that was set aside; the next is data/state/0002/
/// ```
///
/// The numbered directory is there because an open that hung cannot be ended, only left behind:
/// should it wake up, it works on paths that are gone, and not on its successor's files.
pub struct StateDirectory<S> {
    data: PathBuf,
    patience: Duration,
    open: Arc<Open<S>>,
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
        Self { data: data.into(), patience, open: Arc::new(open) }
    }

    /// The directory that the backend is given: the newest in `state/`, or the next number.
    fn current(&self) -> io::Result<PathBuf> {
        let state = self.data.join(STATE);
        let newest = match fs::read_dir(&state) {
            Ok(entries) => newest_number(entries)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let number = newest.map_or_else(|| Ok::<_, io::Error>(self.set_aside_count()? + 1), Ok)?;
        Ok(state.join(format!("{number:04}")))
    }

    fn set_aside_count(&self) -> io::Result<u64> {
        let numbers = fs::read_dir(&self.data)?.map(|entry| {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("state.damaged-"));
            Ok(number.and_then(|number| number.parse().ok()).unwrap_or(0))
        });
        Ok(numbers.collect::<io::Result<Vec<u64>>>()?.into_iter().max().unwrap_or(0))
    }

    /// Creates the directory so that it outlasts a power cut.
    fn create(&self, dir: &Path) -> io::Result<()> {
        private_directory().recursive(true).create(dir)?;
        for dir in [dir, &self.data.join(STATE), &self.data] {
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    }
}

fn newest_number(entries: fs::ReadDir) -> io::Result<Option<u64>> {
    let numbers = entries.map(|entry| Ok(entry?.file_name().to_str().and_then(|name| name.parse().ok())));
    Ok(numbers.collect::<io::Result<Vec<Option<u64>>>>()?.into_iter().flatten().max())
}

impl<S: StateStore> StateOpener for StateDirectory<S> {
    type State = S;

    fn open(&mut self) -> Result<S, StateError> {
        let dir = self.current().map_err(StateError::io("found"))?;
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

    fn set_aside(&mut self) -> Result<String, StateError> {
        let rename = || {
            let aside = self.data.join(format!("state.damaged-{}", self.set_aside_count()? + 1));
            fs::rename(self.data.join(STATE), &aside)?;
            File::open(&self.data)?.sync_all()?;
            Ok(aside.display().to_string())
        };
        rename().map_err(StateError::io("set aside"))
    }

    fn guarded<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        // A read goes over all records; an open only over an index.
        watched(self.patience.saturating_mul(10), read)
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

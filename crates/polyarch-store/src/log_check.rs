use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::files::Files;
use crate::log::{LogCheck, LogChecked, LogError};

/// How many times as long as it reads the check rests: it has the time, and whoever serves has not.
const REST_TIMES: u32 = 3;
const REST_MAX: Duration = Duration::from_secs(1);

/// What the check of the log's older segments came upon.
#[derive(Debug)]
#[non_exhaustive]
pub enum LogFinding {
    /// A segment is damaged, or cannot be read. The error names it, and the place in it.
    Problem(LogError),
    /// All were checked.
    Done(LogChecked),
}

/// The thread that checks the log's older segments. Dropped, it ends, at the latest after the MiB
/// it is at.
pub(crate) struct LogCheckThread {
    // Closed to end the thread; nothing is ever sent.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl LogCheckThread {
    pub(crate) fn spawn<F: Files>(
        check: LogCheck<F>,
        mut found: impl FnMut(LogFinding) + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let run = move || {
            let mut since = Instant::now();
            let goes_on = || {
                let rest = (since.elapsed() * REST_TIMES).min(REST_MAX);
                let goes_on = stopped.recv_timeout(rest) == Err(RecvTimeoutError::Timeout);
                since = Instant::now();
                goes_on
            };
            let checked = check.run(goes_on, |problem| found(LogFinding::Problem(problem)));
            if !checked.stopped {
                found(LogFinding::Done(checked));
            }
        };
        let thread = thread::Builder::new().name("log-check".into()).spawn(run)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for LogCheckThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that checks the log panicked; run `polyarch verify` when the node is stopped");
        }
    }
}

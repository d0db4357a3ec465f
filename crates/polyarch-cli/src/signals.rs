//! The signals that end a command in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;

use crate::failure::Failure;

/// What asks a command to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopSignal {
    /// SIGHUP: its terminal is gone.
    HangUp,
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

impl StopSignal {
    /// The signal's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::HangUp => "SIGHUP",
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        }
    }
}

/// From here on these signals no longer end the process by themselves.
pub(crate) struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Option<Signal>,
}

impl StopSignals {
    /// SIGINT and SIGTERM.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let (interrupt, terminate) = (of(SignalKind::interrupt())?, of(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, hang_up: None })
    }

    /// SIGHUP too: for what must not be left behind when a terminal is closed. Not for a node, which `nohup` may have
    /// told to stay.
    pub(crate) fn and_hang_up(self) -> Result<Self, Failure> {
        Ok(Self { hang_up: Some(of(SignalKind::hangup())?), ..self })
    }

    /// The next of them. Cancel safe.
    pub(crate) async fn next(&mut self) -> StopSignal {
        let hang_up = async {
            match &mut self.hang_up {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => StopSignal::Interrupt,
            _ = self.terminate.recv() => StopSignal::Terminate,
            _ = hang_up => StopSignal::HangUp,
        }
    }
}

/// Does `work` on a thread of its own until it is done or a signal says to stop: then it is told so, is waited for, and
/// leaves an order. `what` it is, for people.
///
/// # Errors
/// When signals cannot be heard, or it panicked.
pub(crate) async fn stoppable<T: Send + 'static>(
    what: &str,
    work: impl FnOnce(&AtomicBool) -> T + Send + 'static,
) -> Result<(T, Option<StopSignal>), Failure> {
    let mut stop_signals = StopSignals::listen()?.and_hang_up()?;
    let is_stopped = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&is_stopped);
    let mut working = spawn_blocking(move || work(&stop));
    let (ended, signal) = tokio::select! {
        ended = &mut working => (ended, None),
        signal = stop_signals.next() => {
            is_stopped.store(true, Ordering::Relaxed);
            (working.await, Some(signal))
        }
    };
    let ended = ended.map_err(|error| Failure::refused(format_args!("the {what} ended: {error}")))?;
    Ok((ended, signal))
}

fn of(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::system("listen for signals", &error))
}

//! The signals that end a command in order.

use tokio::signal::unix::{Signal, SignalKind, signal};

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

fn of(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::system("listen for signals", &error))
}

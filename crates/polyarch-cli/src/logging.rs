//! What a node logs, and how: to stderr, as text for people or as JSON for machines.

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

use crate::failure::Failure;
use crate::terminal::has_colours;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One object for each line.
    Json,
}

/// Logs to stderr from now on. `level` wins over `RUST_LOG`, and that over the default, `info`.
pub(crate) fn start(format: LogFormat, level: Option<&str>) -> Result<(), Failure> {
    let asked = std::env::var(EnvFilter::DEFAULT_ENV).ok().filter(|filter| !filter.is_empty());
    let (name, filter) = match (level, &asked) {
        (Some(level), _) => ("--log-level", level),
        (None, Some(asked)) => (EnvFilter::DEFAULT_ENV, asked.as_str()),
        (None, None) => ("--log-level", "info"),
    };
    let filter = EnvFilter::try_new(filter).map_err(|error| Failure::usage(format_args!("{name}: {error}")))?;
    let stderr = std::io::stderr;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    // An application that has a subscriber of its own keeps it.
    let _ = match format {
        LogFormat::Text => subscriber.with_ansi(has_colours(&stderr())).try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
    Ok(())
}

/// For commands that log only when `RUST_LOG` asks for it.
pub(crate) fn start_if_asked() -> Result<(), Failure> {
    match std::env::var_os(EnvFilter::DEFAULT_ENV) {
        Some(_) => start(LogFormat::Text, None),
        None => Ok(()),
    }
}

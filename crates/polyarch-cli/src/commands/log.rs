//! `polyarch log`: look into the log of a node that is not running.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use polyarch_protocol::{Effect, LogPosition, WriteSet};
use polyarch_store::{LogEntry, dump};

use crate::failure::Failure;
use crate::json::LogEntryObject;
use crate::terminal::{Output, escaped};

/// Look into the log of a node that is not running.
#[derive(Debug, Subcommand)]
pub(crate) enum Log {
    /// Print the write sets of a log in the order in which they were applied
    Dump(Dump),
}

/// Print the write sets of a log in the order in which they were applied.
#[derive(Debug, Args)]
#[command(after_help = "\
With --json, a line for each write set:
  {\"start\", \"end\", \"known_synced\", \"bytes\", \"gtid\", \"hlc\",
   \"dependencies\": {\"whole\", \"predecessor\", \"applied\": [GTID..]},
   \"changes\": [{\"op\", \"keyspace\", \"key\", \"field\", \"supersedes\": [GTID..], \"value\"}]}
\"keyspace\" is an id, \"op\" is put or delete. Bytes that are no write set have an \"error\" instead of
a gtid. The cluster's secret keys are in the log and are not printed: their changes have no value.

Examples:
  polyarch log dump certs/data/node-1
  polyarch log dump certs/data/node-1 --json --from 1:48 --limit 10")]
pub(crate) struct Dump {
    /// The node's data directory
    dir: PathBuf,
    /// Begin at this position: SEGMENT:OFFSET
    #[arg(long, value_name = "POS", value_parser = parse_position)]
    from: Option<LogPosition>,
    /// At most so many write sets
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

impl Log {
    pub(crate) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Dump(dump) => dump.run(),
        }
    }
}

impl Dump {
    fn run(&self) -> Result<(), Failure> {
        let from = self.from.unwrap_or_default();
        let is_wanted = |entry: &Result<LogEntry, _>| entry.as_ref().map_or(true, |entry| entry.start >= from);
        let mut output = Output::stdout();
        let mut ended = Ok(());
        for entry in dump(&self.dir)?.filter(is_wanted).take(self.limit.unwrap_or(usize::MAX)) {
            match entry {
                Ok(entry) if self.json => output.json(&LogEntryObject::from(&entry))?,
                Ok(entry) => print(&entry, &mut output)?,
                Err(error) => ended = Err(Failure::refused(error)),
            }
        }
        output.flush()?;
        ended
    }
}

fn print(entry: &LogEntry, output: &mut Output) -> Result<(), Failure> {
    let LogEntry { start, bytes, .. } = entry;
    match &entry.write_set {
        Err(error) => output.line(format_args!("{start}  {bytes} bytes: {error}")),
        Ok(write_set) => {
            output.line(format_args!("{start}  {}  {}  {bytes} bytes", write_set.dot, write_set.hlc))?;
            print_changes(write_set, output)
        }
    }
}

fn print_changes(write_set: &WriteSet, output: &mut Output) -> Result<(), Failure> {
    for change in &write_set.changes {
        let (keyspace, key) = (change.keyspace, escaped(&change.key));
        let field = match change.field.as_str() {
            "" => String::new(),
            field => format!(" field {}", escaped(field.as_bytes())),
        };
        let effect = match &change.effect {
            Effect::Put(value) => format!("put {} bytes", value.len()),
            Effect::Delete => "delete".to_owned(),
        };
        let replaced: Vec<String> = change.supersedes.iter().map(|dot| dot.to_string()).collect();
        let replaced = if replaced.is_empty() { String::new() } else { format!(", replaces {}", replaced.join(", ")) };
        output.line(format_args!("    {keyspace} {key}{field}: {effect}{replaced}"))?;
    }
    Ok(())
}

fn parse_position(text: &str) -> Result<LogPosition, String> {
    let parsed = text.split_once(':').and_then(|(segment, offset)| {
        Some(LogPosition { segment: segment.parse().ok()?, offset: offset.parse().ok()? })
    });
    parsed.ok_or_else(|| "a position looks like 1:48, SEGMENT:OFFSET".to_owned())
}

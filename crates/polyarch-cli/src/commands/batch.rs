//! `polyarch batch`: changes of several keys that become visible together.

use std::ffi::OsString;

use clap::Args;
use polyarch_client::Batch;
use polyarch_protocol::limits::wire;

use super::print_written;
use crate::connection::{ConnectionArguments, SessionArguments};
use crate::failure::Failure;
use crate::json::BatchChange;
use crate::terminal::{Lines, Place};

/// Change several keys at once: all together on every node, or none
#[derive(Debug, Args)]
#[command(after_help = "\
Each line is a change:
  {\"op\": \"put\", \"keyspace\": .., \"key\": .., \"value\": ..}
  {\"op\": \"delete\", \"keyspace\": .., \"key\": ..}
Both may have a \"context\", a put also \"nothing_seen\": true. Bytes that are not UTF-8 go as
\"key_base64\" and \"value_base64\". A key may be changed once.
With --json: {\"gtid\", \"hlc\", \"token\"}; both null when there was nothing to do.

Example:
  printf '%s\\n' '{\"op\":\"put\",\"keyspace\":\"notes\",\"key\":\"a\",\"value\":\"1\"}' \\
      '{\"op\":\"delete\",\"keyspace\":\"notes\",\"key\":\"b\"}' | polyarch batch -")]
pub(crate) struct BatchCommand {
    /// A file of JSON lines, or `-` for standard input
    file: OsString,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    session: SessionArguments,
}

impl BatchCommand {
    pub(crate) fn run(self, connection: ConnectionArguments) -> Result<(), Failure> {
        let changes = read_changes(&Place::from(self.file.as_os_str()))?;
        connection.run(async |connection| {
            let session = self.session.session(&connection.client)?;
            let batch = changes.into_iter().fold(session.batch(), add);
            let written = batch.commit().await?;
            print_written(&written, self.json)
        })
    }
}

fn add(batch: Batch, change: BatchChange) -> Batch {
    match change.value {
        Some(value) => batch.put_with(&change.keyspace, change.key, value, change.supersede),
        None => batch.delete_with(&change.keyspace, change.key, change.supersede),
    }
}

/// All changes: they travel together, so the first that is wrong stops them all.
fn read_changes(place: &Place) -> Result<Vec<BatchChange>, Failure> {
    let name = place.name();
    let (input, _) = place.open()?;
    let mut changes = Vec::new();
    for line in Lines::of(input) {
        let line = line.map_err(|problem| Failure::usage(format_args!("{name}: {problem}")))?;
        let change = BatchChange::parse(&line.bytes);
        let number = line.number;
        changes.push(change.map_err(|problem| Failure::usage(format_args!("{name}, line {number}: {problem}")))?);
        if changes.len() > wire::CHANGES_MAX {
            return Err(Failure::usage(format_args!("{name}: a batch has at most {} changes", wire::CHANGES_MAX))
                .hint("`polyarch import` takes any number, each by itself"));
        }
    }
    match changes.is_empty() {
        true => Err(Failure::usage(format_args!("{name} holds no changes"))),
        false => Ok(changes),
    }
}

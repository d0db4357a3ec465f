//! `polyarch get`, `put`, `delete` and `scan`: records one by one, and in order.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use polyarch_client::{Record, Supersede};
use polyarch_protocol::limits::wire;

use super::print_written;
use crate::connection::{ConnectionArguments, SessionArguments};
use crate::failure::Failure;
use crate::json::{RecordObject, supersede};
use crate::terminal::{Output, escaped, note, read_stdin};

/// Print the value of a key
#[derive(Debug, Args)]
#[command(after_help = "\
Without --json: the value's bytes and nothing else. If concurrent writes left several, each ends
                with a newline.
With --json:    {\"key\", \"siblings\": [{\"value\", \"gtid\", \"hlc\", \"server_id\"}], \"context\", \"token\"}
                Keys and values that are not UTF-8 are \"key_base64\" and \"value_base64\".
A key that is not there: exit status 1; with --json no siblings, and a context of null.

Examples:
  polyarch get notes hello
  polyarch get carts ada --json | jq -r .context")]
pub(crate) struct Get {
    #[command(flatten)]
    place: RecordPlace,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    session: SessionArguments,
}

/// Put a value in place of what is there
#[derive(Debug, Args)]
#[command(after_help = "\
Without --context, the value replaces all that the node holds. With the \"context\" of a read, it
replaces what that read has shown, and what was written concurrently stays beside it.
With --json: {\"gtid\", \"hlc\", \"token\"}
The context of a key that is not there is null, and none to be passed on: write with --nothing-seen.

Examples:
  polyarch put notes hello world
  polyarch put photos cat - < cat.jpg
  context=$(polyarch get carts ada --json | jq -r .context)
  polyarch put carts ada '3 apples' --context $context")]
pub(crate) struct Put {
    #[command(flatten)]
    place: RecordPlace,
    /// The value, or `-` to read it from standard input
    #[arg(allow_negative_numbers = true)]
    value: OsString,
    #[command(flatten)]
    seen: Seen,
    /// The writer has seen nothing: in an mv keyspace, the value joins the siblings
    #[arg(long, conflicts_with = "context")]
    nothing_seen: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    session: SessionArguments,
}

/// Delete a key
#[derive(Debug, Args)]
#[command(after_help = "\
Without --context, all that the node holds is deleted. With the \"context\" of a read, what that
read has shown; what was written concurrently stays. Nothing to delete: exit status 1.
With --json: {\"gtid\", \"hlc\", \"token\"}; both null when there was nothing to delete.

Example:
  polyarch delete notes hello")]
pub(crate) struct Delete {
    #[command(flatten)]
    place: RecordPlace,
    #[command(flatten)]
    seen: Seen,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    session: SessionArguments,
}

/// Print the keys of a keyspace in order, with their values
#[derive(Debug, Args)]
#[command(after_help = "\
Without --json: a line KEY<TAB>VALUE for each sibling; control characters and what is not UTF-8
                are escaped.
With --json:    a line for each key, as `polyarch get --json` prints it.

Example:
  polyarch scan notes --prefix user/ --limit 10")]
pub(crate) struct ScanCommand {
    /// The keyspace: its name or id
    keyspace: String,
    /// Only keys that begin with this
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: OsString,
    /// At most so many keys
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    session: SessionArguments,
}

/// Which record.
#[derive(Debug, Args)]
struct RecordPlace {
    /// The keyspace: its name or id
    keyspace: String,
    /// The key, of at least one byte
    #[arg(allow_negative_numbers = true, value_parser = OsStringValueParser::new().try_map(not_empty))]
    key: OsString,
}

/// What the writer has seen of the record.
#[derive(Debug, Args)]
struct Seen {
    /// Replace what the read has shown that printed this: its "context"
    #[arg(long)]
    context: Option<String>,
}

impl RecordPlace {
    fn key(&self) -> &[u8] {
        self.key.as_bytes()
    }

    fn not_found(&self) -> Failure {
        Failure::not_found(format_args!("keyspace `{}` has no key `{}`", self.keyspace, escaped(self.key())))
    }
}

fn not_empty(key: OsString) -> Result<OsString, &'static str> {
    match key.is_empty() {
        true => Err("a key has at least one byte"),
        false => Ok(key),
    }
}

impl Seen {
    fn supersede(&self, nothing_seen: bool) -> Result<Supersede, Failure> {
        supersede(self.context.as_deref(), nothing_seen)
            .map_err(|problem| Failure::usage(format_args!("--context: {problem}")))
    }
}

impl Get {
    pub(crate) fn run(self, connection: ConnectionArguments) -> Result<(), Failure> {
        connection.run(async |connection| {
            let session = self.session.session(&connection.client)?;
            let record = session.get(&self.place.keyspace, self.place.key()).await?;
            let mut output = Output::stdout();
            match (&record, self.json) {
                (_, true) => output.json(&RecordObject::read(self.place.key(), record.as_ref(), &session.token()))?,
                (Some(record), false) => print_values(record, &mut output)?,
                (None, false) => {}
            }
            output.flush()?;
            record.map(|_| ()).ok_or_else(|| self.place.not_found())
        })
    }
}

fn print_values(record: &Record, output: &mut Output) -> Result<(), Failure> {
    if let Some(value) = record.value() {
        return output.bytes(value);
    }
    for value in record.values() {
        output.bytes(value)?;
        output.bytes(b"\n")?;
    }
    let siblings = record.siblings().len();
    note(&format!(
        "{siblings} values were written concurrently; --json shows their origins, and the context to settle them"
    ));
    Ok(())
}

impl Put {
    pub(crate) fn run(self, connection: ConnectionArguments) -> Result<(), Failure> {
        let supersede = self.seen.supersede(self.nothing_seen)?;
        let value = value_of(&self.value)?;
        connection.run(async |connection| {
            let session = self.session.session(&connection.client)?;
            let written = session.put_with(&self.place.keyspace, self.place.key(), value, supersede).await?;
            print_written(&written, self.json)
        })
    }
}

impl Delete {
    pub(crate) fn run(self, connection: ConnectionArguments) -> Result<(), Failure> {
        let supersede = self.seen.supersede(false)?;
        connection.run(async |connection| {
            let session = self.session.session(&connection.client)?;
            let written = session.delete_with(&self.place.keyspace, self.place.key(), supersede).await?;
            print_written(&written, self.json)?;
            written.dot.map(|_| ()).ok_or_else(|| self.place.not_found())
        })
    }
}

impl ScanCommand {
    pub(crate) fn run(self, connection: ConnectionArguments) -> Result<(), Failure> {
        connection.run(async |connection| {
            let session = self.session.session(&connection.client)?;
            let mut scan = session.scan(&self.keyspace, self.prefix.as_bytes());
            if let Some(limit) = self.limit {
                scan = scan.page_records(u32::try_from(limit).unwrap_or(u32::MAX).min(1_000));
            }
            let mut output = Output::stdout();
            let mut left = self.limit.unwrap_or(u64::MAX);
            while left > 0 {
                let Some((key, record)) = scan.next().await? else { break };
                match self.json {
                    true => output.json(&RecordObject::read(&key, Some(&record), &session.token()))?,
                    false => print_record(&key, &record, &mut output)?,
                }
                left -= 1;
            }
            output.flush()
        })
    }
}

fn print_record(key: &[u8], record: &Record, output: &mut Output) -> Result<(), Failure> {
    let key = escaped(key);
    record.values().try_for_each(|value| output.line(format_args!("{key}\t{}", escaped(value))))
}

fn value_of(argument: &OsStr) -> Result<Vec<u8>, Failure> {
    match argument.as_bytes() {
        b"-" => read_stdin(wire::WRITE_SET_BYTES_MAX as u64),
        value => Ok(value.to_vec()),
    }
}

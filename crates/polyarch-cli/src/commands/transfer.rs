//! `polyarch import` and `export`: whole keyspaces as JSON lines.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use polyarch_client::{Client, Error, Scan, Supersede};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::connection::ConnectionArguments;
use crate::failure::Failure;
use crate::json::{ImportRecord, RecordObject};
use crate::signals::StopSignals;
use crate::terminal::{Line, Lines, Output, Place, note, write_json};

/// Records that are under way at once.
const IN_FLIGHT_MAX: usize = 512;
/// Lines that are read ahead.
const READ_AHEAD_LINES: usize = 256;

/// Put all records of a file of JSON lines
#[derive(Debug, Args)]
#[command(after_help = "\
Each line is a record:
  {\"key\": .., \"value\": ..}
  {\"key\": .., \"siblings\": [{\"value\": ..}, ..]}    as `polyarch export` and `scan --json` print them
Bytes that are not UTF-8 go as \"key_base64\" and \"value_base64\". Each record replaces what the
node holds of its key; of several with one key, the last remains. The records are written one by
one: an import that failed half-way says how many were, and can be repeated.

Examples:
  polyarch import notes notes.jsonl
  polyarch export notes | polyarch --profile other.toml import notes -")]
pub(crate) struct Import {
    /// The keyspace: its name or id
    keyspace: String,
    /// A file of JSON lines, or `-` for standard input
    file: OsString,
}

/// Write all records of a keyspace as JSON lines, siblings included
#[derive(Debug, Args)]
#[command(after_help = "\
Each line is a record: {\"key\", \"siblings\": [{\"value\", \"gtid\", \"hlc\", \"server_id\"}]}
Keys and values that are not UTF-8 are \"key_base64\" and \"value_base64\". A file appears whole or
not at all. What is written meanwhile may be in it or not: this is no snapshot of one moment.

Examples:
  polyarch export notes notes.jsonl
  polyarch export notes | wc -l")]
pub(crate) struct Export {
    /// The keyspace: its name or id
    keyspace: String,
    /// The file to write, or `-` for standard output
    #[arg(default_value = "-")]
    file: OsString,
}

impl Import {
    pub(crate) fn run(self, connection: ConnectionArguments) -> Result<(), Failure> {
        let place = Place::from(self.file.as_os_str());
        let name = place.name();
        let (input, bytes) = place.open()?;
        connection.run(async |connection| {
            let mut stop_signals = StopSignals::listen()?.and_hang_up()?;
            let mut importing = Importing::new(connection.client.clone(), self.keyspace, progress_bar(bytes));
            let mut lines = read_ahead(Lines::of(input));
            let ended = tokio::select! {
                ended = importing.all(&mut lines, &name) => ended,
                signal = stop_signals.next() => Err(Failure::stopped(signal, signal.name())),
            };
            importing.finish(ended).await
        })
    }
}

/// Reads lines on a thread of its own: an input that is slow must not hold up what is under way.
fn read_ahead(lines: Lines) -> mpsc::Receiver<Result<Line, String>> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD_LINES);
    // Not tokio's own: the runtime would wait at its end for an input that nobody reads any more.
    std::thread::spawn(move || {
        for line in lines {
            let is_last = line.is_err();
            if sender.blocking_send(line).is_err() || is_last {
                return;
            }
        }
    });
    receiver
}

/// An import that is under way.
struct Importing {
    client: Client,
    keyspace: String,
    progress: ProgressBar,
    puts: JoinSet<(Bytes, Result<(), Error>)>,
    keys_in_flight: HashSet<Bytes>,
    done: u64,
}

impl Importing {
    fn new(client: Client, keyspace: String, progress: ProgressBar) -> Self {
        Self { client, keyspace, progress, puts: JoinSet::new(), keys_in_flight: HashSet::new(), done: 0 }
    }

    async fn all(&mut self, lines: &mut mpsc::Receiver<Result<Line, String>>, name: &str) -> Result<(), Failure> {
        while let Some(line) = lines.recv().await {
            let line = line.map_err(|problem| Failure::usage(format_args!("{name}: {problem}")))?;
            let record = ImportRecord::parse(&line.bytes);
            let number = line.number;
            let record = record.map_err(|problem| Failure::usage(format_args!("{name}, line {number}: {problem}")))?;
            self.begin(record).await?;
            self.progress.inc(line.bytes.len() as u64);
        }
        while self.one_done().await? {}
        Ok(())
    }

    /// Begins to put a record once there is room, and no other of its key is under way.
    async fn begin(&mut self, record: ImportRecord) -> Result<(), Failure> {
        while self.puts.len() >= IN_FLIGHT_MAX || self.keys_in_flight.contains(&record.key) {
            self.one_done().await?;
        }
        self.keys_in_flight.insert(record.key.clone());
        let (client, keyspace) = (self.client.clone(), self.keyspace.clone());
        self.puts.spawn(async move {
            let put = put(&client, &keyspace, &record).await;
            (record.key, put)
        });
        Ok(())
    }

    /// Waits for one record; `false` when none is under way.
    async fn one_done(&mut self) -> Result<bool, Failure> {
        let Some(joined) = self.puts.join_next().await else { return Ok(false) };
        let (key, put) = joined.expect("a put neither panics nor is aborted");
        self.keys_in_flight.remove(&key);
        put?;
        self.done += 1;
        self.progress.set_message(self.done.to_string());
        Ok(true)
    }

    /// Says how far it came, also when it failed: what is under way then is waited for, to be counted.
    async fn finish(mut self, ended: Result<(), Failure>) -> Result<(), Failure> {
        while let Ok(true) | Err(_) = self.one_done().await {}
        self.progress.finish_and_clear();
        let done = self.done;
        match ended {
            Ok(()) => note(&format!("imported {done} records")),
            Err(failure) => {
                return Err(failure
                    .after(format_args!("the import stopped after {done} records were put"))
                    .hint("it can be repeated from the beginning: a record that was put already is put again"));
            }
        }
        Ok(())
    }
}

/// The first value replaces what is there, and the others join it.
async fn put(client: &Client, keyspace: &str, record: &ImportRecord) -> Result<(), Error> {
    let mut supersede = Supersede::Held;
    for value in &record.values {
        client.put_with(keyspace, &record.key, value.clone(), supersede).await?;
        supersede = Supersede::Nothing;
    }
    Ok(())
}

/// Shown on stderr, and only on a terminal.
fn progress_bar(bytes: Option<u64>) -> ProgressBar {
    let (progress, template) = match bytes {
        Some(bytes) => (ProgressBar::new(bytes), "{bar:40} {percent:>3} %  {msg} records  {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg} records  {elapsed}"),
    };
    progress.with_style(ProgressStyle::with_template(template).expect("both templates are well formed"))
}

impl Export {
    pub(crate) fn run(self, connection: ConnectionArguments) -> Result<(), Failure> {
        connection.run(async |connection| {
            // In a session, so that no page is older than the one before it.
            let session = connection.client.session();
            let mut scan = session.scan(&self.keyspace, "");
            match Place::from(self.file.as_os_str()) {
                Place::Standard => export_to_stdout(&mut scan).await,
                Place::File(path) => export_to_file(&mut scan, path).await,
            }
        })
    }
}

async fn export_to_stdout(scan: &mut Scan) -> Result<(), Failure> {
    let mut output = Output::stdout();
    while let Some((key, record)) = scan.next().await? {
        output.json(&RecordObject::exported(&key, &record))?;
    }
    output.flush()
}

async fn export_to_file(scan: &mut Scan, path: PathBuf) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::file(&path, &error);
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = BufWriter::new(tempfile::NamedTempFile::new_in(directory).map_err(failed)?);
    let mut records = 0_u64;
    while let Some((key, record)) = scan.next().await? {
        write_json(&mut file, &RecordObject::exported(&key, &record)).map_err(failed)?;
        records += 1;
    }
    file.flush().map_err(failed)?;
    let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(&path).map_err(|error| failed(error.error))?;
    note(&format!("exported {records} records"));
    Ok(())
}

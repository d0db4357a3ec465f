//! `polyarch import` and `export`: whole keyspaces as JSON lines.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use polyarch_client::{
    Client, Error, KeyspaceKind, KeyspaceView, Record, Refusal, Scan, SealedContext, SiblingView, Supersede,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::connection::ConnectionArguments;
use crate::failure::Failure;
use crate::json::{ImportRecord, ImportValue, RecordObject};
use crate::signals::StopSignals;
use crate::terminal::{Line, Lines, Output, Place, escaped, note, write_json};

/// Records that are under way at once.
const IN_FLIGHT_MAX: usize = 512;
/// Lines that are read ahead.
const READ_AHEAD_LINES: usize = 256;

/// Put all records of a file of JSON lines
#[derive(Debug, Args)]
#[command(after_help = "\
Each line is a record:
  {\"key\": .., \"siblings\": [{\"value\": ..}, ..], \"context\": ..}  as `polyarch export` and `scan --json` print them
  {\"key\": .., \"value\": ..}                                  with --replace
Bytes that are not UTF-8 go as \"key_base64\" and \"value_base64\".

A record replaces what the export had seen, and no more: what was written since stays, beside it in an
mv keyspace; in an lww keyspace the newer of the two is left. A value that is still there is not put
again. Records without a context, and those of another cluster or keyspace, stop the import: with
--replace each record replaces whatever the node holds of its key, and of several with one key the
last remains.

The records are written one by one: an import that failed half-way says how many were, and can be
repeated.

Examples:
  polyarch import notes notes.jsonl
  polyarch export notes | polyarch --profile other.toml import notes - --replace")]
pub(crate) struct Import {
    /// The keyspace: its name or id
    keyspace: String,
    /// A file of JSON lines, or `-` for standard input
    file: OsString,
    /// Replace whatever the node holds of each key, also what was written since
    #[arg(long)]
    replace: bool,
}

/// Write all records of a keyspace as JSON lines, siblings and contexts included
#[derive(Debug, Args)]
#[command(after_help = "\
Each line is a record: {\"key\", \"siblings\": [{\"value\", \"gtid\", \"hlc\", \"server_id\"}], \"context\"}
Keys and values that are not UTF-8 are \"key_base64\" and \"value_base64\". The context says what was
shown, so that an import into the same keyspace replaces that and nothing newer. A file appears whole
or not at all. What is written meanwhile may be in it or not: this is no snapshot of one moment, which
`polyarch backup` is.

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
            let target = Target::find(&connection.client, self.keyspace, self.replace).await?;
            let mut importing = Importing::new(target, progress_bar(bytes));
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

/// Where records go, and what they replace there.
struct Target {
    /// In a session, so that what was put is found at whatever node answers next.
    client: Client,
    keyspace: String,
    /// `None` replaces whatever is held.
    merges: Option<KeyspaceKind>,
}

/// What became of a record.
enum Imported {
    Put,
    /// All of its values are there.
    Unchanged,
    /// A newer value is, in an `lww` keyspace.
    Newer,
}

/// An import that is under way.
struct Importing {
    target: Arc<Target>,
    progress: ProgressBar,
    puts: JoinSet<(Bytes, Result<Imported, Error>)>,
    keys_in_flight: HashSet<Bytes>,
    put: u64,
    unchanged: u64,
    newer: u64,
}

impl Importing {
    fn new(target: Target, progress: ProgressBar) -> Self {
        let (puts, keys_in_flight) = (JoinSet::new(), HashSet::new());
        Self { target: Arc::new(target), progress, puts, keys_in_flight, put: 0, unchanged: 0, newer: 0 }
    }

    async fn all(&mut self, lines: &mut mpsc::Receiver<Result<Line, String>>, name: &str) -> Result<(), Failure> {
        while let Some(line) = lines.recv().await {
            let line = line.map_err(|problem| Failure::usage(format_args!("{name}: {problem}")))?;
            let record = ImportRecord::parse(&line.bytes);
            let number = line.number;
            let record = record.map_err(|problem| Failure::usage(format_args!("{name}, line {number}: {problem}")))?;
            if self.target.merges.is_some() && record.context.is_none() {
                let what = "the record has no context, which says what it may replace";
                return Err(Failure::usage(format_args!("{name}, line {number}: {what}")).hint(REPLACE));
            }
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
        let target = Arc::clone(&self.target);
        self.puts.spawn(async move {
            let put = target.put(&record).await;
            (record.key, put)
        });
        Ok(())
    }

    /// Waits for one record; `false` when none is under way.
    async fn one_done(&mut self) -> Result<bool, Failure> {
        let Some(joined) = self.puts.join_next().await else { return Ok(false) };
        let (key, put) = joined.expect("a put neither panics nor is aborted");
        self.keys_in_flight.remove(&key);
        match put.map_err(|error| not_put(&key, error))? {
            Imported::Put => self.put += 1,
            Imported::Unchanged => self.unchanged += 1,
            Imported::Newer => self.newer += 1,
        }
        self.progress.set_message(self.done().to_string());
        Ok(true)
    }

    fn done(&self) -> u64 {
        self.put + self.unchanged + self.newer
    }

    /// Says how far it came, also when it failed: what is under way then is waited for, to be counted.
    async fn finish(mut self, ended: Result<(), Failure>) -> Result<(), Failure> {
        while let Ok(true) | Err(_) = self.one_done().await {}
        self.progress.finish_and_clear();
        let done = self.done();
        let Self { put, unchanged, newer, .. } = self;
        match ended {
            Ok(()) if unchanged + newer > 0 => {
                let left = if newer > 0 { format!(", {newer} with a newer value there") } else { String::new() };
                note(&format!("imported {done} records: {put} put, {unchanged} unchanged{left}"));
            }
            Ok(()) => note(&format!("imported {done} records")),
            Err(failure) => {
                return Err(failure
                    .after(format_args!("the import stopped after {done} records"))
                    .or_hint("it can be repeated from the beginning"));
            }
        }
        Ok(())
    }
}

/// What to do with records whose contexts mean nothing here.
const REPLACE: &str = "with --replace each record replaces whatever the node holds of its key";

fn not_put(key: &[u8], error: Error) -> Failure {
    let is_context = matches!(error, Error::Refused(Refusal::Context(_)));
    let failure = Failure::from(error).after(format_args!("key {}", escaped(key)));
    match is_context {
        true => failure.hint(format_args!(
            "a context is of one key of one keyspace of one cluster, and this record is of another; {REPLACE}"
        )),
        false => failure,
    }
}

impl Target {
    async fn find(client: &Client, keyspace: String, replaces: bool) -> Result<Self, Failure> {
        let client = Client::clone(&client.session());
        let merges = match replaces {
            true => None,
            false => {
                let is_named = |view: &KeyspaceView| view.by_name && view.name == keyspace;
                let is_it = |view: &KeyspaceView| is_named(view) || view.id.to_string() == keyspace;
                let found = client.keyspaces().await?.into_iter().find(is_it);
                let found = found.ok_or_else(|| Error::Refused(Refusal::UnknownKeyspace(keyspace.clone())))?;
                Some(found.kind)
            }
        };
        Ok(Self { client, keyspace, merges })
    }

    async fn put(&self, record: &ImportRecord) -> Result<Imported, Error> {
        match (self.merges, &record.context) {
            (Some(kind), Some(context)) => self.merge(record, kind, context).await,
            _ => self.put_all(record, &record.values.iter().collect::<Vec<_>>(), Supersede::Held).await,
        }
    }

    /// Puts what is not there, in the place of what the context names.
    async fn merge(
        &self,
        record: &ImportRecord,
        kind: KeyspaceKind,
        context: &SealedContext,
    ) -> Result<Imported, Error> {
        let held = self.client.get(&self.keyspace, &record.key).await?;
        let siblings = held.as_ref().map(Record::siblings).unwrap_or_default();
        let missing: Vec<&ImportValue> = record.values.iter().filter(|value| !is_held(value, siblings)).collect();
        if missing.is_empty() {
            return Ok(Imported::Unchanged);
        }
        // There a context adds to what is replaced, so whether something is newer is for us to see.
        if kind == KeyspaceKind::Lww
            && siblings.iter().any(|held| missing.iter().all(|value| Some(held.hlc) > value.hlc))
        {
            return Ok(Imported::Newer);
        }
        // The context names those, too, that are there and are to stay. What is missing beside them was
        // superseded already; or has not come yet, and then stands there twice.
        let supersede = match missing.len() == record.values.len() {
            true => Supersede::Shown(context.clone()),
            false => Supersede::Nothing,
        };
        self.put_all(record, &missing, supersede).await
    }

    /// The first value replaces what is named, and the others join it.
    async fn put_all(
        &self,
        record: &ImportRecord,
        values: &[&ImportValue],
        mut supersede: Supersede,
    ) -> Result<Imported, Error> {
        for value in values {
            self.client.put_with(&self.keyspace, &record.key, value.value.clone(), supersede).await?;
            supersede = Supersede::Nothing;
        }
        Ok(Imported::Put)
    }
}

/// Whether a value is there: the very write, or an equal value that an earlier import put or somebody wrote.
fn is_held(value: &ImportValue, siblings: &[SiblingView]) -> bool {
    siblings.iter().any(|held| Some(held.dot) == value.gtid || held.value == value.value)
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

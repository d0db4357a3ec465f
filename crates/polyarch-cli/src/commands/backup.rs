//! `polyarch backup`: all that a node has, into a directory, while it serves.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use polyarch_client::{Client, NodeAddress, SnapshotStream, StatusView};
use polyarch_protocol::SnapshotPart;
use polyarch_store::files::Directory;
use polyarch_store::{BackupDirectory, BackupManifest, BackupOrigin, SnapshotReceiver};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::connection::{Connection, ConnectionArguments};
use crate::failure::Failure;
use crate::json::BackupObject;
use crate::signals::StopSignals;
use crate::terminal::{Output, note, shell_word};

/// Frames that are read before they are on their way to the disk.
const FRAMES_AHEAD: usize = 8;

/// Write all that a node has into a new directory, while it serves
#[derive(Debug, Args)]
#[command(after_help = "\
The node that answers is backed up: its records at one moment and the write sets that came while they
were read. Writers do not wait. The directory is made, and holds manifest.toml once the backup is
complete; without it, the same command goes on with what is there, or begins anew when the node has
let go of it (60 s after it broke off, and whenever the node was restarted). Needs the role admin.

The backup holds the key of the cluster, with which contexts can be forged: its files are for their
owner only, and it is to be kept as a node's data are.

With --json:
  {\"directory\", \"cluster\", \"cluster_id\", \"donor\", \"version\", \"time\", \"records\", \"write_sets\",
   \"bytes\", \"blake3\", \"began_with\": [GTID..], \"holds\": [GTID..], \"log_end\": SEGMENT:OFFSET,
   \"authority\": SHA-256 of the ca}

Examples:
  polyarch backup monday --node 127.0.0.1:7401
  polyarch verify monday && polyarch restore monday --config certs/node-1.toml")]
pub(crate) struct Backup {
    /// The directory to make
    directory: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A file on its way in.
type Incoming = SnapshotReceiver<Directory>;

impl Backup {
    pub(crate) fn run(self, connection: ConnectionArguments) -> Result<(), Failure> {
        connection.run(async |connection| {
            let mut stop_signals = StopSignals::listen()?.and_hang_up()?;
            let directory = BackupDirectory::open(&self.directory)?;
            let progress = progress_bar();
            let ended = tokio::select! {
                ended = back_up(connection, directory, &progress) => ended,
                signal = stop_signals.next() => Err(Failure::stopped(signal, signal.name())),
            };
            progress.finish_and_clear();
            let manifest = ended.map_err(|failure| not_complete(failure, &self.directory))?;
            print(&self.directory, &manifest, self.json)
        })
    }
}

/// What came stays for another try; where nothing came, nothing is left.
fn not_complete(failure: Failure, directory: &Path) -> Failure {
    // It may not have been empty before, or be somebody's mount point.
    let _ = BackupDirectory::remove_unbegun(directory);
    if !directory.exists() {
        return failure;
    }
    let word = shell_word(directory);
    failure
        .after("the backup is not complete")
        .or_hint(format_args!("`polyarch backup {word}` goes on with it; to give it up, remove {word}"))
}

async fn back_up(
    connection: &Connection,
    directory: BackupDirectory,
    progress: &ProgressBar,
) -> Result<BackupManifest, Failure> {
    let begun = directory.begun()?;
    let (node, status) = donor(connection, begun.as_ref()).await?;
    let origin = BackupOrigin {
        cluster: connection.client.cluster().to_owned(),
        authority: connection.client.authority_sha256().to_owned(),
        version: status.version.clone(),
        time: String::new(),
    };
    let directory = match begun {
        Some(begun) if begun.is_whole() => directory,
        begun => fetch(&connection.client, &node, directory, begun, progress).await?,
    };
    progress.set_message("reading it once more");
    let completed =
        spawn_blocking(move || directory.complete(BackupOrigin { time: now()?, ..origin }).map_err(Failure::from));
    completed.await.map_err(|error| Failure::refused(format_args!("the backup ended: {error}")))?
}

/// The node to back up: the one that answers; for a backup that was begun, the one that it is of.
async fn donor(connection: &Connection, begun: Option<&Incoming>) -> Result<(NodeAddress, StatusView), Failure> {
    let (node, status) = connection.client.status_with_node().await?;
    let Some(begun) = begun.map(Incoming::begun) else { return Ok((node, status)) };
    let is_it =
        |status: &StatusView| status.server_id == begun.donor && status.cluster_id == begun.cluster_id.to_string();
    if is_it(&status) {
        return Ok((node, status));
    }
    for other in connection.nodes.iter().filter(|other| **other != node) {
        if let Ok(status) = connection.client.status_of(other).await
            && is_it(&status)
        {
            return Ok((other.clone(), status));
        }
    }
    let donor = begun.donor;
    Err(Failure::refused(format_args!(
        "the directory holds the beginning of a backup of server {donor}, which does not answer here"
    ))
    .hint("name that node with --node, or use a new directory"))
}

/// Fetches what is missing. Gives the directory back, in which the file is whole then.
async fn fetch(
    client: &Client,
    node: &NodeAddress,
    directory: BackupDirectory,
    begun: Option<Incoming>,
    progress: &ProgressBar,
) -> Result<BackupDirectory, Failure> {
    let mut stream = client.snapshot_of(node, begun.as_ref().map(Incoming::resume)).await?;
    let (frames, incoming) = mpsc::channel(FRAMES_AHEAD);
    let shown = progress.clone();
    let taking = spawn_blocking(move || take(directory, begun, incoming, &shown));
    let sent = send(&mut stream, frames).await;
    let taken = taking.await.map_err(|error| Failure::refused(format_args!("the backup ended: {error}")))?;
    // What the disk said goes first: then the node was not heard to its end.
    let directory = taken?;
    sent.map(|()| directory)
}

/// Hands frames on; ends early when nobody takes them any more, who then says why.
async fn send(stream: &mut SnapshotStream, frames: mpsc::Sender<Bytes>) -> Result<(), Failure> {
    while let Some(frame) = stream.next().await? {
        if frames.send(frame).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Takes frames to the disk, on a thread of its own.
fn take(
    directory: BackupDirectory,
    mut begun: Option<Incoming>,
    mut incoming: mpsc::Receiver<Bytes>,
    progress: &ProgressBar,
) -> Result<BackupDirectory, Failure> {
    let Some(first) = incoming.blocking_recv() else { return Ok(directory) };
    let goes_on = matches!(SnapshotPart::decode(&first), Ok(SnapshotPart::Resumed(_)));
    let mut receiver = match begun.take().filter(|_| goes_on) {
        Some(mut begun) => {
            begun.push(&first)?;
            begun
        }
        None => directory.begin(&first)?,
    };
    while let Some(frame) = incoming.blocking_recv() {
        receiver.push(&frame)?;
        let so_far = receiver.progress();
        progress.set_message(format!("{} records", so_far.records));
        progress.set_position(so_far.bytes);
    }
    Ok(directory)
}

fn now() -> Result<String, Failure> {
    let now = OffsetDateTime::now_utc();
    let now = now.replace_nanosecond(0).unwrap_or(now);
    now.format(&Rfc3339).map_err(|error| Failure::usage(format_args!("the clock's time cannot be written: {error}")))
}

/// Shown on stderr, and only on a terminal. How much there will be nobody knows.
fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg}  {bytes}  {bytes_per_sec}  {elapsed}");
    ProgressBar::new_spinner().with_style(style.expect("the template is well formed"))
}

fn print(directory: &Path, manifest: &BackupManifest, json: bool) -> Result<(), Failure> {
    let mut output = Output::stdout();
    if json {
        output.json(&BackupObject::of(directory, manifest))?;
    } else {
        let BackupManifest { donor, cluster, records, write_sets, bytes, .. } = manifest;
        output.line(format_args!(
            "backed up server {donor} of cluster {cluster} into {}: {records} records and {write_sets} write sets, {bytes} bytes",
            directory.display()
        ))?;
        note("it holds the key of the cluster: keep it as you keep a node's data");
    }
    output.flush()
}

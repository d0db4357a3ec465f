//! The receiver's side: what comes in goes into files, until it is whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use polyarch_protocol::limits::wire;
use polyarch_protocol::peer::ClusterId;
use polyarch_protocol::{SnapshotPart, SnapshotRequest};
use polyarch_store::files::{Directory, Files};
use polyarch_transport::Connection;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::warn;

/// Frames that are read before they are on their way to the disk.
const FRAMES_AHEAD: usize = 8;
/// How long a donor may be silent.
const SILENT_MAX: Duration = Duration::from_secs(30);

/// A snapshot on its way in.
pub(crate) type Incoming = polyarch_store::SnapshotReceiver<Directory>;

/// How far a fetch is, for whoever asks.
#[derive(Debug, Default)]
pub(crate) struct SnapshotProgress {
    pub(crate) records: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

/// A snapshot that is to be fetched.
pub(crate) struct Fetch {
    pub(crate) connection: Connection,
    /// The donor's server id.
    pub(crate) donor: u32,
    pub(crate) cluster_id: ClusterId,
    pub(crate) files: Directory,
    /// What stays free on the disk, for the log and the checkpoints.
    pub(crate) floor_bytes: u64,
    pub(crate) progress: Arc<SnapshotProgress>,
}

impl Fetch {
    /// Fetches it whole, or goes on with what an earlier fetch left.
    pub(crate) async fn run(self) -> Result<Incoming, String> {
        let Self { connection, donor, cluster_id, files, floor_bytes, progress } = self;
        let opened = files.clone();
        let held = tokio::task::spawn_blocking(move || Incoming::open(opened)).await;
        // One that cannot be read is begun anew.
        let held = held.map_err(|error| error.to_string())?.unwrap_or_else(|error| {
            warn!(%error, "a snapshot that was on its way in cannot be gone on with");
            None
        });
        let mut held = held.filter(|held| held.begun().donor == donor && held.begun().cluster_id == cluster_id);
        if let Some(whole) = held.take_if(|held| held.is_whole()) {
            return Ok(whole);
        }
        let resume = held.as_ref().map(Incoming::resume);
        let (mut writer, mut reader) = connection.open_bi().await.map_err(|reason| reason.to_string())?;
        writer.queue(&SnapshotRequest { resume }.encode());
        writer.flush().await.map_err(|error| error.to_string())?;

        let (frames, incoming) = mpsc::channel(FRAMES_AHEAD);
        let taking = Taking { held, files, floor_bytes, donor, cluster_id, progress };
        let taken = tokio::task::spawn_blocking(move || taking.all(incoming));
        let broken = loop {
            match timeout(SILENT_MAX, reader.next(wire::FRAME_BYTES_MAX)).await {
                Ok(Ok(Some(frame))) => {
                    // It takes no more once it has met an error, and says which.
                    if frames.send(frame).await.is_err() {
                        break None;
                    }
                }
                Ok(Ok(None)) => break None,
                Ok(Err(error)) => break Some(error.to_string()),
                Err(_) => break Some("it is silent".to_owned()),
            }
        };
        drop(frames);
        taken.await.map_err(|error| error.to_string())?.map_err(|reason| broken.unwrap_or(reason))
    }
}

/// What takes frames to the disk, on a thread of its own.
struct Taking {
    held: Option<Incoming>,
    files: Directory,
    floor_bytes: u64,
    donor: u32,
    cluster_id: ClusterId,
    progress: Arc<SnapshotProgress>,
}

impl Taking {
    fn all(mut self, mut incoming: mpsc::Receiver<Bytes>) -> Result<Incoming, String> {
        let Some(first) = incoming.blocking_recv() else { return Err("the donor said nothing".to_owned()) };
        let mut receiver = self.begin(&first)?;
        while let Some(frame) = incoming.blocking_recv() {
            if let Some(free) = self.files.free_bytes().filter(|free| *free < self.floor_bytes) {
                // What is there would take that room for as long as nobody makes more.
                receiver.remove().map_err(|error| error.to_string())?;
                return Err(format!("it leaves {free} bytes free on the disk, fewer than {}", self.floor_bytes));
            }
            receiver.push(&frame).map_err(|error| error.to_string())?;
            let progress = receiver.progress();
            self.progress.records.store(progress.records, Ordering::Relaxed);
            self.progress.bytes.store(progress.bytes, Ordering::Relaxed);
        }
        match receiver.is_whole() {
            true => Ok(receiver),
            false => Err("it ended before its end".to_owned()),
        }
    }

    /// The first part says whether it goes on with what is held.
    fn begin(&mut self, frame: &Bytes) -> Result<Incoming, String> {
        match SnapshotPart::decode(frame).map_err(|error| error.to_string())? {
            SnapshotPart::Begin(begin) if begin.cluster_id != self.cluster_id || begin.donor != self.donor => {
                Err(format!("it is of server {} of cluster {}", begin.donor, begin.cluster_id))
            }
            SnapshotPart::Begin(_) => Incoming::begin(self.files.clone(), frame).map_err(|error| error.to_string()),
            SnapshotPart::GivenUp(reason) => Err(reason),
            _ => {
                let mut held = self.held.take().ok_or_else(|| "it goes on with what was not asked for".to_owned())?;
                held.push(frame).map_err(|error| error.to_string())?;
                Ok(held)
            }
        }
    }
}

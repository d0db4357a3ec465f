//! The donor's side of snapshots: one stream for each, on a link or on an operator's connection.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use polyarch_protocol::peer::ClusterId;
use polyarch_protocol::{
    LinkId, SnapshotBegin, SnapshotId, SnapshotPart, SnapshotRequest, SnapshotSource, SnapshotStep,
};
use polyarch_store::{DonorRecords, Pin};
use polyarch_transport::{CloseCode, FrameWriter};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use crate::driver::{ToDriver, ToDriverSender};
use crate::view::View;
use crate::{LogReader, random_u128};

/// Walks that run at one time. A member that is turned away asks again.
const WALKS_MAX: usize = 4;
/// Parts that are read before they are sent.
const PARTS_AHEAD: usize = 4;
/// How long a receiver may take nothing before its walk is broken off.
const STALL_MAX: Duration = Duration::from_secs(30);
/// How long what a walk had pinned is held for a receiver that may come back.
const HOLD: Duration = Duration::from_secs(60);
/// How long a walk may pin log and absorb entries at all, broken off and gone on with or not.
const WALK_MAX: Duration = Duration::from_secs(3_600);

/// What a walk begins from, and keeps.
pub(crate) struct Pinned {
    pub(crate) pin: Pin,
}

/// Serves snapshots.
pub(crate) struct Donor {
    pub(crate) view: Arc<View>,
    pub(crate) log: LogReader,
    pub(crate) driver: ToDriverSender,
    pub(crate) cluster_id: ClusterId,
    pub(crate) server_id: u32,
    pub(crate) walks: Arc<Semaphore>,
    /// Walks that broke off.
    pub(crate) held: Mutex<BTreeMap<SnapshotId, Arc<Walk>>>,
}

/// One walk, as often as it is begun.
pub(crate) struct Walk {
    begin: SnapshotBegin,
    pin: Pin,
    since: Instant,
}

impl Donor {
    pub(crate) fn new(
        view: Arc<View>,
        log: LogReader,
        driver: ToDriverSender,
        cluster_id: ClusterId,
        server_id: u32,
    ) -> Self {
        let (walks, held) = (Arc::new(Semaphore::new(WALKS_MAX)), Mutex::default());
        Self { view, log, driver, cluster_id, server_id, walks, held }
    }

    /// Answers a request for a snapshot on the stream that it came on. `to` says to whom, in words.
    pub(crate) async fn serve(self: Arc<Self>, frame: &[u8], mut writer: FrameWriter, to: String) {
        let request = match SnapshotRequest::decode(frame) {
            Ok(request) => request,
            Err(error) => return give_up(&mut writer, error.to_string()).await,
        };
        let Ok(_permit) = self.walks.clone().try_acquire_owned() else {
            return give_up(&mut writer, format!("it sends {WALKS_MAX} snapshots already")).await;
        };
        let (walk, source) = match self.walk(request).await {
            Ok(walk) => walk,
            Err(reason) => return give_up(&mut writer, reason).await,
        };
        let id = walk.begin.id;
        info!(%to, %id, "sending a snapshot");
        match self.clone().send(walk.clone(), source, &mut writer).await {
            Ok(records) => info!(%to, %id, records, "sent a snapshot"),
            Err(reason) => {
                warn!(%to, %id, %reason, "a snapshot was not sent to its end");
                writer.reset(CloseCode::NONE);
                self.hold(walk);
            }
        }
    }

    /// The walk that is asked for, if it is still held, or a new one.
    async fn walk(&self, request: SnapshotRequest) -> Result<(Arc<Walk>, SnapshotSource), String> {
        if let Some(resume) = request.resume
            && let Some(walk) = self.held.lock().remove(&resume.id).filter(|walk| walk.goes_on().is_ok())
        {
            let source = SnapshotSource::resumed(walk.begin.clone(), walk.pin.position(), resume.keys);
            return Ok((walk, source));
        }
        let Pinned { pin } = self.pin().await?;
        let start = pin.start().outline();
        let id = SnapshotId(random_u128());
        let begin = SnapshotBegin { id, cluster_id: self.cluster_id, donor: self.server_id, start };
        let source = SnapshotSource::new(begin.clone(), pin.position());
        Ok((Arc::new(Walk { begin, pin, since: Instant::now() }), source))
    }

    /// Whether the member on this link has said who it is, and is one to whom this node speaks.
    pub(crate) async fn knows(&self, link: LinkId) -> bool {
        let (sender, known) = oneshot::channel();
        let _ = self.driver.send(ToDriver::IsEstablished(link, sender));
        known.await.unwrap_or(false)
    }

    /// Pins what is durable now.
    async fn pin(&self) -> Result<Pinned, String> {
        let (sender, pinned) = oneshot::channel();
        let _ = self.driver.send(ToDriver::Pin(sender));
        pinned.await.map_err(|_| "its log takes nothing more".to_owned())
    }

    /// Reads on a thread of its own and sends what comes, at the receiver's pace. Says how many
    /// records there were.
    async fn send(
        self: Arc<Self>,
        walk: Arc<Walk>,
        mut source: SnapshotSource,
        writer: &mut FrameWriter,
    ) -> Result<u64, String> {
        let (sender, mut parts) = mpsc::channel(PARTS_AHEAD);
        let reading = tokio::task::spawn_blocking(move || self.read(&walk, &mut source, &sender));
        while let Some(part) = parts.recv().await {
            writer.queue(&part);
            let flushed = timeout(STALL_MAX, writer.flush()).await;
            flushed.map_err(|_| "the receiver takes nothing".to_owned())?.map_err(|error| error.to_string())?;
        }
        let read = reading.await.map_err(|error| error.to_string())?;
        match read {
            Ok(records) => {
                writer.finish().await.map_err(|error| error.to_string())?;
                // The receiver has it all, and asks no more.
                let _ = timeout(STALL_MAX, writer.delivered()).await;
                Ok(records)
            }
            Err(reason) => {
                give_up(writer, reason.clone()).await;
                Err(reason)
            }
        }
    }

    fn read(&self, walk: &Walk, source: &mut SnapshotSource, parts: &mpsc::Sender<Vec<u8>>) -> Result<u64, String> {
        let published_end = || self.view.published().position;
        let records = DonorRecords { records: &self.view.records, log: &self.log, published_end };
        loop {
            walk.goes_on()?;
            match source.poll(&records) {
                SnapshotStep::Part(part) => {
                    if parts.blocking_send(part).is_err() {
                        return Err("the receiver is gone".to_owned());
                    }
                }
                SnapshotStep::AwaitDurable => self.sync()?,
                SnapshotStep::Done => return Ok(source.records()),
                SnapshotStep::Failed(reason) => return Err(reason),
            }
        }
    }

    /// Returns when all that is published now is durable.
    fn sync(&self) -> Result<(), String> {
        let (sender, pinned) = oneshot::channel();
        let _ = self.driver.send(ToDriver::Pin(sender));
        pinned.blocking_recv().map(drop).map_err(|_| "its log takes nothing more".to_owned())
    }

    /// Keeps what a walk had pinned for a while.
    fn hold(self: Arc<Self>, walk: Arc<Walk>) {
        let id = walk.begin.id;
        let mut held = self.held.lock();
        if held.len() >= WALKS_MAX
            && let Some(oldest) = held.iter().min_by_key(|(_, walk)| walk.since)
        {
            let oldest = *oldest.0;
            held.remove(&oldest);
        }
        held.insert(id, walk);
        drop(held);
        // A node that stops is not held up by it.
        let donor = Arc::downgrade(&self);
        tokio::spawn(async move {
            tokio::time::sleep(HOLD).await;
            if let Some(donor) = donor.upgrade() {
                donor.held.lock().remove(&id);
            }
        });
    }
}

impl Walk {
    fn goes_on(&self) -> Result<(), String> {
        match self.pin.is_valid() {
            false => Err("it joined a snapshot itself".to_owned()),
            true if self.since.elapsed() > WALK_MAX => {
                Err(format!("it took more than {} minutes", WALK_MAX.as_secs() / 60))
            }
            true => Ok(()),
        }
    }
}

pub(crate) async fn give_up(writer: &mut FrameWriter, reason: String) {
    writer.queue(&SnapshotPart::GivenUp(reason).encode());
    // The receiver may be gone.
    let _ = timeout(STALL_MAX, async {
        writer.flush().await?;
        writer.finish().await
    })
    .await;
}

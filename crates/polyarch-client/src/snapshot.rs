use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use polyarch_protocol::limits::wire::FRAME_BYTES_MAX;
use polyarch_protocol::{Resume, SnapshotPart, SnapshotRequest};
use polyarch_transport::{CloseReason, FrameReader, StreamError};
use tokio::time::{Instant, timeout, timeout_at};

use crate::address::NodeAddress;
use crate::client::Client;
use crate::error::Error;
use crate::link::Link;
use crate::nodes::Nodes;

/// How long a node may be silent in the middle of a snapshot.
const SILENT_MAX: Duration = Duration::from_secs(30);

/// A snapshot of one node on its way in, from [`Client::snapshot_of`]. Dropped before its end, it tells the node to stop
/// sending.
///
/// It is read at the caller's pace: no more is held here than what one stream may have under way. A node gives a
/// caller up that takes nothing for 30 s.
pub struct SnapshotStream {
    node: NodeAddress,
    /// The first frame, which was looked at.
    first: Option<Bytes>,
    reader: FrameReader,
    is_over: bool,
    // Alive as long as the stream is read.
    _link: Arc<Link>,
    _nodes: Arc<Nodes>,
}

impl SnapshotStream {
    /// Asks the client's only node, and waits for the first frame.
    pub(crate) async fn open(client: &Client, resume: Option<Resume>) -> Result<Self, Error> {
        let deadline = Instant::now() + client.timeout;
        let (index, link) = client.nodes.link(deadline).await?;
        let node = client.nodes.address(index).clone();
        let opening = timeout_at(deadline, ask(&link, &SnapshotRequest { resume })).await;
        let (first, reader) = match opening {
            Ok(Ok(answered)) => answered,
            Ok(Err(error)) => return Err(unanswered(node, &error)),
            Err(_) => return Err(Error::TimedOut { node, after: client.timeout }),
        };
        let Some(first) = first else {
            return Err(Error::SnapshotBrokeOff { node, cause: "it said nothing".to_owned() });
        };
        match SnapshotPart::decode(&first) {
            Ok(SnapshotPart::GivenUp(reason)) => Err(Error::SnapshotGivenUp { node, reason }),
            Ok(_) => {
                let (_link, _nodes) = (link, Arc::clone(&client.nodes));
                Ok(Self { node, first: Some(first), reader, is_over: false, _link, _nodes })
            }
            Err(error) => Err(Error::Protocol { node, cause: format!("asked for a snapshot it sent a {error}") }),
        }
    }

    /// The node that sends it.
    pub fn node(&self) -> &NodeAddress {
        &self.node
    }

    /// The next frame; `None` behind the last. Cancel safe.
    ///
    /// # Errors
    /// [`Error::SnapshotGivenUp`] when the node cannot go on, [`Error::SnapshotBrokeOff`] when it is lost or is silent for
    /// 30 s, or the stream ended before its end: the last frame of a whole snapshot is its `End`.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        let frame = match timeout(SILENT_MAX, self.reader.next(FRAME_BYTES_MAX)).await {
            Ok(Ok(Some(frame))) => frame,
            Ok(Ok(None)) if self.is_over => return Ok(None),
            Ok(Ok(None)) => return Err(self.broke_off("it ended before its end".to_owned())),
            Ok(Err(error)) => return Err(self.broke_off(error.to_string())),
            Err(_) => return Err(self.broke_off(format!("nothing came for {SILENT_MAX:?}"))),
        };
        match SnapshotPart::decode(&frame) {
            Ok(SnapshotPart::GivenUp(reason)) => Err(Error::SnapshotGivenUp { node: self.node.clone(), reason }),
            Ok(SnapshotPart::End(_)) => {
                self.is_over = true;
                Ok(Some(frame))
            }
            Ok(_) => Ok(Some(frame)),
            Err(error) => Err(Error::Protocol { node: self.node.clone(), cause: format!("it sent a {error}") }),
        }
    }

    fn broke_off(&self, cause: String) -> Error {
        Error::SnapshotBrokeOff { node: self.node.clone(), cause }
    }
}

impl fmt::Debug for SnapshotStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotStream")
            .field("node", &self.node)
            .field("is_over", &self.is_over)
            .finish_non_exhaustive()
    }
}

async fn ask(link: &Link, request: &SnapshotRequest) -> Result<(Option<Bytes>, FrameReader), StreamError> {
    let (mut writer, mut reader) = link.open_stream().await.map_err(StreamError::ConnectionLost)?;
    writer.queue(&request.encode());
    writer.flush().await?;
    let first = reader.next(FRAME_BYTES_MAX).await?;
    Ok((first, reader))
}

/// A node that does not know the question takes it for a frame that is none, and closes the connection; so does one that
/// stops.
fn unanswered(node: NodeAddress, error: &StreamError) -> Error {
    let cause = match error {
        StreamError::ConnectionLost(CloseReason::ByPeer { .. }) => {
            format!("{error}; if it runs a version before snapshots, upgrade it")
        }
        _ => error.to_string(),
    };
    Error::SnapshotBrokeOff { node, cause }
}

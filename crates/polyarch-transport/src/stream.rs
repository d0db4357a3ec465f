//! Streams of frames on a connection: one half writes, the other reads.
//!
//! Both halves work in batches, because a system call or a lock per message is what small messages cost most. A writer
//! queues any number of frames and hands them over in one write; a reader takes what has arrived in one read and cuts it
//! into frames without waiting again.

use bytes::{BufMut, Bytes, BytesMut};

use crate::connection::{CloseCode, CloseReason, Connection};
use crate::frame::{BUFFER_BYTES_MIN, FrameDecoder, FrameError};

/// How many pieces of a stream, about a packet each, are taken in one read.
const CHUNKS_PER_READ: usize = 32;

/// The sending half of a stream.
///
/// The peer learns of a new stream with the first bytes on it, not before. A writer that is dropped ends its stream after
/// what was flushed; frames that were only queued are lost.
#[derive(Debug)]
pub struct FrameWriter {
    stream: quinn::SendStream,
    /// Being written; the rest of an earlier, cancelled flush comes first.
    outgoing: Bytes,
    /// Queued since.
    queued: BytesMut,
    connection: Connection,
}

impl FrameWriter {
    pub(crate) fn new(stream: quinn::SendStream, connection: Connection) -> Self {
        Self { stream, outgoing: Bytes::new(), queued: BytesMut::new(), connection }
    }

    /// Appends a frame to what the next [`flush`](Self::flush) writes. The bytes are copied.
    ///
    /// # Panics
    ///
    /// If the frame has 4 GiB or more: no reader takes it.
    pub fn queue(&mut self, frame: &[u8]) {
        self.queue_parts(&[frame]);
    }

    /// Appends one frame that is given in parts, say a head and a body that live in different places.
    ///
    /// # Panics
    ///
    /// If the parts together have 4 GiB or more: no reader takes it.
    pub fn queue_parts(&mut self, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let header = u32::try_from(len).expect("a frame is shorter than 4 GiB").to_le_bytes();
        let needed = header.len() + len;
        if self.queued.capacity() - self.queued.len() < needed {
            self.queued.reserve(needed.max(BUFFER_BYTES_MIN));
        }
        self.queued.put_slice(&header);
        for part in parts {
            self.queued.put_slice(part);
        }
    }

    /// Bytes, with headers, that were queued and not yet handed over. Bound it: nothing else does.
    pub fn queued_bytes(&self) -> usize {
        self.outgoing.len() + self.queued.len()
    }

    /// Hands all queued frames over, in one write where the windows allow it. Waits while the peer, or the link, is
    /// slower. What was handed over is sent and repeated as needed; it is not known to have arrived.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped before it is done, a later flush goes on at the very byte.
    ///
    /// # Errors
    ///
    /// [`StreamError::Stopped`], [`StreamError::ConnectionLost`], [`StreamError::Finished`]. An unknown part of what was
    /// queued has reached the peer.
    pub async fn flush(&mut self) -> Result<(), StreamError> {
        loop {
            if self.outgoing.is_empty() {
                if self.queued.is_empty() {
                    return Ok(());
                }
                self.outgoing = self.queued.split().freeze();
            }
            self.stream.write_chunks(std::slice::from_mut(&mut self.outgoing)).await?;
        }
    }

    /// Flushes and ends the stream: after the last frame the reader sees a clean end.
    ///
    /// # Cancel safety
    ///
    /// As [`flush`](Self::flush).
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush).
    pub async fn finish(&mut self) -> Result<(), StreamError> {
        self.flush().await?;
        self.stream.finish().map_err(|_| StreamError::Finished)
    }

    /// Waits, after [`finish`](Self::finish), until the peer's transport has acknowledged everything. Do so before the
    /// connection is closed: closing drops what is under way. It does not say that the peer's program has read it.
    ///
    /// # Errors
    ///
    /// [`StreamError::Stopped`] when the peer will not read the rest, [`StreamError::ConnectionLost`].
    pub async fn delivered(&self) -> Result<(), StreamError> {
        match self.stream.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(code)) => Err(StreamError::Stopped { code: code.into() }),
            Err(quinn::StoppedError::ConnectionLost(cause)) => Err(StreamError::ConnectionLost(cause.into())),
            Err(quinn::StoppedError::ZeroRttRejected) => unreachable!("early data is never sent"),
        }
    }

    /// Gives the stream up: what was not yet sent is dropped, and the reader gets [`StreamError::Reset`].
    pub fn reset(&mut self, code: CloseCode) {
        self.outgoing = Bytes::new();
        self.queued.clear();
        // An error only says that the stream has ended already.
        let _ = self.stream.reset(code.into());
    }

    /// Sets the priority of this stream among those of the connection: greater goes first, 0 is usual. Streams of equal
    /// priority take turns.
    pub fn set_priority(&self, priority: i32) {
        // An error only says that the stream has ended already.
        let _ = self.stream.set_priority(priority);
    }

    /// The connection that the stream belongs to.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}

/// The receiving half of a stream.
///
/// A reader that is dropped before the end tells the peer to stop sending.
#[derive(Debug)]
pub struct FrameReader {
    stream: quinn::RecvStream,
    decoder: FrameDecoder,
    connection: Connection,
}

impl FrameReader {
    pub(crate) fn new(stream: quinn::RecvStream, connection: Connection) -> Self {
        Self { stream, decoder: FrameDecoder::default(), connection }
    }

    /// The next frame, or `None` at the end of the stream. Waits for it.
    ///
    /// A frame shares its memory with the frames that arrived beside it (usually 16 KiB). Copy one that is to be kept
    /// for long.
    ///
    /// # Cancel safety
    ///
    /// No byte is lost if it is dropped before it is done, say in a `select!`: what was read stays with the reader.
    ///
    /// # Errors
    ///
    /// [`StreamError::Frame`] when a frame is longer than `frame_bytes_max`, of which nothing was allocated, or when the
    /// stream ends inside a frame; [`StreamError::Reset`]; [`StreamError::ConnectionLost`]. Frames that arrived whole
    /// before are given first.
    pub async fn next(&mut self, frame_bytes_max: usize) -> Result<Option<Bytes>, StreamError> {
        loop {
            if let Some(frame) = self.decoder.next(frame_bytes_max)? {
                return Ok(Some(frame));
            }
            let mut chunks = [const { Bytes::new() }; CHUNKS_PER_READ];
            match self.stream.read_chunks(&mut chunks).await? {
                Some(filled) => chunks[..filled].iter().for_each(|chunk| self.decoder.push(chunk)),
                None => {
                    self.decoder.finish()?;
                    return Ok(None);
                }
            }
        }
    }

    /// The next frame if it has been read already; never waits and never reads. So a caller that was woken by
    /// [`next`](Self::next) drains the batch that came with it. `None` does not mean the end.
    ///
    /// # Errors
    ///
    /// [`StreamError::Frame`] as for [`next`](Self::next).
    pub fn try_next(&mut self, frame_bytes_max: usize) -> Result<Option<Bytes>, StreamError> {
        Ok(self.decoder.next(frame_bytes_max)?)
    }

    /// Tells the peer to stop sending: its writer gets [`StreamError::Stopped`].
    pub fn stop(&mut self, code: CloseCode) {
        // An error only says that the stream has ended already.
        let _ = self.stream.stop(code.into());
    }

    /// The connection that the stream belongs to.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }
}

/// Why a stream does not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The bytes are not frames, or not within the limit.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer gave the stream up. Other streams are not affected.
    #[error("the peer gave the stream up, {code}")]
    Reset {
        /// Why, in the terms of the protocol above.
        code: CloseCode,
    },
    /// The peer does not read on. Other streams are not affected.
    #[error("the peer stopped reading the stream, {code}")]
    Stopped {
        /// Why, in the terms of the protocol above.
        code: CloseCode,
    },
    /// The whole connection is gone. Open a new one.
    #[error("the connection is lost: {0}")]
    ConnectionLost(CloseReason),
    /// The stream was used after one's own [`FrameWriter::finish`], [`FrameWriter::reset`] or [`FrameReader::stop`].
    #[error("the stream was ended here already")]
    Finished,
}

impl From<quinn::WriteError> for StreamError {
    fn from(error: quinn::WriteError) -> Self {
        match error {
            quinn::WriteError::Stopped(code) => Self::Stopped { code: code.into() },
            quinn::WriteError::ConnectionLost(cause) => Self::ConnectionLost(cause.into()),
            quinn::WriteError::ClosedStream => Self::Finished,
            quinn::WriteError::ZeroRttRejected => unreachable!("early data is never sent"),
        }
    }
}

impl From<quinn::ReadError> for StreamError {
    fn from(error: quinn::ReadError) -> Self {
        match error {
            quinn::ReadError::Reset(code) => Self::Reset { code: code.into() },
            quinn::ReadError::ConnectionLost(cause) => Self::ConnectionLost(cause.into()),
            quinn::ReadError::ClosedStream => Self::Finished,
            quinn::ReadError::IllegalOrderedRead => unreachable!("every read is ordered"),
            quinn::ReadError::ZeroRttRejected => unreachable!("early data is never sent"),
        }
    }
}

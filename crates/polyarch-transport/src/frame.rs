//! Frames: how a stream of bytes is cut into messages.
//!
//! ```text
//! +----------------+------------------+
//! | length, u32 LE | `length` bytes   |   and so on until the stream ends
//! +----------------+------------------+
//! ```
//!
//! The decoder is a pure value: bytes go in, frames come out, and no stream is needed to test it against hostile input.
//! Two rules make it safe to feed:
//!
//! - A length is compared with the limit before anything is done with it.
//! - Memory follows the bytes that came, never the bytes that were announced. A peer that opens a thousand streams and
//!   announces the greatest permitted frame on each has made us hold four thousand bytes.

use bytes::{Buf, Bytes, BytesMut};

/// The size of what stands before each frame, in bytes.
pub const FRAME_HEADER_BYTES: usize = 4;

/// A buffer grows at least by this much, so that many small frames share one allocation.
pub(crate) const BUFFER_BYTES_MIN: usize = 16 * 1024;

/// An empty buffer greater than this is given back rather than kept for the next frame.
const BUFFER_BYTES_KEPT: usize = 64 * 1024;

/// Cuts bytes, in whatever pieces they arrive, into frames.
///
/// ```
/// use polyarch_transport::FrameDecoder;
///
/// let mut decoder = FrameDecoder::default();
/// decoder.push(&[2, 0, 0, 0, b'h']);
/// assert_eq!(decoder.next(1024)?, None);
/// decoder.push(b"i");
/// assert_eq!(decoder.next(1024)?.as_deref(), Some(&b"hi"[..]));
/// decoder.finish()?;
/// # Ok::<(), polyarch_transport::FrameError>(())
/// ```
#[derive(Debug, Default)]
pub struct FrameDecoder {
    /// What came and was not yet handed out. Begins at the header of a frame.
    buffer: BytesMut,
}

impl FrameDecoder {
    /// Adds the next bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.buffer.capacity() - self.buffer.len() < bytes.len() {
            self.buffer.reserve(bytes.len().max(BUFFER_BYTES_MIN));
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, without its header, or `None` until more bytes are [pushed](Self::push).
    ///
    /// A frame shares its memory with the frames that arrived beside it (usually 16 KiB). Copy one that is to be kept
    /// for long.
    ///
    /// # Errors
    ///
    /// [`FrameError::TooLarge`] when the next frame is longer than `frame_bytes_max`. The decoder stays at that frame:
    /// there is no way past it, and the same error comes again.
    pub fn next(&mut self, frame_bytes_max: usize) -> Result<Option<Bytes>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<FRAME_HEADER_BYTES>() else {
            return Ok(None);
        };
        // Usize has at least 32 bits wherever a runtime with sockets exists.
        let len = u32::from_le_bytes(*header) as usize;
        if len > frame_bytes_max {
            return Err(FrameError::TooLarge { len, max: frame_bytes_max });
        }
        if self.buffer.len() - FRAME_HEADER_BYTES < len {
            return Ok(None);
        }
        self.buffer.advance(FRAME_HEADER_BYTES);
        let frame = self.buffer.split_to(len).freeze();
        if self.buffer.is_empty() && self.buffer.capacity() > BUFFER_BYTES_KEPT {
            self.buffer = BytesMut::new();
        }
        Ok(Some(frame))
    }

    /// Bytes that were pushed and not yet handed out as frames.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Declares that the stream has ended.
    ///
    /// # Errors
    ///
    /// [`FrameError::Truncated`] when it ended inside a frame. Call this once [`next`](Self::next) gives `None`: frames
    /// that are whole but not yet taken count as the beginning of a truncated one.
    pub fn finish(&self) -> Result<(), FrameError> {
        match self.buffer.len() {
            0 => Ok(()),
            have => Err(FrameError::Truncated { have }),
        }
    }
}

/// Why bytes are not a sequence of frames. Frames handed out before are whole and valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The peer announced a frame longer than the caller takes. Nothing was allocated for it. Close the connection:
    /// the sender does not keep to the limits.
    #[error("a frame of {len} bytes was announced, the limit is {max}")]
    TooLarge {
        /// The announced length in bytes, without header.
        len: usize,
        /// The limit that was given.
        max: usize,
    },
    /// The stream ended inside a frame: the sender was dropped, or failed, in the middle of a write. The bytes of that
    /// frame are lost; ask for them again on a new stream.
    #[error("the stream ended inside a frame, after {have} bytes of it")]
    Truncated {
        /// How many bytes of the frame came, with its header.
        have: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for frame in frames {
            bytes.extend_from_slice(&u32::try_from(frame.len()).unwrap().to_le_bytes());
            bytes.extend_from_slice(frame);
        }
        bytes
    }

    #[test]
    fn an_announced_length_allocates_nothing() {
        let mut decoder = FrameDecoder::default();
        decoder.push(&(1u32 << 30).to_le_bytes());
        assert_eq!(decoder.next(1 << 30), Ok(None));
        assert!(decoder.buffer.capacity() <= BUFFER_BYTES_MIN);
    }

    #[test]
    fn a_frame_at_the_limit_passes_and_one_byte_more_does_not() {
        let mut decoder = FrameDecoder::default();
        decoder.push(&encode(&[vec![7; 10], vec![8; 11]]));
        assert_eq!(decoder.next(10).unwrap().unwrap(), vec![7; 10]);
        assert_eq!(decoder.next(10), Err(FrameError::TooLarge { len: 11, max: 10 }));
        assert_eq!(decoder.next(10), Err(FrameError::TooLarge { len: 11, max: 10 }), "there is no way past it");
    }

    #[test]
    fn an_end_inside_a_header_or_a_body_is_not_a_clean_end() {
        let whole = encode(&[vec![1, 2, 3]]);
        for cut in 1..whole.len() {
            let mut decoder = FrameDecoder::default();
            decoder.push(&whole[..cut]);
            assert_eq!(decoder.next(100), Ok(None));
            assert_eq!(decoder.finish(), Err(FrameError::Truncated { have: cut }));
        }
        assert_eq!(FrameDecoder::default().finish(), Ok(()));
    }

    #[test]
    fn the_memory_of_a_great_frame_is_given_back() {
        let mut decoder = FrameDecoder::default();
        decoder.push(&encode(&[vec![0; 1 << 20]]));
        drop(decoder.next(1 << 20).unwrap().unwrap());
        assert!(decoder.buffer.capacity() <= BUFFER_BYTES_KEPT);
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut_into_pieces(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..40),
            pieces in prop::collection::vec(1usize..300, 1..60)
        ) {
            let bytes = encode(&frames);
            let mut decoder = FrameDecoder::default();
            let (mut rest, mut came) = (&bytes[..], Vec::new());
            for piece in pieces.iter().cycle() {
                if rest.is_empty() { break; }
                let (head, tail) = rest.split_at((*piece).min(rest.len()));
                decoder.push(head);
                rest = tail;
                while let Some(frame) = decoder.next(200).unwrap() { came.push(frame.to_vec()); }
            }
            prop_assert_eq!(came, frames);
            prop_assert_eq!(decoder.finish(), Ok(()));
        }

        #[test]
        fn hostile_bytes_give_frames_within_the_limit_or_an_error(
            bytes in prop::collection::vec(any::<u8>(), 0..4096), limit in 0usize..600
        ) {
            check_hostile(&bytes, limit);
        }

        #[test]
        fn mutated_frames_give_frames_within_the_limit_or_an_error(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 1..20),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>()
        ) {
            let mut bytes = encode(&frames);
            for (at, value) in flips { let at = at.index(bytes.len()); bytes[at] = value; }
            bytes.truncate(cut.index(bytes.len()) + 1);
            check_hostile(&bytes, 100);
        }
    }

    /// No panic, no frame beyond the limit, no byte invented, and memory within a constant of what came.
    fn check_hostile(bytes: &[u8], limit: usize) {
        let mut decoder = FrameDecoder::default();
        let mut handed_out = 0;
        for piece in bytes.chunks(97) {
            decoder.push(piece);
            while let Ok(Some(frame)) = decoder.next(limit) {
                assert!(frame.len() <= limit);
                handed_out += frame.len() + FRAME_HEADER_BYTES;
            }
        }
        assert_eq!(handed_out + decoder.buffered_bytes(), bytes.len());
        assert!(decoder.buffer.capacity() <= 2 * bytes.len() + BUFFER_BYTES_MIN);
    }
}

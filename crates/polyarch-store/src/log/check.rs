use std::sync::Arc;

use parking_lot::Mutex;

use super::error::LogError;
use super::reader::Published;
use super::walk::{Segment, Step, Walk};
use crate::files::Files;

/// Bytes of frames between two questions whether to go on.
const PAUSE_BYTES: u64 = 1 << 20;

/// The check of those segments that opening a log did not read: each is read once, by the walk
/// that recovery takes. It goes on behind a damaged segment, and passes over those that are
/// removed meanwhile.
///
/// It changes nothing, and nobody waits for it: run it on a thread of its own.
pub struct LogCheck<F: Files> {
    files: F,
    /// Those to read, and the one that follows on the last.
    segments: Vec<Segment>,
    salt: u32,
    published: Arc<Mutex<Published>>,
}

/// What a [`LogCheck`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogChecked {
    /// Segments that are whole.
    pub segments: u64,
    /// Bytes of the frames that are whole.
    pub bytes: u64,
    /// Segments that are damaged or cannot be read.
    pub problems: u64,
    /// Whether it was told to stop before it was through.
    pub stopped: bool,
}

impl<F: Files> LogCheck<F> {
    pub(super) fn new(files: F, segments: Vec<Segment>, salt: u32, published: Arc<Mutex<Published>>) -> Self {
        Self { files, segments, salt, published }
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.segments.len() < 2
    }

    /// Reads the segments, oldest first, and gives to `found` what is wrong with each. Asks
    /// `goes_on` after each segment and after each MiB, which may take its time to answer.
    pub fn run(self, mut goes_on: impl FnMut() -> bool, mut found: impl FnMut(LogError)) -> LogChecked {
        let mut checked = LogChecked::default();
        for pair in self.segments.windows(2) {
            match self.segment(pair, &mut checked, &mut goes_on) {
                Ok(()) if checked.stopped => return checked,
                Ok(()) => checked.segments += 1,
                Err(_) if self.published.lock().is_removed(pair[0].number) => {}
                Err(error) => {
                    checked.problems += 1;
                    found(error);
                }
            }
            if !goes_on() {
                checked.stopped = true;
                return checked;
            }
        }
        checked
    }

    /// Walks from a segment's first frame into the segment behind it.
    fn segment(
        &self,
        pair: &[Segment],
        checked: &mut LogChecked,
        goes_on: &mut impl FnMut() -> bool,
    ) -> Result<(), LogError> {
        let mut walk = Walk::new(self.files.clone(), pair.to_vec(), self.salt, None, None, None)?;
        let mut pause_at = checked.bytes + PAUSE_BYTES;
        loop {
            match walk.step()? {
                Step::Segment(segment) if segment.number == pair[0].number => {}
                Step::Segment(_) | Step::End(_) => return Ok(()),
                Step::Frame(frame) => checked.bytes += frame.end.offset - frame.at.offset,
            }
            if checked.bytes >= pause_at {
                pause_at = checked.bytes + PAUSE_BYTES;
                if !goes_on() {
                    checked.stopped = true;
                    return Ok(());
                }
            }
        }
    }
}

//! How much of the log is kept: what members still lack, within bounds.
//!
//! **Architecture Invariant:** this decides only how far the log may go. That two checkpoints are
//! past what goes is the store's to see to, whatever is decided here.

use std::time::Duration;

use polyarch_protocol::LogPosition;

/// What of the log is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retention {
    /// Every segment.
    All,
    /// What some member lacks, and of that only what lies within the bounds.
    Members {
        /// Bytes of the log, where they are bounded. The segment that is written to always stays.
        bytes_max: Option<u64>,
        /// How long ago the last write set of a segment was written, where that is bounded.
        age_max: Option<Duration>,
    },
}

/// A segment of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Where its last write set ends.
    pub(crate) end: LogPosition,
    /// How long ago that was written; `None` when the disk does not say.
    pub(crate) age: Option<Duration>,
}

impl Retention {
    /// Whether ages play a part.
    pub(crate) fn asks_for_age(&self) -> bool {
        matches!(self, Self::Members { age_max: Some(_), .. })
    }

    /// Up to where the log may go: `members_have` is what every member is known to have,
    /// `segments` are those there are, oldest first.
    pub(crate) fn floor(&self, members_have: LogPosition, segments: &[Segment]) -> Option<LogPosition> {
        let Self::Members { bytes_max, age_max } = self else { return None };
        let mut bytes: u64 = segments.iter().map(|segment| segment.end.offset).sum();
        let mut floor = members_have;
        let (_, older) = segments.split_last()?;
        for segment in older {
            let is_too_much = bytes_max.is_some_and(|max| bytes > max);
            let is_too_old = age_max.is_some_and(|max| segment.age.is_some_and(|age| age > max));
            if segment.end > floor && !is_too_much && !is_too_old {
                break;
            }
            bytes -= segment.end.offset;
            floor = floor.max(segment.end);
        }
        Some(floor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: LogPosition = LogPosition { segment: 1, offset: 0 };

    fn hours(hours: u64) -> Duration {
        Duration::from_secs(3_600 * hours)
    }

    fn end(segment: u64) -> LogPosition {
        LogPosition { segment, offset: 100 }
    }

    /// Four segments of 100 bytes, last written to so many hours ago.
    fn segments(ages: [u64; 4]) -> Vec<Segment> {
        let segment = |(at, age): (usize, &u64)| Segment { end: end(at as u64 + 1), age: Some(hours(*age)) };
        ages.iter().enumerate().map(segment).collect()
    }

    fn members(bytes_max: Option<u64>, age_max: Option<u64>) -> Retention {
        Retention::Members { bytes_max, age_max: age_max.map(hours) }
    }

    #[test]
    fn all_is_kept_whatever_the_bounds() {
        assert_eq!(Retention::All.floor(end(3), &segments([9, 9, 9, 9])), None);
    }

    #[test]
    fn what_every_member_has_goes_and_without_bounds_nothing_else() {
        let retention = members(None, None);
        assert_eq!(retention.floor(end(2), &segments([9, 9, 9, 9])), Some(end(2)));
        assert_eq!(retention.floor(NOBODY, &segments([9, 9, 9, 9])), Some(NOBODY));
        assert_eq!(retention.floor(NOBODY, &[]), None);
    }

    #[test]
    fn the_oldest_go_until_the_rest_is_within_the_bytes() {
        let floors = [(400, NOBODY), (399, end(1)), (300, end(1)), (299, end(2)), (1, end(3)), (0, end(3))];
        for (max, floor) in floors {
            assert_eq!(members(Some(max), None).floor(NOBODY, &segments([1; 4])), Some(floor), "{max}");
        }
        assert_eq!(members(Some(300), None).floor(end(2), &segments([1; 4])), Some(end(2)), "members have more");
    }

    #[test]
    fn what_is_too_old_goes_and_the_segment_that_is_written_to_stays() {
        assert_eq!(members(None, Some(5)).floor(NOBODY, &segments([9, 6, 5, 1])), Some(end(2)));
        assert_eq!(members(None, Some(5)).floor(NOBODY, &segments([9, 9, 9, 9])), Some(end(3)));
        let unknown = Segment { end: end(1), age: None };
        assert_eq!(members(None, Some(5)).floor(NOBODY, &[unknown, segments([9; 4])[1]]), Some(NOBODY));
    }

    #[test]
    fn nothing_goes_before_what_is_older_than_it() {
        // A clock that was set back made the first look newer.
        assert_eq!(members(None, Some(5)).floor(NOBODY, &segments([1, 9, 9, 0])), Some(NOBODY));
        assert_eq!(members(Some(250), Some(5)).floor(NOBODY, &segments([9, 1, 9, 0])), Some(end(3)));
    }
}

//! The check of what an opening did not read.

use polyarch_protocol::LogPosition;

use super::life::{Life, small_config};
use crate::files::simulated::SimulatedDisk;
use crate::log::format::segment_name;
use crate::log::{LogChecked, LogError};

/// A log of several segments that was opened behind all but the last.
fn reopened() -> (SimulatedDisk, Life<SimulatedDisk>) {
    let disk = SimulatedDisk::new(5, 512);
    let mut life = Life::open(&disk, small_config(), None).unwrap();
    for _ in 0..40 {
        life.append_group(3, 80);
        life.log.sync().unwrap();
    }
    let end = life.log.durable_end();
    assert!(end.segment > 4);
    let life = life.reopen(Some(end)).unwrap();
    (disk, life)
}

fn checked(life: &mut Life<SimulatedDisk>) -> (LogChecked, Vec<LogPosition>) {
    let mut damaged = Vec::new();
    let checked = life.log.check().run(
        || true,
        |problem| match problem {
            LogError::Damaged(damage) => damaged.push(damage.position),
            other => panic!("{other}"),
        },
    );
    (checked, damaged)
}

#[test]
fn every_segment_that_was_not_read_is_checked_once() {
    let (_, mut life) = reopened();
    let segments = life.log.segments();
    let older = &segments[..segments.len() - 1];
    let bytes: u64 = older.iter().map(|segment| segment.end.offset - segment.start.offset).sum();
    let (found, damaged) = checked(&mut life);
    assert_eq!((found.segments, found.bytes, found.problems, damaged.len()), (older.len() as u64, bytes, 0, 0));
    assert!(life.log.check().is_empty());
}

#[test]
fn an_opening_that_reads_all_leaves_nothing_to_check() {
    let (_, life) = reopened();
    let mut life = life.reopen(None).unwrap();
    assert!(life.log.check().is_empty());
}

#[test]
fn damage_in_an_older_segment_is_found_and_the_next_ones_are_checked_all_the_same() {
    let (disk, mut life) = reopened();
    let segments = life.log.segments();
    let (two, four) = (segments[1].start, segments[3].start);
    disk.damage(&segment_name(2), |bytes| bytes[two.offset as usize + 45] ^= 1);
    disk.damage(&segment_name(4), |bytes| bytes.truncate(four.offset as usize));
    let (found, damaged) = checked(&mut life);
    assert_eq!(damaged, [two, four]);
    assert_eq!((found.segments, found.problems), (segments.len() as u64 - 3, 2));
}

#[test]
fn segments_that_are_removed_meanwhile_are_no_problem() {
    let (_, mut life) = reopened();
    let check = life.log.check();
    life.log.remove_segments_before(life.log.segments()[2].start).unwrap();
    let found = check.run(|| true, |problem| panic!("{problem}"));
    assert!(found.segments > 0 && found.problems == 0);
}

#[test]
fn a_check_that_is_told_to_stop_stops() {
    let (_, mut life) = reopened();
    let mut asked = 0;
    let goes_on = || {
        asked += 1;
        asked < 2
    };
    let found = life.log.check().run(goes_on, |problem| panic!("{problem}"));
    assert!(found.stopped && found.segments == 2, "{found:?}");
}

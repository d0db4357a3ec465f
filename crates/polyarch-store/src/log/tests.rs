//! The log on a simulated disk, and on a real one.

mod check;
mod crashes;
mod hostile;
mod life;

use std::collections::BTreeSet;
use std::io;

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Dot, Origin};
use polyarch_protocol::{ChainHeads, LogPosition, LogReadError, LogSource};

use super::format::{
    FRAME_HEADER_BYTES, FrameHeader, Invalid, SEGMENT_HEADER_BYTES, SegmentHeader, aligned, encode_frame, frame_bytes,
};
use super::*;
use crate::files::simulated::SimulatedDisk;
use crate::files::{Directory, Files};
use life::{Life, small_config};

const ORIGIN: Origin = Origin::new(3, 0x9f2c_01ab);

fn position(segment: u64, offset: u64) -> LogPosition {
    LogPosition { segment, offset }
}

fn open(disk: &SimulatedDisk) -> Log<SimulatedDisk> {
    Log::open(disk.clone(), small_config(), None).expect("the log opens").0
}

fn hex(bytes: &[u8]) -> String {
    let hex: Vec<String> = bytes.chunks(8).map(|row| row.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
    hex.join(" ")
}

#[test]
fn the_bytes_of_a_segment_header_are_frozen() {
    let mut heads = ChainHeads::default();
    heads.extend(Dot::new(ORIGIN, 1), b"write set");
    let (header, bytes) = SegmentHeader::encode(2, 0x1238, 0x1122_3344, 0xa1b2_c3d4, &heads).unwrap();
    assert_eq!(
        hex(&bytes),
        "706f6c79616c6f67 0100000028000000 0200000000000000 3812000044332211 d4c3b2a107e15073 \
         0103ab83b0f90901 94036b3f3889c3e4 ad2726ca723df5aa 4e65fe8deb6f587a 5fd792d34d9b7b0a"
    );
    let len = SegmentHeader::bytes_needed(&bytes).unwrap();
    assert_eq!(SegmentHeader::decode(&bytes[..len]), Ok(header));
    assert_eq!(bytes.len() as u64, aligned(len as u64));
}

#[test]
fn the_bytes_of_a_frame_are_frozen() {
    let mut bytes = Vec::new();
    let link = encode_frame(&mut bytes, b"write set", position(2, 88), position(1, 4664), 0x1122_3344, 0xa1b2_c3d4);
    assert_eq!(
        hex(&bytes),
        "0900000058000000 0200000000000000 0100000000000000 3812000044332211 353aaadcd04238e5 7772697465207365 7400000000000000"
    );
    let header = FrameHeader::decode(bytes.first_chunk().unwrap(), 0xa1b2_c3d4, position(2, 88)).unwrap();
    assert_eq!((header.len, header.synced, header.link), (9, position(1, 4664), 0x1122_3344));
    assert_eq!(header.check(&bytes[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + 9]), Ok(()));
    assert_eq!(header.next_link(), link);
    assert_eq!(bytes.len() as u64, frame_bytes(9));
}

#[test]
fn a_frame_counts_only_at_its_place_in_its_log() {
    let mut bytes = Vec::new();
    encode_frame(&mut bytes, b"write set", position(2, 88), position(1, 4664), 7, 9);
    let read = |salt, at| FrameHeader::decode(bytes.first_chunk().unwrap(), salt, at).map(|header| header.len);
    assert_eq!(read(9, position(2, 88)), Ok(9));
    assert_eq!(read(9, position(2, 96)), Err(Invalid("no frame")));
    assert_eq!(read(9, position(3, 88)), Err(Invalid("no frame")));
    assert_eq!(read(8, position(2, 88)), Err(Invalid("a frame header with a wrong checksum")));
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_anything_is_read() {
    let mut bytes = [0; FRAME_HEADER_BYTES];
    bytes[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    bytes[4] = 48;
    bytes[8] = 1;
    let crc = crc32c::crc32c_append(5, &bytes[..32]);
    bytes[32..36].copy_from_slice(&crc.to_le_bytes());
    let header = FrameHeader::decode(bytes.first_chunk().unwrap(), 5, position(1, 48));
    assert_eq!(header, Err(Invalid("a frame with an impossible length")));

    let (_, mut bytes) = SegmentHeader::encode(1, 0, 0, 5, &ChainHeads::default()).unwrap();
    bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(SegmentHeader::bytes_needed(&bytes).is_err());
}

#[test]
fn names_of_segments_have_one_form() {
    assert_eq!(format::segment_name(1), "0000000001.log");
    assert_eq!(format::segment_number("0000000001.log"), Some(1));
    assert_eq!(format::segment_number("12345678901.log"), Some(12_345_678_901));
    for name in
        ["1.log", "0000000000.log", "00000000001.log", "0000000001.log.tmp", "+000000001.log", "checkpoint.toml"]
    {
        assert_eq!(format::segment_number(name), None, "{name}");
    }
}

#[test]
fn a_group_costs_one_write_and_one_sync() {
    let disk = SimulatedDisk::new(1, 512);
    let mut life = Life::open(&disk, LogConfig::default(), None).unwrap();
    let before = disk.counts();
    life.append_group(64, 170);
    life.log.sync().unwrap();
    life.log.sync().unwrap();
    let after = disk.counts();
    assert_eq!((after.writes - before.writes, after.syncs - before.syncs), (1, 1));
    assert_eq!(after.directory_syncs, before.directory_syncs);
}

#[test]
fn readers_see_what_is_durable_and_no_more() {
    let disk = SimulatedDisk::new(1, 512);
    let mut life = Life::open(&disk, small_config(), None).unwrap();
    let reader = life.log.reader();
    let start = life.log.durable_end();
    life.append_group(3, 100);
    assert_eq!(reader.read(start, usize::MAX).unwrap().write_sets, Vec::<Bytes>::new());
    assert_eq!(reader.durable_end(), start);
    assert_ne!(life.log.staged_end(), start);
    let end = life.log.sync().unwrap();
    let batch = reader.read(start, usize::MAX).unwrap();
    assert_eq!((batch.write_sets.len(), batch.next), (3, end));
    assert_eq!(reader.read(end, 1).unwrap().write_sets.len(), 0);
    assert!(matches!(reader.read(position(1, end.offset + 8), 1), Err(LogReadError::Damaged { .. })));
    assert!(matches!(reader.read(position(1, start.offset + 8), 1), Err(LogReadError::Damaged { .. })));
    assert!(matches!(reader.read(position(9, 0), 1), Err(LogReadError::Damaged { .. })));
}

#[test]
fn memory_and_files_give_the_same_across_segments() {
    for tail_bytes_max in [0, 1, 500, 4_000, 1 << 20] {
        let disk = SimulatedDisk::new(1, 512);
        let config = LogConfig { tail_bytes_max, ..small_config() };
        let mut life = Life::open(&disk, config, None).unwrap();
        for group in 0..40 {
            life.append_group(group % 5 + 1, 90 + 37 * group);
            life.log.sync().unwrap();
        }
        assert!(life.log.segments().len() > 5);
        life.check_all_reads();
    }
}

#[test]
fn a_batch_ends_when_it_has_passed_its_limit_and_holds_at_least_one() {
    let disk = SimulatedDisk::new(1, 512);
    let mut life = Life::open(&disk, small_config(), None).unwrap();
    let start = life.log.durable_end();
    life.append_group(10, 100);
    life.log.sync().unwrap();
    let reader = life.log.reader();
    for (bytes_max, count) in [(0, 1), (1, 1), (100, 1), (101, 2), (250, 3), (5_000, 10)] {
        assert_eq!(reader.read(start, bytes_max).unwrap().write_sets.len(), count, "{bytes_max}");
    }
}

#[test]
fn a_frame_longer_than_a_segment_has_one_to_itself() {
    let disk = SimulatedDisk::new(1, 512);
    let mut life = Life::open(&disk, small_config(), None).unwrap();
    life.append_group(1, 10);
    life.append_group(1, 3 << 20);
    life.append_group(1, 10);
    life.log.sync().unwrap();
    let segments = life.log.segments();
    assert_eq!(segments.len(), 3);
    assert!(segments[1].end.offset > small_config().segment_bytes);
    life.check_all_reads();
    disk.crash();
    life.reopen(None).unwrap().check_all_reads();
}

#[test]
fn what_no_write_set_can_be_is_refused() {
    let disk = SimulatedDisk::new(1, 512);
    let mut log = open(&disk);
    let heads = ChainHeads::default();
    assert!(matches!(log.append(&[], &heads), Err(LogError::WriteSetLength { len: 0, .. })));
    let long = vec![0; wire::WRITE_SET_BYTES_MAX + 1];
    assert!(matches!(log.append(&long, &heads), Err(LogError::WriteSetLength { .. })));
    log.append(&long[1..], &heads).unwrap();
    log.sync().unwrap();
}

#[test]
fn marks_say_what_lies_before_them() {
    let disk = SimulatedDisk::new(1, 512);
    let config = LogConfig { mark_bytes: 600, marks_max: 7, ..small_config() };
    let mut life = Life::open(&disk, config, None).unwrap();
    for _ in 0..200 {
        life.append_group(1, 100);
        life.log.sync().unwrap();
    }
    let reader = life.log.reader();
    let mut marks = BTreeSet::new();
    for seq in 0..=200 {
        let applied: AppliedSet = (seq > 0).then(|| Dot::new(life::ORIGIN, seq)).into_iter().collect();
        let mark = reader.last_mark(&|heads| applied.includes_all(heads.applied())).unwrap();
        assert_eq!(mark.position, life.position_after(mark.heads.applied().write_sets()));
        assert!(mark.heads.applied().write_sets() <= seq);
        marks.insert(mark.position);
    }
    let segments = life.log.segments();
    assert_eq!(marks.len(), segments.len() + 7);

    let second = segments[1].start;
    life.log.remove_segments_before(second).unwrap();
    assert_eq!(reader.last_mark(&|heads| heads.applied().is_empty()), None);
    let applied = segments[1].heads.applied();
    let mark = reader.last_mark(&|heads| applied.includes_all(heads.applied())).unwrap();
    assert_eq!(mark.position, second);
}

#[test]
fn marks_of_what_is_staged_are_not_given() {
    let disk = SimulatedDisk::new(1, 512);
    let mut life = Life::open(&disk, small_config(), None).unwrap();
    life.append_group(100, 100);
    let reader = life.log.reader();
    assert_eq!(reader.last_mark(&|_| true).unwrap().position, life.log.durable_end());
    life.log.sync().unwrap();
    assert_eq!(reader.last_mark(&|_| true).unwrap().position.segment, life.log.durable_end().segment);
}

#[test]
fn segments_go_oldest_first_and_never_the_last() {
    let disk = SimulatedDisk::new(1, 512);
    let mut life = Life::open(&disk, small_config(), None).unwrap();
    life.append_group(200, 100);
    life.log.sync().unwrap();
    let segments = life.log.segments();
    let reader = life.log.reader();
    let inside = position(3, segments[2].start.offset + 8);
    assert_eq!(life.log.remove_segments_before(inside).unwrap(), [1, 2]);
    assert_eq!(life.log.segments(), segments[2..]);
    assert_eq!(reader.read(segments[0].start, 1), Err(LogReadError::Removed(1)));
    assert_eq!(life.log.remove_segments_before(segments[2].end).unwrap(), [3]);
    let end = life.log.durable_end();
    assert!(!life.log.remove_segments_before(end).unwrap().contains(&end.segment));
    assert_eq!(life.log.segments().len(), 1);
    disk.crash();
    assert_eq!(open(&disk).segments(), segments[segments.len() - 1..]);
}

#[test]
fn the_end_of_a_removed_segment_is_the_start_of_the_next() {
    let disk = SimulatedDisk::new(1, 512);
    let mut life = Life::open(&disk, small_config(), None).unwrap();
    life.append_group(100, 100);
    life.log.sync().unwrap();
    let end = life.log.segments()[1].end;
    life.log.remove_segments_before(end).unwrap();
    let mut ends = Vec::new();
    let replayed: Result<(), LogReadError> = life.log.replay(end, |end, _| {
        ends.push(end);
        Ok(())
    });
    replayed.unwrap();
    assert_eq!(ends.first().map(|end| end.segment), Some(3));
    assert_eq!(ends.last(), Some(&life.log.durable_end()));
    disk.crash();
    let (log, _) = Log::open(disk, small_config(), Some(end)).unwrap();
    assert_eq!(log.durable_end(), life.log.durable_end());
}

#[test]
fn the_beginning_can_be_called_zero_as_long_as_it_is_there() {
    let disk = SimulatedDisk::new(1, 512);
    let mut life = Life::open(&disk, small_config(), None).unwrap();
    life.append_group(100, 100);
    life.log.sync().unwrap();
    let reader = life.log.reader();
    assert_eq!(reader.read(LogPosition::default(), usize::MAX).unwrap().write_sets.len(), 100);
    life.log.remove_segments_before(position(2, 0)).unwrap();
    assert_eq!(reader.read(LogPosition::default(), 1), Err(LogReadError::Removed(0)));
}

#[test]
fn after_a_failed_sync_or_write_nothing_more_is_taken() {
    let faults: [fn(&SimulatedDisk); 2] = [|disk| disk.fail_sync_after(0), |disk| disk.fail_write_after(0)];
    for fault in faults {
        let disk = SimulatedDisk::new(1, 512);
        let mut life = Life::open(&disk, small_config(), None).unwrap();
        life.append_group(5, 100);
        let end = life.log.sync().unwrap();
        life.append_group(50, 100);
        fault(&disk);
        assert!(matches!(life.log.sync(), Err(LogError::Write { .. })));
        let counts = disk.counts();
        let heads = ChainHeads::default();
        assert!(matches!(life.log.append(b"more", &heads), Err(LogError::Poisoned(_))));
        assert!(matches!(life.log.has_room(1, &heads), Err(LogError::Poisoned(_))));
        assert!(matches!(life.log.sync(), Err(LogError::Poisoned(_))));
        assert!(matches!(life.log.remove_segments_before(end), Err(LogError::Poisoned(_))));
        assert_eq!(disk.counts(), counts, "nothing is tried again");
        assert_eq!((life.log.durable_end(), life.log.reader().durable_end()), (end, end));
        assert_eq!(life.log.reader().read(end, usize::MAX).unwrap().write_sets.len(), 0);
    }
}

/// The bytes that a disk's files take together.
fn used(disk: &SimulatedDisk) -> u64 {
    disk.list().unwrap().iter().map(|name| disk.contents(name).unwrap().len() as u64).sum()
}

#[test]
fn a_full_disk_refuses_what_is_new_and_puts_nothing_at_risk() {
    for spare in (0..4_000).step_by(150) {
        let disk = SimulatedDisk::new(spare, 512);
        let mut life = Life::open(&disk, small_config(), None).unwrap();
        life.append_group(5, 100);
        disk.set_space(Some(used(&disk) + spare));
        let full = loop {
            if let Err(error) = life.append(100) {
                break error;
            }
        };
        assert!(matches!(full, LogError::Full { .. }), "{full}");
        let (staged, changes) = (life.log.staged_end(), disk.counts());
        assert!(matches!(life.append(100), Err(LogError::Full { .. })));
        assert_eq!((life.log.staged_end(), disk.counts().syncs), (staged, changes.syncs));
        assert!(!life.log.has_room(100, &ChainHeads::default()).unwrap());
        assert_eq!(life.log.sync().unwrap(), staged, "what is staged has its room");
        life.check_all_reads();

        disk.set_space(None);
        assert!(life.log.has_room(100, &ChainHeads::default()).unwrap());
        life.append_group(40, 100);
        life.log.sync().unwrap();
        life.check_all_reads();
        disk.crash();
        life.reopen(None).unwrap().check_all_reads();
    }
}

#[test]
fn a_log_goes_on_over_a_crash_on_a_full_disk() {
    for seed in 0..100 {
        let disk = SimulatedDisk::new(seed, 512);
        let mut life = Life::open(&disk, small_config(), None).unwrap();
        life.append_group(20 + seed as usize % 10, 100);
        life.log.sync().unwrap();
        disk.set_space(Some(used(&disk) + seed * 37));
        while life.append(100).is_ok() {}
        disk.crash();
        // What is written anew at an open takes no more room than it had.
        let mut life = life.reopen(None).unwrap();
        while life.append(100).is_ok() {}
        disk.set_space(None);
        life.append_group(30, 100);
        life.log.sync().unwrap();
        life.reopen(None).unwrap().check_all_reads();
    }
}

#[test]
fn the_log_leaves_the_reserve_free() {
    let disk = SimulatedDisk::new(1, 512);
    let config = LogConfig { reserve_bytes: 5_000, ..small_config() };
    let mut life = Life::open(&disk, config, None).unwrap();
    disk.set_space(Some(used(&disk) + 20_000));
    while life.append(100).is_ok() {}
    let free = disk.free_bytes().unwrap();
    assert!((5_000..5_300).contains(&free), "{free}");
    assert!(!life.log.has_room(100, &ChainHeads::default()).unwrap());
    // A reader of a segment that goes needs none: what lies in it is on every member.
    let end = life.log.sync().unwrap();
    life.log.remove_segments_before(end).unwrap();
    life.append_group(10, 100);
    assert!(disk.free_bytes().unwrap() >= 5_000);
    life.log.sync().unwrap();
}

#[test]
fn a_sync_neither_makes_a_file_nor_makes_one_longer() {
    let disk = SimulatedDisk::new(1, 512);
    let mut life = Life::open(&disk, small_config(), None).unwrap();
    for group in 1..60 {
        life.append_group(group, 90);
        let before = used(&disk);
        disk.set_space(Some(0));
        life.log.sync().unwrap();
        disk.set_space(None);
        assert_eq!(used(&disk), before);
    }
    life.check_all_reads();
}

#[test]
fn a_log_of_another_version_is_left_alone() {
    let disk = SimulatedDisk::new(1, 512);
    drop(open(&disk));
    disk.damage("0000000001.log", |bytes| {
        bytes[8] = 2;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..36]), &bytes[40..40 + usize::from(bytes[12])]);
        bytes[36..40].copy_from_slice(&crc.to_le_bytes());
    });
    let error = Log::open(disk, small_config(), None).unwrap_err();
    assert!(matches!(error, LogError::Version { version: 2, .. }), "{error}");
}

#[test]
fn a_header_that_was_written_in_part_is_of_no_version() {
    let disk = SimulatedDisk::new(1, 512);
    let mut life = Life::open(&disk, small_config(), None).unwrap();
    life.append_group(30, 100);
    let end = life.log.sync().unwrap();
    let next = format::segment_name(end.segment + 1);
    let mut header = disk.contents(&format::segment_name(end.segment)).unwrap();
    header.truncate(11);
    header[8] = 9;
    header.resize(1_000, 0);
    disk.damage(&next, |bytes| bytes.clone_from(&header));
    let inspected = LogInspection::new(disk.clone(), None).unwrap().last().unwrap().unwrap();
    assert!(matches!(inspected, Inspected::End { unborn_segment: Some(number), .. } if number == end.segment + 1));
    let life = life.reopen(None).unwrap();
    assert_eq!((life.recovery.removed_segment, life.log.durable_end()), (Some(end.segment + 1), end));
}

#[test]
fn a_small_segment_takes_no_more_room_than_it_may() {
    let disk = SimulatedDisk::new(1, 512);
    let config = LogConfig { segment_bytes: 10_000, ..LogConfig::default() };
    let mut life = Life::open(&disk, config, None).unwrap();
    for _ in 0..30 {
        life.append_group(10, 100);
        life.log.sync().unwrap();
    }
    let lengths: Vec<usize> = disk.list().unwrap().iter().map(|name| disk.contents(name).unwrap().len()).collect();
    assert!(lengths.len() > 3 && lengths.iter().all(|length| *length == 10_000), "{lengths:?}");
    // A frame that is longer than a segment has one of its own.
    life.append(20_000).unwrap();
    life.log.sync().unwrap();
    life.check_all_reads();
}

#[test]
fn what_else_is_in_the_directory_is_left_alone() {
    let disk = SimulatedDisk::new(1, 512);
    for name in ["checkpoint.toml", "1.log", "0000000007.log.bak"] {
        disk.damage(name, |bytes| bytes.extend(b"something"));
    }
    let mut life = Life::open(&disk, small_config(), None).unwrap();
    life.append_group(100, 100);
    life.log.sync().unwrap();
    life.reopen(None).unwrap().check_all_reads();
    assert_eq!(disk.contents("1.log").as_deref(), Some(&b"something"[..]));
}

#[test]
fn the_salt_stays_with_the_log() {
    let disk = SimulatedDisk::new(1, 512);
    let salted = |salt| LogConfig { salt, ..small_config() };
    let mut life = Life::open(&disk, salted(77), None).unwrap();
    life.append_group(50, 100);
    life.log.sync().unwrap();
    let mut life = Life::reopen_with(life, salted(78), None).unwrap();
    life.append_group(50, 100);
    life.log.sync().unwrap();
    life.reopen(None).unwrap().check_all_reads();
}

#[test]
fn inspection_tells_all_and_changes_nothing() {
    let disk = SimulatedDisk::new(1, 512);
    assert_eq!(LogInspection::new(disk.clone(), None).unwrap().count(), 0);
    let mut life = Life::open(&disk, small_config(), None).unwrap();
    life.append_group(60, 100);
    let end = life.log.sync().unwrap();
    let segments = life.log.segments();
    let counts = disk.counts();
    let found: Vec<_> = LogInspection::new(disk.clone(), Some(end)).unwrap().map(Result::unwrap).collect();
    assert_eq!(disk.counts(), counts);
    let frames = found.iter().filter(|found| matches!(found, Inspected::Frame { .. })).count();
    let starts = found.iter().filter_map(|found| match found {
        Inspected::Segment { start, heads, .. } => Some((*start, heads.clone())),
        _ => None,
    });
    let starts: Vec<_> = starts.collect();
    assert_eq!(frames, 60);
    assert_eq!(starts, segments.iter().map(|s| (s.start, ChainHeads::clone(&s.heads))).collect::<Vec<_>>());
    let Some(Inspected::End { at, unsynced_bytes, .. }) = found.last() else { panic!("{:?}", found.last()) };
    assert_eq!((*at, *unsynced_bytes), (end, 0));

    disk.damage("0000000002.log", |bytes| bytes[200] ^= 1);
    let error = LogInspection::new(disk.clone(), None).unwrap().find_map(Result::err).unwrap();
    let LogError::Damaged(damage) = error else { panic!("{error}") };
    assert_eq!((damage.file.as_str(), damage.position.segment), ("0000000002.log", 2));
    assert!(damage.position.offset <= 200, "{damage}");
}

#[test]
fn a_reader_follows_the_appender_from_another_thread() {
    let disk = SimulatedDisk::new(1, 512);
    let mut life = Life::open(&disk, small_config(), None).unwrap();
    let (reader, mut next) = (life.log.reader(), life.log.durable_end());
    let read = std::thread::scope(|scope| {
        let follower = scope.spawn(move || {
            let mut read = Vec::new();
            while read.len() < 2_000 {
                let batch = reader.clone().read(next, 500).expect("it can be read");
                next = batch.next;
                read.extend(batch.write_sets);
            }
            read
        });
        for _ in 0..200 {
            life.append_group(10, 100);
            life.log.sync().unwrap();
        }
        follower.join().unwrap()
    });
    assert!(read.iter().eq(life.frames.iter().map(|(_, write_set)| write_set)));
}

#[test]
fn a_checkpoint_of_nothing_says_nothing() {
    let disk = SimulatedDisk::new(1, 512);
    assert!(Log::open(disk, small_config(), Some(LogPosition::default())).is_ok());
}

#[test]
fn it_works_in_a_real_directory() -> io::Result<()> {
    let temporary = tempfile::tempdir()?;
    let files = Directory::open(temporary.path().join("log"))?;
    let config =
        LogConfig { segment_bytes: 64 << 10, allocate_bytes: 16 << 10, tail_bytes_max: 10_000, ..LogConfig::default() };
    let mut life = Life::open(&files, config.clone(), None).unwrap();
    for _ in 0..20 {
        life.append_group(64, 170);
        life.log.sync().unwrap();
    }
    life.check_all_reads();
    let end = life.log.durable_end();
    let mut life = life.reopen(Some(end)).unwrap();
    assert_eq!(life.log.durable_end(), end);
    life.append_group(64, 170);
    let end = life.log.sync().unwrap();
    life.check_all_reads();
    life.log.remove_segments_before(end).unwrap();
    assert_eq!(files.list()?, [format::segment_name(end.segment)]);
    assert_eq!(Log::open(files.clone(), config, Some(end)).unwrap().0.durable_end(), end);

    assert_eq!(files.read_small("small.toml", 10)?, None);
    files.write_atomically("small.toml", b"1")?;
    files.write_atomically("small.toml", b"22")?;
    assert_eq!(files.read_small("small.toml", 10)?.as_deref(), Some(&b"22"[..]));
    assert!(files.read_small("small.toml", 1).is_err());
    assert_eq!(files.create("small.toml").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(files.list()?.len(), 2);
    Ok(())
}

#[test]
fn header_and_frame_sizes_are_as_drawn() {
    assert_eq!((SEGMENT_HEADER_BYTES, FRAME_HEADER_BYTES), (40, 40));
    assert_eq!((frame_bytes(1), frame_bytes(8), frame_bytes(9), frame_bytes(170)), (48, 48, 56, 216));
}

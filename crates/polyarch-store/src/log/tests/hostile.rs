//! Bytes that no log ever wrote, and bytes that changed since.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use polyarch_protocol::{LogPosition, LogReadError, LogSource};
use proptest::prelude::*;

use super::life::{Life, small_config};
use crate::files::simulated::SimulatedDisk;
use crate::log::format::{encode_frame, segment_name};
use crate::log::{Log, LogError, LogInspection};

/// A log of several segments, all of it synced.
fn written(seed: u64) -> (SimulatedDisk, Life<SimulatedDisk>) {
    let disk = SimulatedDisk::new(seed, 512);
    let mut life = Life::open(&disk, small_config(), None).unwrap();
    for group in 0..30 {
        life.append_group(1 + (seed as usize + group) % 5, 60 + group);
        life.log.sync().unwrap();
    }
    (disk, life)
}

/// What an opened log gives; errors of the reader count as an error.
fn opened(disk: &SimulatedDisk, known_synced: Option<LogPosition>) -> Result<Vec<(LogPosition, Bytes)>, String> {
    let (log, _) = Log::open(disk.clone(), small_config(), known_synced).map_err(|error| error.to_string())?;
    let mut frames = Vec::new();
    let start = log.segments()[0].start;
    log.replay(start, |end, write_set| {
        frames.push((end, write_set));
        Ok::<_, LogReadError>(())
    })
    .map_err(|error| error.to_string())?;
    Ok(frames)
}

#[derive(Debug, Clone)]
enum Mutation {
    Flip(u64, usize, u8),
    Cut(u64, usize),
    Fill(u64, usize, Vec<u8>),
    Lose(u64),
    Copy(u64, u64),
}

fn mutations() -> impl Strategy<Value = Mutation> {
    let segment = 1..6u64;
    prop_oneof![
        4 => (segment.clone(), 0..3_000usize, 0..8u8).prop_map(|(s, at, bit)| Mutation::Flip(s, at, bit)),
        2 => (segment.clone(), 0..4_000usize).prop_map(|(s, len)| Mutation::Cut(s, len)),
        2 => (segment.clone(), 0..3_000usize, prop::collection::vec(any::<u8>(), 1..600)).prop_map(|(s, at, b)| Mutation::Fill(s, at, b)),
        1 => (segment.clone(), 0..3_000usize, 1..600usize).prop_map(|(s, at, len)| Mutation::Fill(s, at, vec![0; len])),
        1 => segment.clone().prop_map(Mutation::Lose),
        1 => (segment.clone(), segment).prop_map(|(from, to)| Mutation::Copy(from, to)),
    ]
}

impl Mutation {
    fn apply(&self, disk: &SimulatedDisk) {
        match self {
            Self::Flip(segment, at, bit) => disk.damage(&segment_name(*segment), |bytes| {
                if let Some(byte) = bytes.get_mut(*at) {
                    *byte ^= 1 << bit;
                }
            }),
            Self::Cut(segment, len) => disk.damage(&segment_name(*segment), |bytes| bytes.truncate(*len)),
            Self::Fill(segment, at, with) => disk.damage(&segment_name(*segment), |bytes| {
                bytes.iter_mut().skip(*at).zip(with).for_each(|(byte, with)| *byte = *with);
            }),
            Self::Lose(segment) => disk.lose(&segment_name(*segment)),
            Self::Copy(from, to) => {
                let bytes = disk.contents(&segment_name(*from)).unwrap_or_default();
                disk.damage(&segment_name(*to), |to| *to = bytes);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// With a checkpoint at the end nothing is lost in silence, whatever happens to the files.
    #[test]
    fn what_is_known_as_synced_is_given_or_missed(seed in 0..8u64, mutations in prop::collection::vec(mutations(), 1..4)) {
        let (disk, life) = written(seed);
        mutations.iter().for_each(|mutation| mutation.apply(&disk));
        // Segments that were lost at the front were perhaps removed: the store's mark knows.
        if let Ok(frames) = opened(&disk, Some(life.log.durable_end())) {
            prop_assert!(life.frames.ends_with(&frames));
            let segments_lost = life.frames.len() != frames.len();
            prop_assert!(!segments_lost || mutations.iter().any(|m| matches!(m, Mutation::Lose(_))));
        }
    }

    /// Without one the log may end early, by its law, but never holds what was not written.
    #[test]
    fn a_damaged_log_opens_as_a_part_of_itself_or_not(seed in 0..8u64, mutations in prop::collection::vec(mutations(), 1..4)) {
        let (disk, life) = written(seed);
        mutations.iter().for_each(|mutation| mutation.apply(&disk));
        let inspected: Result<Vec<_>, _> = LogInspection::new(disk.clone(), None).and_then(Iterator::collect);
        let frames = opened(&disk, None);
        prop_assert_eq!(inspected.is_ok(), frames.is_ok());
        if let Ok(frames) = frames {
            let begins = frames.first().and_then(|first| life.frames.iter().position(|frame| frame == first));
            prop_assert!(frames.is_empty() || life.frames[begins.unwrap()..].starts_with(&frames));
            prop_assert_eq!(opened(&disk, None), Ok(frames));
        }
    }

    #[test]
    fn rubbish_is_refused_or_empty(files in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2_000), 1..4), first in 1..3u64) {
        let disk = SimulatedDisk::new(1, 512);
        for (number, bytes) in (first..).zip(&files) {
            disk.damage(&segment_name(number), |to| to.clone_from(bytes));
        }
        if let Ok(frames) = opened(&disk, None) {
            prop_assert_eq!(frames, []);
        }
    }
}

/// Each bit of each synced frame but the last group's: later frames say that it was synced.
#[test]
fn a_flipped_bit_before_the_last_group_is_always_damage() {
    let (disk, life) = written(3);
    let last_group = life.frames[life.frames.len() - 6].0;
    let names: Vec<_> = (1..=last_group.segment).map(segment_name).collect();
    let originals: Vec<_> = names.iter().map(|name| disk.contents(name).unwrap()).collect();
    for (index, name) in names.iter().enumerate() {
        let number = index as u64 + 1;
        let end = life.log.segments()[index].end.offset.min(if number == last_group.segment {
            last_group.offset
        } else {
            u64::MAX
        });
        for at in (0..end as usize).step_by(3) {
            disk.damage(name, |bytes| bytes[at] ^= 1 << (at % 8));
            match opened(&disk, None) {
                // In the zeros behind a write set or header, which mean nothing.
                Ok(frames) => assert_eq!(frames, life.frames, "{name} byte {at}"),
                Err(error) => assert!(error.contains("damaged") || error.contains("version"), "{error}"),
            }
            disk.damage(name, |bytes| bytes.clone_from(&originals[index]));
        }
    }
}

#[test]
fn a_missing_segment_is_damage() {
    let (disk, _) = written(1);
    disk.lose(&segment_name(2));
    let error = Log::open(disk, small_config(), None).unwrap_err().to_string();
    assert!(error.starts_with("0000000002.log is missing, but 0000000003.log exists."), "{error}");
}

#[test]
fn a_lost_end_is_damage_when_the_checkpoint_knows_of_it() {
    let (disk, life) = written(1);
    let end = life.log.durable_end();
    let last = segment_name(end.segment);
    disk.damage(&last, |bytes| bytes[end.offset as usize - 20] ^= 1);
    let before = disk.contents(&last);
    assert!(matches!(Log::open(disk.clone(), small_config(), Some(end)), Err(LogError::Damaged(_))));
    assert_eq!(disk.contents(&last), before, "nothing was changed");
    // Nothing else can know of the last group.
    assert!(opened(&disk, None).is_ok());
    disk.lose(&last);
    let lost = Log::open(disk.clone(), small_config(), Some(end)).unwrap_err();
    assert!(matches!(lost, LogError::Lost { synced, .. } if synced == end), "{lost}");
    for number in 1..end.segment {
        disk.lose(&segment_name(number));
    }
    let lost = Log::open(disk.clone(), small_config(), Some(end)).unwrap_err();
    assert!(
        lost.to_string().starts_with(&format!("the log ends at 0:0, but a checkpoint holds it up to {end}:")),
        "{lost}"
    );
    assert_eq!(opened(&disk, None), Ok(Vec::new()));
}

/// A value that looks like a frame must not be believed after its own frame was torn.
#[test]
fn a_value_that_looks_like_a_frame_is_no_evidence() {
    let disk = SimulatedDisk::new(1, 512);
    let mut life = Life::open(&disk, small_config(), None).unwrap();
    let at = life.log.durable_end();
    let claims = LogPosition { segment: 9, offset: 8 };
    let forge = |salt| {
        let mut value = vec![0; 8];
        let inner = LogPosition { offset: at.offset + 48, ..at };
        encode_frame(&mut value, b"forged", inner, claims, 0, salt);
        value
    };
    life.log.append(&forge(0), &Default::default()).unwrap();
    life.log.sync().unwrap();
    let torn = |bytes: &mut Vec<u8>| bytes[at.offset as usize] ^= 1;
    disk.damage(&segment_name(1), torn);
    assert_eq!(opened(&disk, None), Ok(Vec::new()));

    // With the salt it would be: that is what the salt is for.
    let disk = SimulatedDisk::new(1, 512);
    let mut life = Life::open(&disk, small_config(), None).unwrap();
    life.log.append(&forge(small_config().salt), &Default::default()).unwrap();
    life.log.sync().unwrap();
    disk.damage(&segment_name(1), torn);
    assert!(opened(&disk, None).is_err());
}

#[test]
fn a_reader_says_where_a_file_is_damaged() {
    let (disk, life) = written(1);
    let segments = life.log.segments();
    let at = segments[1].start;
    disk.damage(&segment_name(2), |bytes| bytes[at.offset as usize + 45] ^= 1);
    let reader = life.log.reader();
    let read = reader.read(at, 1);
    assert!(matches!(read, Err(LogReadError::Damaged { position, .. }) if position == at), "{read:?}");
    // What lies before is given first.
    let batch = reader.read(segments[0].start, usize::MAX).unwrap();
    assert!(!batch.write_sets.is_empty());
    assert!(reader.read(batch.next, 1).is_err());
    let told = || life.log.published.lock().damage_told.iter().copied().collect::<Vec<_>>();
    assert_eq!(told(), [at], "it is logged once");
    disk.lose(&segment_name(1));
    assert!(matches!(reader.read(segments[0].start, 1), Err(LogReadError::Damaged { .. })));
}

#[test]
fn no_bytes_make_the_formats_panic() {
    let run = AssertUnwindSafe(|| {
        let mut random = crate::files::simulated::SplitMix64::new(1);
        for len in 0..200 {
            let mut bytes: Vec<u8> = (0..len).map(|_| random.next_u64() as u8).collect();
            for (byte, with) in bytes.iter_mut().zip(crate::log::format::MAGIC.into_iter().chain([1, 0, 0, 0])) {
                *byte = with;
            }
            drop(crate::log::format::SegmentHeader::decode(&bytes));
        }
    });
    assert!(catch_unwind(run).is_ok());
}

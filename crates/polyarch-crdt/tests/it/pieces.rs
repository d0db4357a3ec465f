//! Records cut into pieces and put together again, as a snapshot sends those that are too long for
//! one message.

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Dot, FieldChange, FieldPath, Hlc, Record};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::support::{FIELDS, KEYS, State, cases, dot, small_history};

/// What one sibling or absorb entry takes beside its value and its field's path.
const ITEM_BYTES: usize = 35;
/// Absorb entries that stay together.
const ABSORB_AT_ONCE: usize = 1_024;

/// Records of several fields with siblings and absorb entries of any lengths.
fn record() -> impl Strategy<Value = Record> {
    let path = prop_oneof![Just(String::new()), "/[a-c]{0,20}"];
    let change = (path, 1..5_u32, 1..9_u64, vec((1..5_u32, 1..40_u64), 0..12), prop::option::of(0..300_usize));
    vec(change, 0..24).prop_map(|changes| {
        let mut record = Record::default();
        for (path, server_id, seq, supersedes, put) in changes {
            let (path, value) = (FieldPath::from(&*path), put.map(|len| Bytes::from(vec![b'v'; len])));
            let own = dot(server_id, seq);
            let mut supersedes: Vec<Dot> = supersedes.into_iter().map(|(id, seq)| dot(id, seq)).collect();
            supersedes.retain(|old| *old != own);
            let change = FieldChange { path: &path, supersedes: &supersedes, put: value.as_ref() };
            let _ = record.apply(own, Hlc::new(seq, 0), &change, &AppliedSet::new());
        }
        record
    })
}

fn united<'a>(pieces: impl IntoIterator<Item = &'a Record>) -> Record {
    let mut record = Record::default();
    pieces.into_iter().for_each(|piece| record.unite(piece.clone()));
    record
}

fn postcard_bytes(record: &Record) -> usize {
    postcard::to_extend(record, Vec::new()).expect("a Vec takes all that is written").len()
}

/// What a piece takes for its only item, or the greatest bound that it has to keep to.
fn greatest_item(piece: &Record) -> usize {
    let items = piece.fields().iter().map(|field| {
        let value = field.siblings().iter().map(|s| ITEM_BYTES + s.value.len()).max().unwrap_or(0);
        let absorb = field.absorb().len().min(ABSORB_AT_ONCE) * 20;
        field.path().as_str().len() + value.max(absorb)
    });
    items.max().unwrap_or(0)
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn pieces_united_in_any_order_and_any_number_of_times_are_the_record(
        record in record(), bytes_max in 0..2_000_usize, order in vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let pieces = record.pieces(bytes_max);
        prop_assert_eq!(united(&pieces), record.clone());
        prop_assert_eq!(united(pieces.iter().rev()), record.clone());
        let again = order.iter().map(|at| &pieces[at.index(pieces.len())]);
        prop_assert_eq!(united(again.chain(&pieces)), record);
    }

    #[test]
    fn each_piece_is_sound_and_no_longer_than_it_may_be(record in record(), bytes_max in 0..2_000_usize) {
        let pieces = record.pieces(bytes_max);
        prop_assert!(!pieces.is_empty());
        prop_assert!(pieces.len() == 1 || pieces.iter().all(|piece| !piece.is_empty()));
        for piece in &pieces {
            prop_assert_eq!(piece.validate(), Ok(()));
            let items: usize = piece.fields().iter().map(|f| f.siblings().len() + usize::from(!f.absorb().is_empty())).sum();
            prop_assert!(items <= 1 || piece.encoded_bytes() <= bytes_max, "{} bytes", piece.encoded_bytes());
            prop_assert!(piece.encoded_bytes() <= bytes_max.max(greatest_item(piece)));
        }
    }

    #[test]
    fn a_record_takes_about_as_many_bytes_as_it_says(record in record()) {
        let lengths: usize = record.fields().iter().map(|_| 3).sum::<usize>() + 1;
        prop_assert!(postcard_bytes(&record) <= record.encoded_bytes() + lengths);
    }

    /// A walk that broke off within a record goes on later with pieces of what the record is by then.
    /// What was superseded between the two moments goes when the log in between is applied.
    #[test]
    fn pieces_of_two_moments_and_the_write_sets_between_them_are_the_later_moment(
        history in small_history(2..=9), choices in vec(any::<u8>(), 0..=9), early in 0..9_usize,
        bytes_max in 0..120_usize, held in any::<prop::sample::Index>(), from in any::<prop::sample::Index>(),
    ) {
        // No checkpoint forgets absorb entries on the way: the walk has pinned them.
        let choices: Vec<u8> = choices.into_iter().filter(|choice| choice % 5 > 0).collect();
        let early = history.reach(&choices[..early.min(choices.len())]);
        let late = history.reach(&choices);
        prop_assert!(late.applied.includes_all(&early.applied));
        let mut resumed = State { applied: early.applied.clone(), ..State::default() };
        for key in KEYS {
            let (before, after) = (early.record(key).pieces(bytes_max), late.record(key).pieces(bytes_max));
            let before = &before[..held.index(before.len() + 1)];
            // All pieces of the later moment came, after some of the earlier one, and some came twice.
            let twice = &after[from.index(after.len())..];
            let record = united(before.iter().chain(&after).chain(twice));
            prop_assert_eq!(record.validate(), Ok(()));
            resumed.records.insert(key, record);
        }
        resumed.records.retain(|_, record| !record.is_empty());
        for write_set in history.write_sets.iter().filter(|w| late.applied.includes(w.dot)) {
            resumed.apply(write_set);
        }
        prop_assert_eq!(&resumed.applied, &late.applied);
        prop_assert_eq!(resumed.settled(), late.settled());
        resumed.check(history.write_sets.iter()).map_err(TestCaseError::fail)?;
    }
}

#[test]
fn a_piece_holds_at_least_one_sibling_and_a_long_one_alone() {
    let path = FieldPath::from(FIELDS[0]);
    let mut record = Record::default();
    for (server_id, len) in [(1, 10), (2, 5_000), (3, 10), (4, 10)] {
        let value = Bytes::from(vec![b'v'; len]);
        let change = FieldChange { path: &path, supersedes: &[], put: Some(&value) };
        let _ = record.apply(dot(server_id, 1), Hlc::default(), &change, &AppliedSet::new());
    }
    let lens = |bytes_max| record.pieces(bytes_max).iter().map(|piece| piece.siblings(&path).len()).collect::<Vec<_>>();
    assert_eq!(lens(200), [1, 1, 2]);
    assert_eq!(lens(0), [1, 1, 1, 1]);
    assert_eq!(lens(usize::MAX), [4]);
    assert_eq!(Record::default().pieces(100), [Record::default()]);
}

#[test]
fn many_absorb_entries_are_cut_too() {
    let early: Vec<Dot> = (1..=5_000).map(|seq| dot(2, seq)).collect();
    let mut record = Record::default();
    let change = FieldChange { path: &FieldPath::opaque(), supersedes: &early, put: None };
    let _ = record.apply(dot(1, 1), Hlc::default(), &change, &AppliedSet::new());
    let pieces = record.pieces(1);
    assert_eq!(pieces.iter().map(Record::absorb_len).collect::<Vec<_>>(), [1_024, 1_024, 1_024, 1_024, 904]);
    assert_eq!(united(&pieces), record);
}

/// One that saw a sibling superseded it between the two moments, and came before it elsewhere.
#[test]
fn what_one_piece_shows_and_another_absorbs_is_not_live() {
    let (path, value) = (FieldPath::opaque(), Bytes::from_static(b"v"));
    let (mut shows, mut absorbs) = (Record::default(), Record::default());
    let put = FieldChange { path: &path, supersedes: &[], put: Some(&value) };
    let _ = shows.apply(dot(1, 1), Hlc::default(), &put, &AppliedSet::new());
    let over = FieldChange { path: &path, supersedes: &[dot(1, 1)], put: None };
    let _ = absorbs.apply(dot(2, 1), Hlc::default(), &over, &AppliedSet::new());
    for pieces in [[&shows, &absorbs], [&absorbs, &shows]] {
        let record = united(pieces);
        assert!(record.is_deleted());
        assert_eq!(record.validate(), Ok(()));
    }
}

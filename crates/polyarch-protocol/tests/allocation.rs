//! A length is a claim: no reader allocates for what it has not been sent.
//!
//! In a binary of its own, since it counts allocations through the global allocator.
#![allow(unsafe_code, reason = "a global allocator cannot be written without it")]

#[path = "support/messages.rs"]
mod messages;
#[path = "support/samples.rs"]
mod samples;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::Bytes;
use messages::{
    cases, mutated, peer_message, postcard_number, request, response, snapshot_part, snapshot_request, write_set,
};
use polyarch_protocol::catalog::SystemRecord;
use polyarch_protocol::client::{ClientRequest, ClientResponse};
use polyarch_protocol::limits::wire;
use polyarch_protocol::peer::{FeedGroup, PeerMessage};
use polyarch_protocol::{SnapshotPart, SnapshotRequest, WriteSet};
use proptest::prelude::*;

/// What a reader asks for before it knows better.
const BYTES_AHEAD_MAX: usize = 16 << 10;
/// What it may hold at once for each byte that was sent: items are wider in memory than in postcard.
const BYTES_PER_BYTE_SENT_MAX: usize = 48;

struct Watching;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn note(bytes: isize) {
    LIVE.set(LIVE.get() + bytes);
    PEAK.set(PEAK.get().max(LIVE.get()));
}

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, allocated: *mut u8, layout: Layout) {
        note(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(allocated, layout) }
    }

    unsafe fn realloc(&self, allocated: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both are there while it is copied.
        note(size as isize);
        note(-(layout.size() as isize));
        // SAFETY: the caller's promise.
        unsafe { System.realloc(allocated, layout, size) }
    }
}

#[global_allocator]
static WATCHING: Watching = Watching;

/// The most that this thread held at once within `read`, beyond what it held before.
fn peak<T>(read: impl FnOnce() -> T) -> usize {
    let before = LIVE.get();
    PEAK.set(before);
    let _ = read();
    (PEAK.get() - before) as usize
}

/// The reader that holds most for these bytes, whatever their kind byte says.
fn greatest(bytes: &[u8]) -> (&'static str, usize) {
    let of = |kind: u8| [&[kind], bytes.get(1..).unwrap_or_default()].concat();
    let (feed, compressed) = (Bytes::from(of(b'F')), Bytes::from(of(b'Z')));
    let (peer, request, response, record, write_set) = (of(b'P'), of(b'Q'), of(b'A'), of(b'S'), of(b'W'));
    let (asked, part) = (of(b'R'), of(b'N'));
    let peaks = [
        ("peer message", peak(|| PeerMessage::decode(&peer))),
        ("request", peak(|| ClientRequest::decode(&request))),
        ("response", peak(|| ClientResponse::decode(&response))),
        ("system record", peak(|| SystemRecord::decode(&record))),
        ("write set", peak(|| WriteSet::decode(&write_set))),
        ("snapshot request", peak(|| SnapshotRequest::decode(&asked))),
        ("snapshot part", peak(|| SnapshotPart::decode(&part))),
        ("dot", peak(|| WriteSet::peek_dot(&write_set))),
        ("feed group", peak(|| FeedGroup::decode(&feed))),
        ("compressed feed group", inflated(&compressed, peak(|| FeedGroup::decode(&compressed)))),
    ];
    peaks.into_iter().max_by_key(|(_, peak)| *peak).expect("there are some")
}

/// What a reader of a compressed group held beyond what its bytes may become, of which the block has
/// to be there: a byte of it becomes 255 at most.
fn inflated(frame: &[u8], held: usize) -> usize {
    held.saturating_sub(255 * frame.len().saturating_sub(6))
}

fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    let (reader, held) = greatest(bytes);
    let max = BYTES_AHEAD_MAX + bytes.len() * BYTES_PER_BYTE_SENT_MAX;
    prop_assert!(held <= max, "{} held {} bytes for {}", reader, held, bytes.len());
    Ok(())
}

proptest! {
    #![proptest_config(cases(1_000))]

    #[test]
    fn no_reader_allocates_for_a_length_that_is_only_claimed(
        peer in mutated(peer_message().prop_map(|m| m.encode())),
        write_set in mutated(write_set().prop_map(|w| w.encode().to_vec())),
        request in mutated(request().prop_map(|r| r.encode())),
        response in mutated(response().prop_map(|r| r.encode())),
        asked in mutated(snapshot_request().prop_map(|r| r.encode())),
        part in mutated(snapshot_part().prop_map(|p| p.encode())),
        random in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        for bytes in [peer, write_set, request, response, asked, part, random] {
            check(&bytes)?;
        }
    }
}

#[test]
fn a_claim_of_2_to_the_60_items_costs_nothing_wherever_it_stands() {
    for at in 0..40 {
        for fill in [0, 1, 2, 3] {
            let bytes = [&[0, 1], &vec![fill; at][..], &postcard_number(1 << 60)].concat();
            check(&bytes).expect("it costs nothing");
        }
    }
}

/// The densest messages: a million items of as few bytes as can be.
#[test]
fn many_small_items_cost_a_small_multiple_of_what_was_sent() {
    let mib = 1 << 20;
    let dense = |head: &[u8], item: &dyn Fn(u64) -> Vec<u8>| {
        let mut items = Vec::new();
        let mut count = 0;
        while items.len() < mib {
            items.extend(item(count));
            count += 1;
        }
        [head, &postcard_number(count), &items].concat()
    };
    let snapshot_record = [&[b'N', 1, 2, 1, 28][..], &[1; 28]].concat();
    let origin = |i: u64| [postcard_number(1 + i), vec![0, 1]].concat();
    let messages = [
        ("heartbeat's applied-set", dense(&[b'P', 1, 1], &origin)),
        ("heartbeat's links", dense(&[b'P', 1, 1, 0, 0, 0], &|_| vec![1])),
        ("write set's dependencies", dense(&[b'W', 1, 1, 1, 2, 0, 1], &origin)),
        ("write set's changes", dense(&[b'W', 1, 1, 1, 2, 0, 1, 0], &|_| vec![0; 8])),
        ("change's dots", dense(&[b'W', 1, 1, 1, 2, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0], &|_| vec![1, 0, 1])),
        ("request's changes", dense(&[b'Q', 1, 1, 0, 0, 1], &|_| vec![0; 4])),
        ("member's addresses", dense(&[b'S', 1, 0, 1], &|_| vec![0])),
        ("link states' links", dense(&[b'P', 1, 4, 1, 1, 1, 1, 0], &|_| vec![1])),
        ("twin's addresses", dense(&[b'P', 1, 5], &|_| vec![0])),
        ("status's peers' links", dense(&[b'A', 1, 1, 0, 5], &|_| vec![0; 4])),
        ("bucket keys", dense(&[b'P', 1, 8, 0, 0], &|_| [vec![18], vec![0; 19]].concat())),
        ("page's records", dense(&[b'A', 1, 1, 0, 2], &|_| vec![0; 3])),
        ("snapshot's heads", dense(&[b'N', 1, 4], &|i| [postcard_number(1 + i), vec![0, 1], vec![7; 32]].concat())),
        ("snapshot's epochs", dense(&[b'N', 1, 0, 1, 1, 1, 0, 0], &|i| [postcard_number(i), vec![1, 1]].concat())),
        ("snapshot's log", dense(&[b'N', 1, 3], &|_| vec![0])),
        ("snapshot's fields", dense(&snapshot_record, &|_| vec![0; 3])),
        (
            "snapshot's siblings",
            dense(&[&snapshot_record[..], &[1, 0]].concat(), &|i| {
                [vec![1, 1], postcard_number(1 + i), vec![1, 0]].concat()
            }),
        ),
        (
            "snapshot's absorb",
            dense(&[&snapshot_record[..], &[1, 0, 0]].concat(), &|i| [vec![1, 1], postcard_number(1 + i)].concat()),
        ),
    ];
    for (what, bytes) in messages {
        let (reader, held) = greatest(&bytes);
        println!("{what}: {reader} holds {:.1} times what was sent", held as f64 / bytes.len() as f64);
        assert!(held <= BYTES_AHEAD_MAX + bytes.len() * BYTES_PER_BYTE_SENT_MAX, "{what}: {held}");
    }
}

/// More changes than a write may have are refused unread; as many as it may have fit in a frame's room.
#[test]
fn the_most_changes_of_the_fewest_bytes_take_no_more_than_a_frame() {
    let changes =
        |head: &[u8], len: usize, item: usize| [head, &postcard_number(len as u64), &vec![0; len * item]].concat();
    for (head, item) in [(&[b'Q', 1, 1, 0, 0, 1][..], 4), (&[b'W', 1, 1, 1, 2, 0, 1, 0], 8)] {
        let (reader, held) = greatest(&changes(head, wire::CHANGES_MAX, item));
        assert!((1 << 20..wire::FRAME_BYTES_MAX).contains(&held), "{reader} held {held}");
        let (reader, held) = greatest(&changes(head, wire::CHANGES_MAX + 1, item));
        assert!(held < wire::FRAME_BYTES_MAX / 8, "{reader} held {held}");
    }
}

/// Link states, and what a topology names, beyond what they may be are refused unread.
#[test]
fn lists_of_the_cluster_beyond_their_bounds_are_refused_unread() {
    let long =
        |head: &[u8], len: usize, item: usize| [head, &postcard_number(len as u64), &vec![1; len * item]].concat();
    let lists: [(&[u8], usize, usize); 10] = [
        (&[b'P', 1, 9, 0], 16, 1),
        (&[b'Q', 1, 1, 0, 0, 14], 4_096, 1),
        (&[b'A', 1, 1, 0, 10], wire::OUTLINES_MAX, 2),
        (&[b'N', 1, 2], 4_096, 1),
        (&[b'N', 1, 3], wire::CHANGES_MAX, 1),
        (&[b'P', 1, 4], wire::LINK_STATES_MAX, 6),
        (&[b'P', 1, 7], wire::PROGRESS_MAX, 4),
        (&[b'S', 1, 3, 2], wire::TOPOLOGY_NAMES_MAX, 1),
        (&[b'S', 1, 3, 3], wire::TOPOLOGY_NAMES_MAX, 2),
        (&[b'Q', 1, 1, 0, 0, 8, 3], wire::TOPOLOGY_NAMES_MAX, 2),
    ];
    for (head, max, item) in lists {
        let refused = long(head, max + 1, item);
        let held = match head[0] {
            b'P' => peak(|| PeerMessage::decode(&refused)),
            b'S' => peak(|| SystemRecord::decode(&refused)),
            b'Q' => peak(|| ClientRequest::decode(&refused)),
            _ => peak(|| SnapshotPart::decode(&refused)),
        };
        assert!(held < BYTES_AHEAD_MAX, "{head:?}: held {held}");
    }
    let topology = |len| SystemRecord::decode(&long(&[b'S', 1, 3, 3], len, 2));
    assert!(topology(wire::TOPOLOGY_NAMES_MAX).is_ok() && topology(wire::TOPOLOGY_NAMES_MAX + 1).is_err());
    assert!(ClientRequest::decode(&long(&[b'Q', 1, 1, 0, 0, 8, 3], wire::TOPOLOGY_NAMES_MAX, 2)).is_ok());
}

#[test]
fn a_compressed_group_takes_no_more_than_its_block_can_become() {
    let claim = |len: usize, block: &[u8]| {
        let frame: Bytes = [&[b'Z', 1][..], &(len as u32).to_le_bytes(), block].concat().into();
        (FeedGroup::decode(&frame).is_ok(), peak(|| FeedGroup::decode(&frame)))
    };
    for block in [&[][..], &[0x1f; 20], &[0; 1_000], &[0xff; 1_000]] {
        for len in [wire::FRAME_BYTES_MAX, wire::FRAME_BYTES_MAX + 1, usize::MAX] {
            let (is_ok, held) = claim(len, block);
            assert!(!is_ok && held < BYTES_AHEAD_MAX, "{held} held for {}", block.len());
        }
    }
    // All that a frame takes, of the smallest write sets, out of a 255th of it.
    let bomb = [&[b'F', 1][..], &[0; 8], &[1, 0, 0, 0, 7].repeat((wire::FRAME_BYTES_MAX - 10) / 5)].concat();
    let block = lz4_flex::block::compress(&bomb);
    assert!(block.len() < 80_000);
    let (is_ok, held) = claim(bomb.len(), &block);
    assert!(!is_ok && held < 4 * wire::FRAME_BYTES_MAX, "{held}");
}

#[test]
fn the_watch_sees_what_an_honest_reader_allocates() {
    let write_set = samples::write_set_samples().swap_remove(0).1;
    let bytes = write_set.encode();
    assert!(peak(|| WriteSet::decode(&bytes)) >= bytes.len() / 2);
}

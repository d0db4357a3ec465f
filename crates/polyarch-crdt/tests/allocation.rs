//! A length is a claim: no reader allocates for what it has not been sent.
//!
//! In a binary of its own, since it counts allocations through the global allocator.
#![allow(unsafe_code, reason = "a global allocator cannot be written without it")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use polyarch_crdt::{AppliedSet, CausalContext, Record, SealedContext, SessionToken};
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use support::{cases, dot};

/// A claim may cost a small multiple of the bytes that were sent (items in memory are wider than
/// in postcard), and what a reader asks for before it knows better.
const BYTES_PER_BYTE_SENT_MAX: usize = 64;
const BYTES_AHEAD_MAX: usize = 4 * 1024;

struct Watching;

thread_local! {
    static GREATEST: Cell<usize> = const { Cell::new(0) };
}

fn note(bytes: usize) {
    GREATEST.with(|greatest| greatest.set(greatest.get().max(bytes)));
}

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, allocated: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(allocated, layout) }
    }

    unsafe fn realloc(&self, allocated: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller's promise.
        unsafe { System.realloc(allocated, layout, size) }
    }
}

#[global_allocator]
static WATCHING: Watching = Watching;

/// The greatest single allocation of this thread within `read`.
fn greatest_allocation<T>(read: impl FnOnce() -> T) -> usize {
    GREATEST.set(0);
    let _ = read();
    GREATEST.get()
}

fn reading<T: DeserializeOwned>(bytes: &[u8]) -> usize {
    greatest_allocation(|| postcard::from_bytes::<T>(bytes))
}

fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    let max = BYTES_AHEAD_MAX + bytes.len() * BYTES_PER_BYTE_SENT_MAX;
    prop_assert!(reading::<AppliedSet>(bytes) <= max);
    prop_assert!(reading::<Record>(bytes) <= max);
    prop_assert!(reading::<CausalContext>(bytes) <= max);
    prop_assert!(reading::<SealedContext>(bytes) <= max);
    prop_assert!(greatest_allocation(|| SessionToken::from_bytes(&[&[1], bytes].concat())) <= max);
    Ok(())
}

/// Numbers as postcard writes them; some are absurd lengths.
fn numbers() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![6 => 0..4_u64, 1 => Just(1_u64 << 60), 1 => Just(u64::MAX), 1 => any::<u64>()];
    prop::collection::vec(number, 0..40).prop_map(|numbers| {
        let written =
            numbers.iter().map(|n| postcard::to_extend(n, Vec::new()).expect("a Vec takes all that is written"));
        written.collect::<Vec<_>>().concat()
    })
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn no_reader_allocates_for_a_length_that_is_only_claimed(bytes in numbers()) {
        check(&bytes)?;
    }
}

#[test]
fn a_claim_of_2_to_the_60_dots_costs_nothing() {
    let claim = postcard::to_extend(&(1_u64 << 60), Vec::new()).expect("a Vec takes all that is written");
    assert!(reading::<AppliedSet>(&claim) <= BYTES_AHEAD_MAX);
    assert!(reading::<Record>(&claim) <= BYTES_AHEAD_MAX);
    assert!(reading::<CausalContext>(&claim) <= BYTES_AHEAD_MAX);
}

#[test]
fn the_watch_sees_what_an_honest_reader_allocates() {
    let honest: AppliedSet = (1..=10_000).map(|server_id| dot(server_id, 1)).collect();
    let bytes = postcard::to_extend(&honest, Vec::new()).expect("a Vec takes all that is written");
    assert!(reading::<AppliedSet>(&bytes) >= 10_000 * size_of::<polyarch_crdt::Dot>());
}

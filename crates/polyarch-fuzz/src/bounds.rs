//! What an input may cost: memory and time are counted, and compared with a bound.
//!
//! A reader of hostile bytes that does not panic may still be told to allocate a gigabyte, or to look at a kilobyte for
//! a minute. So each target runs under an allocator that counts, and a clock. Counted is what the thread that runs the
//! target does: its memory as asked for, at its peak beyond what was there before, and its processor time, which other
//! work on the machine does not lengthen.
#![allow(unsafe_code, reason = "a global allocator cannot be written without it, nor the clock be asked")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::time::Duration;

/// The most that one input may take of the processor. What is slower can be used to keep a node busy.
pub const TIME_MAX: Duration = Duration::from_secs(1);

/// How often an input is run again that left something behind: what is made once, on first use, stays.
const RUNS_THAT_LEAK: usize = 3;

/// What an input may hold of memory at its peak: so much in any case, and so much for each of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryBound {
    /// Bytes for an input of none.
    pub ahead: usize,
    /// Bytes more for each byte of it.
    pub per_byte: usize,
}

impl MemoryBound {
    /// Of an input of so many bytes.
    pub fn of(self, len: usize) -> usize {
        self.ahead + self.per_byte * len
    }
}

/// What an input cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// The most memory that was held at once, beyond what was before.
    pub peak_bytes: usize,
    /// What is held more than before.
    pub left_bytes: isize,
    /// Processor time.
    pub time: Duration,
}

/// Runs `target` on an input and says what it cost.
///
/// # Panics
/// When it cost more than it may, or leaves memory behind each time it is run; and when the target does.
pub fn check(name: &str, bound: MemoryBound, target: fn(&[u8]), data: &[u8]) -> Cost {
    let cost = measured(|| target(data));
    let max = bound.of(data.len());
    assert!(
        cost.peak_bytes <= max,
        "{name}: {} bytes held for an input of {}, at most {max}",
        cost.peak_bytes,
        data.len()
    );
    assert!(
        cost.time <= TIME_MAX,
        "{name}: {:?} for an input of {} bytes, at most {TIME_MAX:?}",
        cost.time,
        data.len()
    );
    let leaks = cost.left_bytes > 0 && (0..RUNS_THAT_LEAK).all(|_| measured(|| target(data)).left_bytes > 0);
    assert!(!leaks, "{name}: {} bytes are left behind by an input of {}", cost.left_bytes, data.len());
    cost
}

fn measured(work: impl FnOnce()) -> Cost {
    let (before, began) = (LIVE.get(), processor_time());
    PEAK.set(before);
    work();
    let peak_bytes = usize::try_from(PEAK.get() - before).unwrap_or(0);
    Cost { peak_bytes, left_bytes: LIVE.get() - before, time: processor_time().saturating_sub(began) }
}

/// What this thread has had of the processor.
fn processor_time() -> Duration {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the structure is as long as the call writes.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, time.as_mut_ptr()) };
    assert_eq!(status, 0, "this system does not tell a thread's processor time");
    // SAFETY: a call that succeeded has written all of it.
    let time = unsafe { time.assume_init() };
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// The system's allocator, which counts.
struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn note(bytes: isize) {
    // A thread frees something yet when its own variables are gone.
    let live = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        live.get()
    });
    let Ok(live) = live else { return };
    let _gone = PEAK.try_with(|peak| peak.set(peak.get().max(live)));
}

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
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
static COUNTING: Counting = Counting;

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::panic::catch_unwind;
    use std::sync::Mutex;

    use super::*;

    const NOTHING: MemoryBound = MemoryBound { ahead: 0, per_byte: 0 };

    fn outcome(bound: MemoryBound, target: fn(&[u8]), data: &[u8]) -> Result<Cost, String> {
        let data = data.to_vec();
        let caught = catch_unwind(move || check("it", bound, target, &data));
        caught.map_err(|panic| panic.downcast_ref::<String>().expect("a message").clone())
    }

    #[test]
    fn memory_beyond_the_bound_is_seen() {
        let target = |data: &[u8]| drop(black_box(vec![1_u8; 100 * data.len()]));
        let bound = MemoryBound { ahead: 0, per_byte: 100 };
        assert_eq!(outcome(bound, target, &[0; 7]).unwrap().peak_bytes, 700);
        let short = MemoryBound { per_byte: 99, ..bound };
        assert!(outcome(short, target, &[0; 7]).unwrap_err().contains("700 bytes held for an input of 7, at most 693"));
    }

    #[test]
    fn time_beyond_the_bound_is_seen_and_waiting_is_not_counted() {
        let busy = |_: &[u8]| {
            let began = processor_time();
            while processor_time() - began <= TIME_MAX {}
        };
        assert!(outcome(NOTHING, busy, &[]).unwrap_err().contains("for an input of 0 bytes, at most 1s"));
        let waits = |_: &[u8]| std::thread::sleep(TIME_MAX);
        assert!(outcome(NOTHING, waits, &[]).unwrap().time < TIME_MAX);
    }

    #[test]
    fn what_is_left_behind_is_seen_unless_it_is_made_once() {
        static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
        let room = MemoryBound { ahead: 1 << 20, per_byte: 0 };
        let leaks = |_: &[u8]| KEPT.lock().expect("nobody panics with it").push(vec![0; 1_000]);
        assert!(outcome(room, leaks, &[]).unwrap_err().contains("left behind"));
        static ONCE: Mutex<Vec<u8>> = Mutex::new(Vec::new());
        let once = |_: &[u8]| ONCE.lock().expect("nobody panics with it").reserve(100);
        assert!(outcome(room, once, &[]).unwrap().left_bytes >= 100);
    }
}

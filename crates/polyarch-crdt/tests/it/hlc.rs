//! Stamps rise whatever the wall clock does, follow what was observed, and refuse the absurd.

use polyarch_crdt::{Hlc, HlcClock, Observed};
use proptest::prelude::*;

use crate::support::cases;

/// The greatest millisecond that a stamp can hold: the year 10889.
const MILLIS_MAX: u64 = (1 << 48) - 1;

#[derive(Debug, Clone)]
enum Event {
    Tick { now_ms: u64 },
    Observe { stamp: Hlc, now_ms: u64, ahead_max_ms: u64 },
}

fn event() -> impl Strategy<Value = Event> {
    // Mostly a few instants, so that they meet; sometimes any.
    let millis = || prop_oneof![4 => 0..20_u64, 1 => 0..=MILLIS_MAX - 1];
    let counter = || prop_oneof![2 => 0..3_u16, 1 => Just(u16::MAX)];
    prop_oneof![
        millis().prop_map(|now_ms| Event::Tick { now_ms }),
        (millis(), counter(), millis(), 0..30_u64).prop_map(|(stamp_ms, counter, now_ms, ahead_max_ms)| {
            Event::Observe { stamp: Hlc::new(stamp_ms, counter), now_ms, ahead_max_ms }
        }),
    ]
}

proptest! {
    #![proptest_config(cases(1_000))]

    #[test]
    fn each_stamp_is_above_all_that_were_given_out_or_merged(start in 0..30_u64, events in prop::collection::vec(event(), 1..40)) {
        let mut clock = HlcClock::starting_after(Hlc::new(start, 0));
        let mut greatest = Hlc::new(start, 0);
        for event in events {
            match event {
                Event::Tick { now_ms } => {
                    let stamp = clock.tick(now_ms);
                    prop_assert!(stamp > greatest);
                    prop_assert!(stamp.millis() >= now_ms, "not before the wall clock");
                    greatest = stamp;
                }
                Event::Observe { stamp, now_ms, ahead_max_ms } => {
                    let ahead_ms = stamp.millis().saturating_sub(now_ms);
                    let observed = clock.observe(stamp, now_ms, ahead_max_ms);
                    if ahead_ms > ahead_max_ms {
                        prop_assert_eq!(observed, Observed::TooFarAhead { ahead_ms });
                    } else {
                        prop_assert_eq!(observed, Observed::Merged);
                        greatest = greatest.max(stamp);
                    }
                }
            }
            prop_assert_eq!(clock.last(), greatest);
        }
    }

    #[test]
    fn a_stamp_keeps_its_parts_and_its_order(one in (0..=MILLIS_MAX, any::<u16>()), two in (0..=MILLIS_MAX, any::<u16>())) {
        let stamp = Hlc::new(one.0, one.1);
        prop_assert_eq!((stamp.millis(), stamp.counter()), one);
        prop_assert_eq!(stamp.cmp(&Hlc::new(two.0, two.1)), one.cmp(&two));
        prop_assert_eq!(stamp.to_string(), format!("{}.{}", one.0, one.1));
    }
}

#[test]
fn a_clock_that_is_right_again_is_followed_again() {
    let mut clock = HlcClock::default();
    let ahead = clock.tick(1_000);
    assert_eq!(clock.tick(10), Hlc::new(1_000, ahead.counter() + 1));
    assert_eq!(clock.tick(2_000), Hlc::new(2_000, 0));
}

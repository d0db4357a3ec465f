use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use super::directory::suspect;

/// Watches steps that take no time as long as a state is whole, and never end in one that is damaged so
/// that its pages lead round in a circle.
///
/// A thread counts ticks. Whoever begins a step notes at which tick, and that it has ended; one that has
/// lasted for some ticks is stuck. Nothing can end it, but others are kept from going the same way, and
/// the state is marked for the next open.
pub(super) struct Watch {
    dir: PathBuf,
    patience: Duration,
    /// At least 1.
    tick: AtomicU64,
    beats: Mutex<Vec<Weak<AtomicU64>>>,
    is_stuck: AtomicBool,
}

/// What one user of the state is at: the tick at which its step began, 0 between steps.
#[derive(Debug, Default)]
pub(super) struct Beat(Arc<AtomicU64>);

/// Ticks that a step may take, about.
const TICKS_MAX: u64 = 8;

impl Watch {
    /// Watches the state in `dir` until it is dropped. Where there is no thread to be had, nobody watches.
    pub(super) fn begin(dir: PathBuf, patience: Duration) -> Arc<Self> {
        let (tick, beats, is_stuck) = (AtomicU64::new(1), Mutex::default(), AtomicBool::new(false));
        let watch = Arc::new(Self { dir, patience, tick, beats, is_stuck });
        let watched = Arc::downgrade(&watch);
        let spawned = thread::Builder::new().name("state-watch".into()).spawn(move || {
            let pause = patience / TICKS_MAX as u32;
            loop {
                thread::sleep(pause);
                match watched.upgrade() {
                    Some(watch) if !watch.is_stuck() => watch.look(),
                    _ => return,
                }
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "there is no thread to watch whether the state answers");
        }
        watch
    }

    pub(super) fn is_stuck(&self) -> bool {
        self.is_stuck.load(Ordering::Acquire)
    }

    /// How long a step may take.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// A new user.
    pub(super) fn beat(&self) -> Beat {
        let beat = Beat::default();
        self.beats.lock().push(Arc::downgrade(&beat.0));
        beat
    }

    /// A step begins, and the one before has ended.
    pub(super) fn step(&self, beat: &Beat) {
        beat.0.store(self.tick.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn look(&self) {
        let now = self.tick.fetch_add(1, Ordering::Relaxed) + 1;
        let mut beats = self.beats.lock();
        beats.retain(|beat| beat.strong_count() > 0);
        let began = beats.iter().filter_map(Weak::upgrade).map(|beat| beat.load(Ordering::Relaxed));
        if began.filter(|began| *began > 0).any(|began| now - began > TICKS_MAX) {
            let why = format!("it did not answer within {} s", self.patience.as_secs_f32());
            tracing::error!(
                directory = %self.dir.display(),
                "the state did not answer within {} s: its pages are damaged, or the disk stands still. It is read no more. \
                 Restart the node, which rebuilds it from the log; where the log does not go back so far, `polyarch repair` \
                 counts it and keeps it if it is whole",
                self.patience.as_secs_f32()
            );
            suspect(&self.dir, &why);
            self.is_stuck.store(true, Ordering::Release);
        }
    }
}

impl Beat {
    /// What comes now may take its time.
    pub(super) fn rest(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_does_not_end_is_found_and_one_that_rests_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let watch = Watch::begin(dir.path().into(), Duration::from_secs(3_600));
        let (resting, stepping) = (watch.beat(), watch.beat());
        watch.step(&resting);
        resting.rest();
        for _ in 0..20 * TICKS_MAX {
            watch.step(&stepping);
            watch.look();
        }
        assert!(!watch.is_stuck());
        (0..=TICKS_MAX).for_each(|_| watch.look());
        assert!(watch.is_stuck() && dir.path().join("DAMAGED").exists());
    }
}

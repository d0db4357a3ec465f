//! Disks that are copied, and copies that are put in the place of disks.

use super::World;
use super::faults::{Armed, End};
use crate::disk::Image;
use crate::evidence::Evidence;
use crate::history::NodeHistory;
use crate::invariants::{Checked, Violation};
use crate::scenario::LogRemoval;

/// Images that are kept of one node.
const IMAGES_MAX: usize = 3;

/// What there is of a node's disk as it was.
#[derive(Debug, Default)]
pub(super) struct Images {
    taken: Vec<Taken>,
    /// An older disk was put in the place of its own, at some time.
    pub(super) was_set_back: bool,
}

/// A disk as it was, and all that is known of it from the outside.
#[derive(Debug, Clone, Default)]
struct Taken {
    image: Image,
    history: NodeHistory,
    evidence: Evidence,
}

impl World {
    /// Takes an image of a disk, or puts one that was taken in its place. Says whether it did.
    pub(super) fn image_or_set_back(&mut self, at: usize) -> Result<bool, Violation> {
        let taken = self.images[at].taken.len();
        if taken == 0 || (taken < IMAGES_MAX && self.rng.chance(300)) || !self.is_known_beside(&[at]) {
            if taken < IMAGES_MAX {
                self.take_image(at);
            }
            return Ok(false);
        }
        let image = self.pick_image(at);
        self.set_back(at, image)?;
        Ok(true)
    }

    /// Puts an older image in the place of every disk that there is one of.
    pub(super) fn set_back_all(&mut self) -> Result<bool, Violation> {
        let all: Vec<usize> = (0..self.members()).filter(|at| !self.images[*at].taken.is_empty()).collect();
        let picked: Vec<_> = all.iter().map(|at| self.pick_image(*at)).collect();
        let is_known = |history: &NodeHistory| history.durable().seen().missing_of(&self.founding).is_none();
        let is_known = picked.iter().any(|taken| is_known(&taken.history)) || self.is_known_beside(&all);
        if all.len() < 2 || !is_known {
            return Ok(false);
        }
        for (at, image) in all.into_iter().zip(picked) {
            self.set_back(at, image)?;
        }
        Ok(true)
    }

    /// Puts an image in the place of a node's disk, if there is one and it may be.
    pub(super) fn set_back_at_all(&mut self, at: usize) -> Result<bool, Violation> {
        if self.images[at].taken.is_empty() || !self.is_known_beside(&[at]) {
            return Ok(false);
        }
        let image = self.pick_image(at);
        self.set_back(at, image)?;
        Ok(true)
    }

    /// Puts an empty disk in the place of a node's: its server id was used before.
    pub(super) fn lose_disk(&mut self, at: usize) -> Result<bool, Violation> {
        let is_known = self.is_known_beside(&[at]);
        if is_known {
            self.set_back(at, Taken::default())?;
        }
        Ok(is_known)
    }

    fn take_image(&mut self, at: usize) {
        if self.evidence[at].is_damaged() {
            return;
        }
        self.images[at].taken.push(Taken {
            image: self.nodes[at].devices.image(),
            history: self.history.node(at).clone(),
            evidence: self.evidence[at].clone(),
        });
    }

    /// One of those that were taken; some stay, to be used again.
    fn pick_image(&mut self, at: usize) -> Taken {
        let which = self.rng.index(self.images[at].taken.len());
        match self.rng.chance(400) {
            true => self.images[at].taken[which].clone(),
            false => self.images[at].taken.remove(which),
        }
    }

    /// Whether a node that is not one of `these` knows of the cluster at all, and will after whatever its disk
    /// has suffered.
    pub(super) fn is_known_beside(&self, these: &[usize]) -> bool {
        let is_sound = |other: &usize| !self.evidence[*other].is_damaged();
        let others = (0..self.members()).filter(|other| !these.contains(other)).filter(is_sound);
        others.into_iter().any(|other| self.history.node(other).durable().seen().missing_of(&self.founding).is_none())
    }

    fn set_back(&mut self, at: usize, Taken { image, history, evidence }: Taken) -> Checked {
        // A log that was cut does not add up to the state.
        let is_cut_off = self.scenario.log_removal == LogRemoval::Cuts || evidence.is_cut_off;
        let with_state = is_cut_off || self.rng.chance(500);
        let server_id = self.nodes[at].server_id;
        self.note(format_args!("node {server_id} is set back to an image of its disk"));
        self.stop(at, End::Kill)?;
        self.nodes[at].devices.restore(&image, with_state);
        let before = std::mem::replace(&mut self.evidence[at], evidence);
        self.loses(at, history);
        self.note_gone(&before);
        // The state may have rolled back once before the image was taken, and the log reaches no further.
        self.armed[at] = Armed { has_rolled_back: true, ..Armed::default() };
        Ok(())
    }
}

//! What follows on each order: all feed all, until nobody has more than another.

use super::NODES;
use super::event::Feeding;
use super::machine::Machine;
use super::truth::{names, violation};
use crate::invariants::Checked;

/// After so many rounds in which all could feed all, they are equal or never will be.
const ROUNDS_MAX: usize = 4;

impl Machine<'_> {
    /// Lets all nodes become equal, and judges what they then have.
    pub(super) fn heal(&mut self) -> Checked {
        for at in 0..NODES {
            self.sync(at)?;
            self.perform(at)?;
            self.look(at)?;
        }
        self.finish_fetches()?;
        for _ in 0..ROUNDS_MAX {
            if !self.feed_all()? {
                break;
            }
        }
        for at in 0..NODES {
            self.look(at)?;
        }
        self.truth.check_healed()
    }

    /// Joins what is on its way: an order need not say so at its end.
    fn finish_fetches(&mut self) -> Checked {
        (0..NODES).try_for_each(|at| self.join(at))
    }

    /// Each node takes from each other what it lacks: from the log or, where that has it no more, by a
    /// snapshot. Says whether any lacked something.
    fn feed_all(&mut self) -> Result<bool, crate::invariants::Violation> {
        let mut any = false;
        for to in 0..NODES {
            for from in (0..NODES).filter(|from| *from != to) {
                let lacking = self.lacking(to, from);
                if lacking == 0 {
                    continue;
                }
                any = true;
                if self.feed(to, from, Feeding::Whole)? && self.lacking(to, from) == lacking {
                    self.begin_fetch(to, from, 0)?;
                    self.join(to)?;
                }
                if self.lacking(to, from) == lacking {
                    return Err(violation(names::CONVERGES, to, "is not fed what another has"));
                }
            }
        }
        Ok(any)
    }
}

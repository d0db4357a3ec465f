//! What a repair makes out of what is whole, before anything is changed: on any disk, over any state.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use polyarch_crdt::{AppliedSet, Dot, Origin};
use polyarch_protocol::{ChainHeads, LogPosition, WriteSet};

use super::{Parting, RepairError, RepairReport};
use crate::files::Files;
use crate::log::{Log, LogConfig, LogSalvaged, salvage};
use crate::marks::{CHECKPOINT, LOG_BEGINS, write_log_begins, write_mark};
use crate::open::would_recur;
use crate::salvage::{SALVAGE, SalvageWriter};
use crate::state::{Checkpoint, Provenance, StateError, StateOpener, StateStore, count_digest};
use crate::store::LOG;

/// Write sets after which `goes_on` is asked again.
const ASK_EVERY: u64 = 1_024;

/// A part of a data directory that a repair reads, and makes anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairPart {
    /// The log.
    Log,
    /// What waits for its place.
    Salvage,
}

impl RepairPart {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Log => LOG,
            Self::Salvage => SALVAGE,
        }
    }
}

/// Where these parts are.
pub trait RepairParts {
    /// Their files.
    type Files: Files;

    /// The part as it is.
    fn damaged(&self, part: RepairPart) -> Self::Files;

    /// Room for a new one, empty.
    ///
    /// # Errors
    /// When there is none.
    fn make(&self, part: RepairPart) -> Result<Self::Files, RepairError>;
}

/// What a repair made. Nothing of it is in its place yet.
#[derive(Debug)]
pub struct Repaired {
    /// Where the state is, if it is kept: a log was made that begins behind it. If not, it is to be set aside,
    /// and the next open begins a log.
    pub kept: Option<LogPosition>,
    /// What it found.
    pub report: RepairReport,
}

/// Makes a log that goes on behind the state, if that is whole, and a salvage of all that it does not have.
/// `held`: what [`whole_checkpoint`] says of the state. Changes nothing of what is there.
///
/// # Errors
/// See [`RepairError`].
pub fn make_repair<P: RepairParts>(
    parts: &P,
    held: Result<Checkpoint, StateError>,
    log: &LogConfig,
    parting: Option<Parting<'_>>,
    goes_on: &mut dyn FnMut(u64) -> bool,
) -> Result<Repaired, RepairError> {
    let mut report = RepairReport::default();
    let mut only_here = None;
    let kept = match held {
        // It adds up to what is left out. What only it has must not go with that.
        Ok(held) if parting.as_ref().is_some_and(|parting| parting.is_in(&held)) => {
            report.state_lost = Some("it holds the history that is left out".into());
            only_here = Some(held.frontier.heads.applied().clone());
            None
        }
        Ok(held) => Some(held),
        Err(error) if would_recur(&error) => return Err(RepairError::State(error)),
        Err(error) => {
            report.state_lost = Some(error.to_string());
            None
        }
    };
    let nothing = AppliedSet::default();
    let applied = kept.as_ref().map_or(&nothing, |held| held.frontier.heads.applied());
    let mut sorting = Sorting::new(applied, parting);
    let making = Making { parts, log };
    report.log = making.salvage(&mut sorting, goes_on)?;
    report.left_out = sorting.left_out;
    if let (Some(state), Some(parting)) = (&only_here, &sorting.parting) {
        let origins = sorting.only_in(state, parting);
        if !origins.is_empty() {
            return Err(RepairError::OnlyInState { origins });
        }
    }
    if let Some(parting) = &mut sorting.parting {
        parting.left_out.sync().map_err(RepairError::LeftOut)?;
    }
    report.waiting = sorting.writer.map_or(Ok(0), SalvageWriter::finish)?;
    if let Some(held) = &kept {
        making.log_behind(held.position, &held.frontier.heads)?;
    }
    Ok(Repaired { kept: kept.map(|held| held.position), report })
}

/// The checkpoint of a state that is open, if its records are those of it.
///
/// # Errors
/// When they are not, or it cannot be read.
pub fn whole_checkpoint<O: StateOpener>(opener: &O, state: O::State) -> Result<Checkpoint, StateError> {
    let lost = |why: &str| Err(StateError::Damaged(why.into()));
    let state = Arc::new(state);
    let (held, counted) = opener.guarded(move || Ok((state.checkpoint()?, count_digest(&*state)?)))?;
    let Some(held) = held else { return lost("it is empty") };
    if held.provenance == Provenance::Joining {
        return lost("it is of a join that did not end");
    }
    if held.frontier.digest != counted {
        return lost("its records are not those of its checkpoint");
    }
    Ok(held)
}

/// Makes a state that is kept one that goes on with a log which begins behind it. Its checkpoint is written
/// twice: a state may roll back by one flush, and there is nothing to bring it up again.
///
/// # Errors
/// When it cannot be written.
pub fn settle<O: StateOpener>(opener: &mut O) -> Result<(), StateError> {
    let state = opener.open()?;
    opener.guarded(move || {
        let Some(held) = state.checkpoint()? else { return Ok(()) };
        let held = Checkpoint { provenance: Provenance::Log, ..held };
        for _ in 0..2 {
            state.apply_sorted(Vec::new(), &held)?;
            state.flush()?;
        }
        Ok(())
    })
}

/// Writes the small files that go with what was made, or removes them.
///
/// # Errors
/// When that failed, with the name of the file.
pub fn write_marks(data: &impl Files, kept: Option<LogPosition>) -> Result<(), (&'static str, io::Error)> {
    match kept {
        Some(position) => {
            write_log_begins(data, position.segment + 1).map_err(|error| (LOG_BEGINS, error))?;
            write_mark(data, position).map_err(|error| (CHECKPOINT, error))
        }
        None => [LOG_BEGINS, CHECKPOINT].into_iter().try_for_each(|name| match data.remove(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err((name, error)),
            _ => Ok(()),
        }),
    }
}

/// What is made before anything is changed.
struct Making<'a, P> {
    parts: &'a P,
    log: &'a LogConfig,
}

impl<P: RepairParts> Making<'_, P> {
    /// Takes the whole frames of the log, and of an earlier salvage, whose damage is not counted.
    fn salvage(
        &self,
        sorting: &mut Sorting<'_, '_, P::Files>,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<LogSalvaged, RepairError> {
        let mut frames = 0;
        let mut take = |_: LogPosition, bytes: &[u8]| {
            frames += 1;
            if frames % ASK_EVERY == 0 && !goes_on(frames) {
                return Err(RepairError::Stopped);
            }
            sorting.take(bytes, self)
        };
        // What waits since an earlier repair may build on what the log has, and not the other way round.
        let mut salvaged = salvage(&self.parts.damaged(RepairPart::Log), &mut take)?;
        let earlier = salvage(&self.parts.damaged(RepairPart::Salvage), &mut take)?;
        if earlier.segments > 0 {
            // Also an empty one takes the place of the one before.
            sorting.writer(self)?;
        }
        salvaged.frames += earlier.frames;
        salvaged.bytes += earlier.bytes;
        Ok(salvaged)
    }

    /// A log that goes on behind the state.
    fn log_behind(&self, previous: LogPosition, heads: &ChainHeads) -> Result<(), RepairError> {
        Log::begin_behind(self.parts.make(RepairPart::Log)?, self.log.clone(), previous, heads)?;
        Ok(())
    }
}

/// What becomes of each write set.
struct Sorting<'a, 'p, F: Files> {
    /// What the records have.
    applied: &'a AppliedSet,
    parting: Option<Parting<'p>>,
    /// The first seq of each origin that was left out.
    lost: BTreeMap<Origin, u64>,
    /// The first seq of each origin that was found.
    found: BTreeMap<Origin, u64>,
    /// Begun with the first write set that waits.
    writer: Option<SalvageWriter<F>>,
    left_out: u64,
}

impl<'a, 'p, F: Files> Sorting<'a, 'p, F> {
    fn new(applied: &'a AppliedSet, parting: Option<Parting<'p>>) -> Self {
        let lost = parting.iter().map(|parting| (parting.origin, parting.common + 1)).collect();
        Self { applied, parting, lost, found: BTreeMap::new(), writer: None, left_out: 0 }
    }

    fn take(&mut self, bytes: &[u8], making: &Making<'_, impl RepairParts<Files = F>>) -> Result<(), RepairError> {
        let dot = WriteSet::peek_dot(bytes).ok();
        if let Some(dot) = dot {
            let first = self.found.entry(dot.origin).or_insert(dot.seq);
            *first = (*first).min(dot.seq);
        }
        if dot.is_some_and(|dot| self.applied.includes(dot)) || self.leave_out(bytes)? {
            return Ok(());
        }
        Ok(self.writer(making)?.push(bytes)?)
    }

    fn writer(
        &mut self,
        making: &Making<'_, impl RepairParts<Files = F>>,
    ) -> Result<&mut SalvageWriter<F>, RepairError> {
        Ok(match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(SalvageWriter::begin(making.parts.make(RepairPart::Salvage)?, making.log.clone())?),
        })
    }

    /// The origins of which a state has write sets that were not found, and that the member which is gone over to
    /// does not have.
    fn only_in(&self, state: &AppliedSet, parting: &Parting<'_>) -> Vec<Origin> {
        let is_only_here = |dot: &Dot| {
            // Those behind what both have in common are given up.
            let last = if dot.origin == parting.origin { dot.seq.min(parting.common) } else { dot.seq };
            let unfound = self.found.get(&dot.origin).map_or(last, |first| last.min(first - 1));
            unfound > parting.kept.seq(dot.origin)
        };
        state.iter().filter(is_only_here).map(|dot| dot.origin).collect()
    }

    /// Hands the write set over if it is to be left out; says whether it was.
    fn leave_out(&mut self, bytes: &[u8]) -> Result<bool, RepairError> {
        let Some(parting) = &mut self.parting else { return Ok(false) };
        let Ok(write_set) = WriteSet::decode(bytes) else { return Ok(false) };
        let dot = write_set.dot;
        let is_lost = |origin: Origin, seq: u64| self.lost.get(&origin).is_some_and(|first| seq >= *first);
        let is_parted = dot.origin == parting.origin && dot.seq > parting.common;
        let depends = write_set.dependencies.applied().iter();
        let supersedes = write_set.changes.iter().flat_map(|change| &change.supersedes).copied();
        if !is_parted && !depends.chain(supersedes).chain([dot]).any(|dot| is_lost(dot.origin, dot.seq)) {
            return Ok(false);
        }
        let first = self.lost.entry(dot.origin).or_insert(dot.seq);
        *first = (*first).min(dot.seq);
        parting.left_out.take(&write_set).map_err(RepairError::LeftOut)?;
        self.left_out += 1;
        Ok(true)
    }
}

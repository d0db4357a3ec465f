//! How often each kind of thing was drawn, and how often it happened: a kind that never happens finds
//! nothing, and nobody would notice.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};

use polyarch_protocol::Durability;
use polyarch_protocol::peer::PeerVersion;

use crate::formation::Formation;
use crate::scenario::{ACTS, FAULTS, LogRemoval, SHAPES, Scenario};
use crate::world::Report;

/// From so many seeds on each kind must have happened.
const SEEDS_MIN: u64 = 1_000;

/// A kind of thing that a world may have, or that may happen in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// What it is: a fault, a topology.
    pub what: &'static str,
    /// Which one.
    pub name: String,
}

/// How often.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// Seeds that drew it.
    pub drawn: u64,
    /// How often it happened in them.
    pub happened: u64,
}

/// Of every kind, how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage(BTreeMap<Kind, Times>);

impl Kind {
    fn new(what: &'static str, name: impl Debug) -> Self {
        Self { what, name: format!("{name:?}") }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.what, self.name)
    }
}

impl Default for Coverage {
    /// Every kind there is, none of which happened.
    fn default() -> Self {
        let faults = FAULTS.iter().map(|(fault, _)| Kind::new("fault", fault));
        let acts = ACTS.iter().map(|(act, _)| Kind::new("act", act));
        let shapes = SHAPES.iter().map(|(shape, _)| Kind::new("topology", shape));
        let removals = [LogRemoval::Nothing, LogRemoval::WhatAllHave, LogRemoval::Cuts];
        let removals = removals.iter().map(|removal| Kind::new("logs", removal));
        let formations = Formation::ALL.iter().map(|formation| Kind::new("machines", formation));
        let worlds = [INTERVAL, OLDER_VERSION, LATE_JOIN, PAIRS].into_iter().map(of_world);
        let disks = [TORN, REORDERED, RECORDS_KEPT, RECORDS_LOST, SALVAGED].into_iter().map(of_disk);
        let kinds = faults.chain(acts).chain(shapes).chain(removals).chain(formations).chain(worlds).chain(disks);
        Self(kinds.map(|kind| (kind, Times::default())).collect())
    }
}

const INTERVAL: &str = "a node that acknowledges first";
const OLDER_VERSION: &str = "a node of an older version";
const LATE_JOIN: &str = "a node that joins late";
const PAIRS: &str = "pairs that cannot talk";
const TORN: &str = "torn by a power cut";
const REORDERED: &str = "reordered by one";
const RECORDS_KEPT: &str = "repaired, its records kept";
const RECORDS_LOST: &str = "repaired without its records";
const SALVAGED: &str = "salvage applied";

fn of_world(name: &str) -> Kind {
    Kind { what: "world with", name: name.to_owned() }
}

fn of_disk(name: &str) -> Kind {
    Kind { what: "disk", name: name.to_owned() }
}

/// What a world draws, and how often it happened.
pub(crate) fn counted(scenario: &Scenario, report: &Report) -> BTreeMap<Kind, Times> {
    let mut counted = BTreeMap::new();
    let mut add = |kind, happened: usize| {
        counted.insert(kind, Times { drawn: 1, happened: happened as u64 });
    };
    let times = |map: Option<&usize>| map.copied().unwrap_or(0);
    for (fault, _) in &scenario.fault_kinds {
        add(Kind::new("fault", fault), times(report.faults.get(fault)));
    }
    for (act, _) in &scenario.acts {
        add(Kind::new("act", act), times(report.acts.get(act)));
    }
    add(Kind::new("machines", scenario.formation), 1);
    if scenario.formation == Formation::Drawn {
        add(Kind::new("topology", scenario.shape), 1);
    }
    if scenario.reach.is_some() {
        add(of_world(PAIRS), 1);
    }
    let repairs = |keeps: bool| times(report.repairs.get(&keeps));
    for (name, happened) in [
        (TORN, report.torn),
        (REORDERED, report.reordered),
        (RECORDS_KEPT, repairs(true)),
        (RECORDS_LOST, repairs(false)),
        (SALVAGED, report.salvages_applied),
    ] {
        add(of_disk(name), happened);
    }
    add(Kind::new("logs", scenario.log_removal), 1);
    if scenario.durability.contains(&Durability::Interval) {
        add(of_world(INTERVAL), 1);
    }
    if scenario.versions.iter().any(|version| *version != PeerVersion::NEWEST) {
        add(of_world(OLDER_VERSION), 1);
    }
    if scenario.joins_late_us.is_some() {
        add(of_world(LATE_JOIN), usize::from(report.joined_after > 0));
    }
    counted
}

impl Coverage {
    /// Adds what one seed drew and did.
    pub fn add(&mut self, counted: &BTreeMap<Kind, Times>) {
        for (kind, times) in counted {
            let sum = self.0.entry(kind.clone()).or_default();
            sum.drawn += times.drawn;
            sum.happened += times.happened;
        }
    }

    /// Kinds that never happened in so many seeds; none, where those are too few to say.
    pub fn missing(&self, seeds: u64) -> Vec<&Kind> {
        let never = self.0.iter().filter(|(_, times)| times.happened == 0).map(|(kind, _)| kind);
        never.filter(|_| seeds >= SEEDS_MIN).collect()
    }

    /// How many kinds there are, and how many of them happened.
    pub fn count(&self) -> (usize, usize) {
        (self.0.len(), self.0.values().filter(|times| times.happened > 0).count())
    }

    /// What happened least often.
    pub fn rarest(&self) -> Option<(&Kind, Times)> {
        self.0.iter().min_by_key(|(_, times)| times.happened).map(|(kind, times)| (kind, *times))
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, happened) = self.count();
        write!(f, "{happened} of {all} kinds happened; times (seeds that drew it):")?;
        let mut what = "";
        for (kind, times) in &self.0 {
            match kind.what == what {
                true => write!(f, ", ")?,
                false => write!(f, "\n  {}: ", kind.what)?,
            }
            what = kind.what;
            write!(f, "{} {} ({})", kind.name, times.happened, times.drawn)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_happened_is_told_once_there_were_seeds_enough() {
        let mut coverage = Coverage::default();
        let (all, happened) = coverage.count();
        assert_eq!((happened, coverage.missing(SEEDS_MIN).len()), (0, all));
        let everything = coverage.0.keys().map(|kind| (kind.clone(), Times { drawn: 1, happened: 2 })).collect();
        coverage.add(&everything);
        assert_eq!((coverage.count(), coverage.missing(SEEDS_MIN).len()), ((all, all), 0));
        let unlucky = Kind::new("fault", "NeverHappens");
        coverage.add(&BTreeMap::from([(unlucky.clone(), Times { drawn: 1, happened: 0 })]));
        assert_eq!(coverage.missing(SEEDS_MIN), [&unlucky]);
        assert!(coverage.missing(SEEDS_MIN - 1).is_empty());
        assert_eq!(coverage.rarest().map(|(kind, _)| kind), Some(&unlucky));
    }
}

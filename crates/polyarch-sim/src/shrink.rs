//! From a run that breaks an invariant to a small one that breaks the same.
//!
//! Delta debugging (Zeller, Hildebrandt, *Simplifying and Isolating Failure-Inducing Input*, 2002) over
//! what a [`Case`] can leave out: nodes, whole clients, faults and acts of operators, single steps of
//! clients, and tempers of the world. Each part draws from its own stream, so what is left happens as
//! before, as far as nodes do not answer otherwise; where the invariant then holds, the part stays.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::bugs::Bug;
use crate::case::{Case, Step};
use crate::invariants::Violation;
use crate::quiet::Quiet;
use crate::run::{NO_PANIC, Run, run_case};
use crate::scenario::Scenario;
use crate::trace::Sink;
use crate::world::Drawn;

/// Fewer nodes than that are no cluster.
const NODES_MIN: usize = 2;
/// Before all faults end this much time passes after the last that happens.
const HEALS_AFTER_US: u64 = 200_000;

/// A run that was shrunk as far as it went.
#[derive(Debug)]
pub struct Shrunken {
    /// What is left.
    pub case: Case,
    /// How it runs.
    pub run: Run,
    /// What broke in it.
    pub violation: Violation,
    /// Runs that it took.
    pub runs: usize,
    /// What happened at first.
    pub before: Size,
    /// What happens now.
    pub after: Size,
}

/// How much happens in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Nodes.
    pub nodes: usize,
    /// Faults and acts of operators.
    pub faults: usize,
    /// What clients ask.
    pub steps: usize,
}

impl Size {
    fn of(case: &Case, run: &Run) -> Self {
        let steps = run.happened.iter().filter(|happening| matches!(happening.drawn, Drawn::Step(_))).count();
        Self { nodes: case.scenario().nodes, faults: run.happened.len() - steps, steps }
    }
}

/// Shrinks a case for as long as `goes_on` says so of the number of runs. `None` when it does not fail.
pub fn shrink(case: &Case, bug: Option<Bug>, goes_on: &dyn Fn(usize) -> bool) -> Option<Shrunken> {
    let run = run_case(case, bug, Sink::Nowhere);
    let violation = run.violation.clone()?;
    let before = Size::of(case, &run);
    let mut shrinker = Shrinker { bug, goes_on, runs: 1, symptom: symptom(&violation), case: case.clone(), run };
    shrinker.shrink();
    let Shrinker { case, run, runs, .. } = shrinker;
    let violation = run.violation.clone()?;
    let after = Size::of(&case, &run);
    Some(Shrunken { case, run, violation, runs, before, after })
}

/// What two runs have in common that fail in the same way.
fn symptom(violation: &Violation) -> String {
    match violation.invariant {
        // A panic's message names what was there, and where.
        NO_PANIC => violation.what.chars().filter(|c| !c.is_ascii_digit()).collect(),
        invariant => invariant.to_owned(),
    }
}

struct Shrinker<'a> {
    bug: Option<Bug>,
    goes_on: &'a dyn Fn(usize) -> bool,
    runs: usize,
    symptom: String,
    /// The smallest that fails.
    case: Case,
    run: Run,
}

impl Shrinker<'_> {
    fn shrink(&mut self) {
        self.leave_out_nodes();
        self.name_what_happens();
        loop {
            let (case, happened) = (self.case.clone(), self.run.happened.len());
            self.end_sooner();
            self.leave_out_clients();
            self.leave_out(|drawn| !matches!(drawn, Drawn::Step(_)));
            self.leave_out(|drawn| matches!(drawn, Drawn::Step(_)));
            self.calm();
            let is_smaller = self.case != case || self.run.happened.len() < happened;
            if !is_smaller || !(self.goes_on)(self.runs) {
                return;
            }
        }
    }

    /// Takes a case if it fails in the same way.
    fn attempt(&mut self, case: Case) -> bool {
        if case == self.case || !(self.goes_on)(self.runs) {
            return false;
        }
        self.runs += 1;
        let run = run_case(&case, self.bug, Sink::Nowhere);
        let is_alike = run.violation.as_ref().is_some_and(|violation| symptom(violation) == self.symptom);
        if is_alike {
            (self.case, self.run) = (case, run);
        }
        is_alike
    }

    fn leave_out_nodes(&mut self) {
        for nodes in NODES_MIN..self.case.scenario().nodes {
            if self.attempt(Case { nodes: Some(nodes), ..self.case.clone() }) {
                return;
            }
        }
    }

    /// Names what happens in the run, in the place of "all that is drawn".
    fn name_what_happens(&mut self) {
        let heals_at_us = self.run.healed_at_us.unwrap_or(self.run.ended_at_us + 1);
        let kept = self.happened();
        let case = Case { heals_at_us: Some(heals_at_us), ..self.case.clone() };
        self.attempt(keeping(&case, &kept));
    }

    fn happened(&self) -> Vec<Drawn> {
        self.run.happened.iter().map(|happening| happening.drawn).collect()
    }

    fn end_sooner(&mut self) {
        let last_us = self.run.happened.last().map_or(0, |happening| happening.at_us);
        let soon_us = last_us + HEALS_AFTER_US;
        if self.case.heals_at_us.is_none_or(|heals_at_us| soon_us < heals_at_us) {
            self.attempt(Case { heals_at_us: Some(soon_us), ..self.case.clone() });
        }
    }

    fn leave_out_clients(&mut self) {
        let of = |drawn: &Drawn| match drawn {
            Drawn::Step(step) => Some(step.client),
            Drawn::Fault(_) | Drawn::Act(_) => None,
        };
        let clients: BTreeSet<usize> = self.happened().iter().filter_map(of).collect();
        for client in clients {
            let mut kept = self.happened();
            kept.retain(|drawn| of(drawn) != Some(client));
            self.attempt(keeping(&self.case, &kept));
        }
    }

    /// Leaves out what it can of one kind, in ever smaller pieces.
    fn leave_out(&mut self, is_of_kind: impl Fn(&Drawn) -> bool) {
        let (mut kept, others): (Vec<Drawn>, Vec<Drawn>) = self.happened().into_iter().partition(&is_of_kind);
        let mut piece = kept.len().div_ceil(2);
        while piece > 0 && !kept.is_empty() {
            let mut at = 0;
            while at < kept.len() {
                let end = (at + piece).min(kept.len());
                let without: Vec<Drawn> = [&kept[..at], &kept[end..]].concat();
                let all = [&others[..], &without[..]].concat();
                match self.attempt(keeping(&self.case, &all)) {
                    true => kept = without,
                    false => at = end,
                }
                if !(self.goes_on)(self.runs) {
                    return;
                }
            }
            piece = if piece == 1 { 0 } else { piece.div_ceil(2) };
        }
    }

    fn calm(&mut self) {
        for quiet in Quiet::ALL {
            let mut case = self.case.clone();
            if case.quiet.insert(quiet) {
                self.attempt(case);
            }
        }
    }
}

/// The case in which of faults, acts and steps only these happen.
fn keeping(case: &Case, kept: &[Drawn]) -> Case {
    let (mut faults, mut acts, mut steps) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::<Step>::new());
    for drawn in kept {
        _ = match drawn {
            Drawn::Fault(nth) => faults.insert(*nth),
            Drawn::Act(nth) => acts.insert(*nth),
            Drawn::Step(step) => steps.insert(*step),
        };
    }
    Case { faults: Some(faults), acts: Some(acts), steps: Some(steps), ..case.clone() }
}

/// A run in words: the world, what happens in it, and how it ends.
pub fn tell(case: &Case, run: &Run) -> String {
    let scenario = case.scenario();
    let mut text = String::new();
    let mut line = |words: std::fmt::Arguments<'_>| writeln!(text, "{words}").expect("a string takes all");
    line(format_args!("{}", world_in_words(&scenario)));
    let is_before_heal = |at_us: u64| run.healed_at_us.is_none_or(|healed_at_us| at_us <= healed_at_us);
    run.happened.iter().filter(|happening| is_before_heal(happening.at_us)).for_each(|h| line(format_args!("{h}")));
    if let Some(at_us) = run.healed_at_us {
        line(format_args!("{:>8}.{:03} ms  all faults end", at_us / 1_000, at_us % 1_000));
    }
    let (ms, us) = (run.ended_at_us / 1_000, run.ended_at_us % 1_000);
    match &run.violation {
        Some(violation) => line(format_args!("{ms:>8}.{us:03} ms  BREAKS {violation}")),
        None => line(format_args!("{ms:>8}.{us:03} ms  all is well")),
    }
    text
}

fn world_in_words(scenario: &Scenario) -> String {
    let nodes = (0..scenario.nodes).map(|at| {
        let (durability, version) = (scenario.durability[at], scenario.versions[at]);
        format!("{} ({durability:?}, {version:?})", at + 1)
    });
    let nodes: Vec<String> = nodes.collect();
    let late = if scenario.joins_late_us.is_some() { ", the last one joins late" } else { "" };
    format!(
        "nodes {}{late}; topology {:?}; of logs nodes let go {:?}",
        nodes.join(", "),
        scenario.shape,
        scenario.log_removal
    )
}

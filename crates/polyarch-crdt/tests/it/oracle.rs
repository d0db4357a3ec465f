//! The one-sentence oracle, "the register shows the writes that no applied write superseded",
//! over arbitrary histories of several nodes.
//!
//! Nodes write with current, stale, foreign or empty contexts, are fed causally, take checkpoints,
//! crash and replay from the checkpoint over records of which each may be old or new, open a new
//! epoch then, cut their logs, and fetch snapshots range by range while donor and receiver go on
//! writing, which they join in one local step. After every step the node it touched must show what
//! the oracle shows, and in the end all nodes must be equal and have nothing left to absorb.
//!
//! The second half leaves the rules out, one at a time: the oracle must notice each.

use std::collections::BTreeMap;
use std::rc::Rc;

use polyarch_crdt::{AppliedSet, CausalContext, Dot, FieldPath, HlcClock, Origin, Record};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::support::{Change, FIELDS, KEYS, State, WriteSet, cases, value};

/// How many histories a missing rule may survive.
const HISTORIES_MAX: usize = 3_000;

proptest! {
    #![proptest_config(cases(4_000))]

    #[test]
    fn every_node_shows_the_writes_that_no_applied_write_superseded(history in histories()) {
        history.run(None).map_err(TestCaseError::fail)?;
    }
}

#[test]
fn without_absorb_a_superseded_write_that_comes_late_is_shown() {
    assert_the_oracle_notices(Rule::Absorb);
}

#[test]
fn with_absorb_entries_removed_at_once_a_crash_shows_what_was_superseded() {
    assert_the_oracle_notices(Rule::LazyAbsorb);
}

#[test]
fn with_absorb_per_key_one_field_swallows_the_write_of_another() {
    assert_the_oracle_notices(Rule::AbsorbPerField);
}

#[test]
fn with_absorb_left_out_of_the_join_a_snapshot_shows_what_was_superseded() {
    assert_the_oracle_notices(Rule::AbsorbInJoin);
}

#[test]
fn with_ranges_joined_but_not_the_log_after_them_values_beyond_the_applied_set_are_shown() {
    assert_the_oracle_notices(Rule::OneStep);
}

#[test]
fn with_absorb_forgotten_while_a_scan_runs_a_snapshot_shows_what_was_superseded() {
    assert_the_oracle_notices(Rule::ScansPinAbsorb);
}

#[test]
fn with_a_version_vector_for_the_exact_dots_a_write_removes_what_it_never_saw() {
    assert_the_oracle_notices(Rule::ExactDots);
}

/// A rule of the algebra that a run can leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// What is superseded before it arrives is remembered.
    Absorb,
    /// An absorb entry outlives its dot's arrival until a checkpoint includes the dot.
    LazyAbsorb,
    /// Each field absorbs for itself.
    AbsorbPerField,
    /// A join asks both sides' absorb entries, and keeps them.
    AbsorbInJoin,
    /// The donor's log up to its applied-set at the last range is applied in the same step.
    OneStep,
    /// An absorb entry also waits for the scans that run.
    ScansPinAbsorb,
    /// A write removes the dots it names, not all that an origin wrote up to them.
    ExactDots,
}

fn assert_the_oracle_notices(rule: Rule) {
    // The same histories on every run, so that this never fails by luck.
    let mut runner = TestRunner::deterministic();
    let histories = histories();
    let noticed = (0..HISTORIES_MAX).find(|_| {
        let tree = histories.new_tree(&mut runner).expect("histories are not filtered");
        tree.current().run(Some(rule)).is_err()
    });
    match noticed {
        Some(number) => println!("{rule:?} left out: noticed in history {number}"),
        None => panic!("{rule:?} was left out of {HISTORIES_MAX} histories and none showed it"),
    }
}

/// What happens to a few nodes, as choices that any number answers: so it shrinks well.
#[derive(Debug, Clone)]
struct History {
    nodes: usize,
    steps: Vec<Step>,
}

#[derive(Debug, Clone)]
struct Step {
    action: Action,
    /// Which of the nodes that fetch a snapshot get their next range after the action.
    scanning: [bool; 4],
}

#[derive(Debug, Clone)]
enum Action {
    /// A client writes through a node.
    Write { node: usize, now_ms: u64, drafts: Vec<Draft> },
    /// A client reads a key and keeps the context.
    Read { node: usize, key: usize },
    /// One node sends another the next write set of some origin.
    Feed { from: usize, to: usize, origin: usize },
    /// The state as it is becomes what a crash goes back to.
    Checkpoint { node: usize },
    /// A prefix of the log, before the checkpoint, is removed.
    CutLog { node: usize, percent: usize },
    /// Back to the checkpoint, but some keys keep their newer record; then replay.
    Crash { node: usize, newer: [bool; KEYS.len()] },
    /// A node begins to fetch another's snapshot.
    Snapshot { donor: usize, receiver: usize },
}

#[derive(Debug, Clone)]
struct Draft {
    key: usize,
    context: Context,
    /// For each field: untouched, deleted, or put.
    fields: [Option<bool>; FIELDS.len()],
}

#[derive(Debug, Clone)]
enum Context {
    /// None given: all that the node holds.
    Current,
    /// Read some time ago, at this node or another.
    Kept(usize),
    /// Read of whatever key.
    OfAnyKey(usize),
    /// Of a client that was shown nothing.
    Empty,
}

fn histories() -> impl Strategy<Value = History> {
    // A scan may be over in a few steps, or last while much is written and checkpoints are taken.
    let scan_pace = prop::sample::select(vec![0.6, 0.08]);
    (2..=4_usize, 1..=150_usize, scan_pace).prop_flat_map(|(nodes, steps, scan_pace)| {
        let scanning = prop::array::uniform4(prop::bool::weighted(scan_pace));
        let step = (action(nodes), scanning).prop_map(|(action, scanning)| Step { action, scanning });
        prop::collection::vec(step, steps).prop_map(move |steps| History { nodes, steps })
    })
}

fn action(nodes: usize) -> impl Strategy<Value = Action> {
    let node = move || 0..nodes;
    prop_oneof![
        30 => (node(), 0..20_u64, prop::collection::vec(draft(), 1..=2))
            .prop_map(|(node, now_ms, drafts)| Action::Write { node, now_ms, drafts }),
        10 => (node(), 0..KEYS.len()).prop_map(|(node, key)| Action::Read { node, key }),
        35 => (node(), node(), any::<usize>()).prop_map(|(from, to, origin)| Action::Feed { from, to, origin }),
        5 => node().prop_map(|node| Action::Checkpoint { node }),
        4 => (node(), 0..=100_usize).prop_map(|(node, percent)| Action::CutLog { node, percent }),
        4 => (node(), any::<[bool; KEYS.len()]>()).prop_map(|(node, newer)| Action::Crash { node, newer }),
        6 => (node(), node()).prop_map(|(donor, receiver)| Action::Snapshot { donor, receiver }),
    ]
}

fn draft() -> impl Strategy<Value = Draft> {
    let context = prop_oneof![
        35 => Just(Context::Current),
        48 => any::<usize>().prop_map(Context::Kept),
        2 => any::<usize>().prop_map(Context::OfAnyKey),
        15 => Just(Context::Empty),
    ];
    let change = || prop_oneof![2 => Just(None), 2 => Just(Some(false)), 5 => Just(Some(true))];
    (0..KEYS.len(), context, [change(), change()]).prop_map(|(key, context, fields)| Draft { key, context, fields })
}

impl History {
    /// Lives through the history, with all rules or without one.
    fn run(&self, without: Option<Rule>) -> Result<(), String> {
        let mut world = World::new(self.nodes, without);
        for (number, step) in self.steps.iter().enumerate() {
            let told = |what: String| format!("step {number}, {:?}: {what}", step.action);
            let touched = world.act(&step.action);
            world.check(touched).map_err(told)?;
            for node in (0..self.nodes).filter(|node| step.scanning[*node]) {
                world.fetch_range(node);
                world.check(node).map_err(told)?;
            }
        }
        world.heal().map_err(|what| format!("at the end: {what}"))
    }
}

/// All nodes, and what has been written and read so far.
struct World {
    nodes: Vec<Node>,
    written: BTreeMap<Dot, Rc<WriteSet>>,
    contexts: Vec<(usize, CausalContext)>,
    without: Option<Rule>,
}

impl World {
    fn new(nodes: usize, without: Option<Rule>) -> Self {
        Self {
            nodes: (1..=nodes as u32).map(|server_id| Node::new(server_id, without)).collect(),
            written: BTreeMap::new(),
            contexts: vec![],
            without,
        }
    }

    /// Performs an action and says which node it may have changed.
    fn act(&mut self, action: &Action) -> usize {
        match action {
            Action::Write { node, now_ms, drafts } => {
                self.write(*node, *now_ms, drafts);
                *node
            }
            Action::Read { node, key } => {
                let context = CausalContext::of(&self.nodes[*node].state.record(KEYS[*key]));
                self.contexts.push((*key, context));
                *node
            }
            Action::Feed { from, to, origin } => {
                self.feed(*from, *to, *origin);
                *to
            }
            Action::Checkpoint { node } => {
                self.nodes[*node].checkpoint();
                *node
            }
            Action::CutLog { node, percent } => {
                self.nodes[*node].cut_log(*percent);
                *node
            }
            Action::Crash { node, newer } => {
                self.end_scans_of(*node);
                self.let_go(*node);
                self.nodes[*node].crash(*newer);
                *node
            }
            Action::Snapshot { donor, receiver } => {
                self.begin_scan(*donor, *receiver);
                *receiver
            }
        }
    }

    fn write(&mut self, at: usize, now_ms: u64, drafts: &[Draft]) {
        let number = self.written.len() as u32;
        let node = &mut self.nodes[at];
        let mut changes = BTreeMap::new();
        for draft in drafts {
            let key = KEYS[draft.key];
            let context = match draft.context {
                Context::Current => Some(CausalContext::of(&node.state.record(key))),
                Context::Empty => Some(CausalContext::empty()),
                Context::Kept(choice) => {
                    let kept: Vec<_> = self.contexts.iter().filter(|(of, _)| *of == draft.key).collect();
                    kept.get(choice % kept.len().max(1)).map(|(_, context)| context.clone())
                }
                Context::OfAnyKey(choice) => {
                    let kept = self.contexts.get(choice % self.contexts.len().max(1));
                    kept.map(|(_, context)| context.clone())
                }
            };
            let context = context.unwrap_or_else(|| CausalContext::of(&node.state.record(key)));
            for (field, change) in FIELDS.into_iter().zip(draft.fields) {
                if let Some(puts) = change {
                    let supersedes = context.dots(&FieldPath::from(field)).to_vec();
                    let put = puts.then(|| value(number));
                    changes.insert((key, field), Change { key, field, supersedes, put });
                }
            }
        }
        let origin = node.origin;
        let write_set = Rc::new(WriteSet {
            dot: Dot::new(origin, node.state.applied.seq(origin) + 1),
            hlc: node.clock.tick(now_ms),
            saw: node.state.applied.clone(),
            changes: changes.into_values().collect(),
        });
        self.written.insert(write_set.dot, Rc::clone(&write_set));
        node.commit(&write_set);
    }

    /// Sends one write set, if the sender has one in its log that causality allows next.
    fn feed(&mut self, from: usize, to: usize, choice: usize) -> bool {
        let applied = &self.nodes[to].state.applied;
        let next: Vec<_> = self.nodes[from].log.iter().filter(|w| w.is_next_for(applied)).collect();
        if next.is_empty() {
            return false;
        }
        let write_set = Rc::clone(next[choice % next.len()]);
        self.nodes[to].commit(&write_set);
        true
    }

    fn begin_scan(&mut self, donor: usize, receiver: usize) {
        if donor == receiver || self.nodes[receiver].scan.is_some() {
            return;
        }
        let start = self.nodes[donor].state.applied.clone();
        self.nodes[donor].scans_from.insert(receiver, start.clone());
        self.nodes[receiver].scan = Some(Scan { donor, start, fetched: BTreeMap::new() });
    }

    /// The receiver gets its next range as the donor holds it now; after the last one, it joins.
    fn fetch_range(&mut self, receiver: usize) {
        let Some(mut scan) = self.nodes[receiver].scan.take() else {
            return;
        };
        let key = KEYS[scan.fetched.len()];
        scan.fetched.insert(key, self.nodes[scan.donor].state.record(key));
        let is_whole = scan.fetched.len() == KEYS.len();
        self.nodes[receiver].scan = Some(scan);
        if is_whole {
            self.join_snapshot(receiver);
        }
    }

    /// All ranges under the donor's set at the start, then its log up to its set now, and a
    /// checkpoint: one local step.
    fn join_snapshot(&mut self, receiver: usize) {
        let scan = self.nodes[receiver].scan.take().expect("the snapshot was fetched");
        let donor = &mut self.nodes[scan.donor];
        donor.scans_from.remove(&receiver);
        let log = donor.log.clone();
        let node = &mut self.nodes[receiver];
        node.join_ranges(&scan);
        if self.without != Some(Rule::OneStep) {
            log.iter().for_each(|w| node.commit(w));
        }
        node.checkpoint();
        // Its log has a gap now, and those that scan it began before the join.
        self.end_scans_of(receiver);
    }

    fn end_scans_of(&mut self, donor: usize) {
        for node in &mut self.nodes {
            node.scan.take_if(|scan| scan.donor == donor);
        }
        self.nodes[donor].scans_from.clear();
    }

    fn let_go(&mut self, receiver: usize) {
        if let Some(scan) = self.nodes[receiver].scan.take() {
            self.nodes[scan.donor].scans_from.remove(&receiver);
        }
    }

    fn check(&self, node: usize) -> Result<(), String> {
        let state = &self.nodes[node].state;
        let written = self.written.values().map(Rc::as_ref);
        state.check(written).map_err(|what| format!("node {}: {what}", node + 1))
    }

    /// Feeds until nothing moves, then snapshots for what was cut from all logs, until all are equal.
    fn heal(&mut self) -> Result<(), String> {
        let count = self.nodes.len();
        let pairs: Vec<_> =
            (0..count).flat_map(|from| (0..count).map(move |to| (from, to))).filter(|(from, to)| from != to).collect();
        for _ in 0..20 {
            for (from, to) in &pairs {
                while self.feed(*from, *to, 0) {}
                self.check(*to)?;
            }
            for (from, to) in &pairs {
                let lacks = !self.nodes[*to].state.applied.includes_all(&self.nodes[*from].state.applied);
                if lacks {
                    self.begin_scan(*from, *to);
                }
                while self.nodes[*to].scan.is_some() {
                    self.fetch_range(*to);
                    self.check(*to)?;
                }
            }
            if pairs.iter().all(|(one, two)| self.nodes[*one].state.applied == self.nodes[*two].state.applied) {
                return self.check_all_equal();
            }
        }
        Err("the nodes did not converge".to_string())
    }

    fn check_all_equal(&mut self) -> Result<(), String> {
        let everything: AppliedSet = self.written.keys().copied().collect();
        for at in 0..self.nodes.len() {
            self.nodes[at].checkpoint();
            self.check(at)?;
            let state = &self.nodes[at].state;
            if state.applied != everything {
                return Err(format!("node {} lost a write for good", at + 1));
            }
            if *state != self.nodes[0].state {
                return Err(format!("equal applied-sets, and node {} differs", at + 1));
            }
            if state.records.values().any(|record| record.absorb_len() > 0) {
                return Err(format!("node {} has all and still absorbs", at + 1));
            }
        }
        Ok(())
    }
}

/// A snapshot that is being fetched.
struct Scan {
    donor: usize,
    start: AppliedSet,
    fetched: BTreeMap<&'static str, Record>,
}

/// One node: its state, the log it replays, and the checkpoint it replays from.
struct Node {
    origin: Origin,
    clock: HlcClock,
    state: State,
    log: Vec<Rc<WriteSet>>,
    saved: State,
    /// Where in the log the checkpoint stands.
    saved_at: usize,
    scan: Option<Scan>,
    /// For each receiver that scans this node, where the scan began.
    scans_from: BTreeMap<usize, AppliedSet>,
    without: Option<Rule>,
}

impl Node {
    fn new(server_id: u32, without: Option<Rule>) -> Self {
        Self {
            origin: Origin::new(server_id, 1),
            clock: HlcClock::default(),
            state: State::default(),
            log: vec![],
            saved: State::default(),
            saved_at: 0,
            scan: None,
            scans_from: BTreeMap::new(),
            without,
        }
    }

    fn commit(&mut self, write_set: &Rc<WriteSet>) {
        if !self.state.applied.includes(write_set.dot) {
            self.log.push(Rc::clone(write_set));
            self.apply(write_set);
        }
    }

    fn apply(&mut self, write_set: &WriteSet) {
        match self.without {
            Some(Rule::AbsorbPerField) => self.state.apply(&self.absorbed_by_all_fields(write_set)),
            Some(Rule::ExactDots) => self.state.apply(&self.as_version_vector(write_set)),
            _ => self.state.apply(write_set),
        }
        self.drop_void_absorb();
    }

    /// Forgets what neither a crash nor a running scan can need: what the checkpoint *and* the
    /// start of every scan include.
    fn drop_void_absorb(&mut self) {
        let floor = match self.without {
            Some(Rule::Absorb) => everything(),
            Some(Rule::LazyAbsorb) => self.state.applied.clone(),
            Some(Rule::ScansPinAbsorb) => self.saved.applied.clone(),
            _ => self.scans_from.values().fold(self.saved.applied.clone(), |floor, start| meet(&floor, start)),
        };
        self.state.drop_void_absorb(&floor);
    }

    /// Saves the state as a disk would hold it: in bytes that are read back.
    fn checkpoint(&mut self) {
        let records = self.state.records.iter().map(|(key, record)| (*key, written_and_read(record)));
        self.saved = State { records: records.collect(), applied: written_and_read(&self.state.applied) };
        assert_eq!(self.saved, self.state);
        self.saved_at = self.log.len();
        self.drop_void_absorb();
    }

    fn cut_log(&mut self, percent: usize) {
        if self.scans_from.is_empty() {
            let cut = self.saved_at * percent / 100;
            self.log.drain(..cut);
            self.saved_at -= cut;
        }
    }

    fn crash(&mut self, newer: [bool; KEYS.len()]) {
        let lost = std::mem::replace(&mut self.state, self.saved.clone());
        for (key, newer) in KEYS.into_iter().zip(newer) {
            if newer {
                self.state.records.remove(key);
                self.state.records.extend(lost.records.get(key).map(|record| (key, record.clone())));
            }
        }
        let replayed: Vec<_> = self.log[self.saved_at..].to_vec();
        replayed.iter().for_each(|w| self.apply(w));
        self.origin.epoch += 1;
    }

    fn join_ranges(&mut self, scan: &Scan) {
        for (key, fetched) in &scan.fetched {
            let (mut mine, mut theirs) = (self.state.record(key), fetched.clone());
            if self.without == Some(Rule::AbsorbInJoin) {
                mine.drop_void_absorb(&everything());
                theirs.drop_void_absorb(&everything());
            }
            let joined = mine.join(&self.state.applied, &theirs, &scan.start);
            self.state.records.insert(key, joined);
        }
        self.state.records.retain(|_, record| !record.is_empty());
        self.state.applied.join(&scan.start);
    }

    /// The write set as it would act if all fields of a key absorbed together.
    fn absorbed_by_all_fields(&self, write_set: &WriteSet) -> WriteSet {
        let mut broken = write_set.clone();
        for change in &write_set.changes {
            let late = change.supersedes.iter().copied().filter(|old| !self.state.applied.includes(*old));
            let late: Vec<_> = late.collect();
            broken.changes.extend(FIELDS.into_iter().map(|field| Change {
                key: change.key,
                field,
                supersedes: late.clone(),
                put: None,
            }));
        }
        broken
    }

    /// The write set as it would act if a context were the greatest seq of each origin.
    fn as_version_vector(&self, write_set: &WriteSet) -> WriteSet {
        let mut broken = write_set.clone();
        for change in &mut broken.changes {
            let vector: AppliedSet = change.supersedes.iter().copied().chain([write_set.dot]).collect();
            let covered = self.state.dots(change.key, change.field).into_iter().filter(|dot| vector.includes(*dot));
            change.supersedes.extend(covered);
        }
        broken
    }
}

/// The greatest set that both include.
fn meet(one: &AppliedSet, two: &AppliedSet) -> AppliedSet {
    one.iter().map(|dot| Dot::new(dot.origin, dot.seq.min(two.seq(dot.origin)))).collect()
}

/// A set that includes every dot of these histories.
fn everything() -> AppliedSet {
    let origins = (1..=4).flat_map(|server_id| (1..=200).map(move |epoch| Origin::new(server_id, epoch)));
    origins.map(|origin| Dot::new(origin, u64::MAX)).collect()
}

fn written_and_read<T: serde::Serialize + serde::de::DeserializeOwned>(whole: &T) -> T {
    let bytes = postcard::to_extend(whole, Vec::new()).expect("a Vec takes all that is written");
    postcard::from_bytes(&bytes).expect("what was written can be read")
}

//! `crdts::MVReg` as a second oracle, written by others from another paper.
//!
//! Where each writer is its own actor and reads before it writes, a version vector and exact dots
//! say the same, and both registers must show the same values. Where two clients write through one
//! server they do not: the last test shows what a version vector loses.

use std::collections::BTreeSet;

use crdts::{CmRDT, CvRDT, MVReg, mvreg};
use polyarch_crdt::{CausalContext, Dot, FieldPath, Hlc, Origin};
use proptest::prelude::*;

use crate::support::{Change, State, WriteSet, cases, dot, value};

#[derive(Debug, Clone)]
enum Step {
    /// A replica writes over all that it holds.
    Write { replica: usize },
    /// One replica sends another the next write that causality allows.
    Feed { from: usize, to: usize, choice: usize },
    /// One replica joins another's whole state.
    Join { from: usize, to: usize },
}

/// The same register twice.
#[derive(Default)]
struct Replica {
    ours: State,
    theirs: MVReg<u32, Origin>,
}

/// One write in both languages.
struct Write {
    ours: WriteSet,
    theirs: mvreg::Op<u32, Origin>,
}

proptest! {
    #![proptest_config(cases(1_500))]

    #[test]
    fn where_each_writer_reads_first_both_registers_show_the_same(steps in prop::collection::vec(step(), 1..60)) {
        let mut replicas: [Replica; 3] = Default::default();
        let mut written = vec![];
        for step in steps {
            let touched = act(&step, &mut replicas, &mut written);
            prop_assert_eq!(replicas[touched].our_values(), replicas[touched].their_values());
        }
    }
}

/// Two clients are shown one value and both write through the same server: neither saw the other's.
#[test]
fn two_clients_of_one_server_with_the_same_context_lose_a_write_in_mvreg_and_none_here() {
    let server = Origin::new(1, 1);
    let before = 1;
    let (first_client, second_client) = (2, 3);

    // MVReg: the server is the actor, a context is a version vector.
    let mut theirs = MVReg::<u32, Origin>::new();
    theirs.apply(theirs.write(before, theirs.read_ctx().derive_add_ctx(server)));
    let (first_context, second_context) = (theirs.read_ctx(), theirs.read_ctx());
    theirs.apply(theirs.write(first_client, first_context.derive_add_ctx(server)));
    // Derived from the second client's own context, its write gets the very clock of the first's.
    let mut same_clock = theirs.clone();
    same_clock.apply(same_clock.write(second_client, second_context.derive_add_ctx(server)));
    assert_eq!(same_clock.read().val, [second_client], "the first client's write is lost");
    // Numbered by the server instead, the vector covers a write that the client never saw.
    let next_clock = theirs.read_ctx().derive_add_ctx(server);
    theirs.apply(theirs.write(second_client, next_clock));
    assert_eq!(theirs.read().val, [second_client], "the first client's write is lost");

    // Here: a context is the dots that were shown, and a write removes those and no others.
    let mut ours = State::default();
    ours.apply(&write_set(&ours, server, vec![], before));
    let context = CausalContext::of(&ours.record("a"));
    let shown = context.dots(&FieldPath::from("x")).to_vec();
    ours.apply(&write_set(&ours, server, shown.clone(), first_client));
    ours.apply(&write_set(&ours, server, shown, second_client));
    let replica = Replica { ours, theirs };
    assert_eq!(replica.our_values(), BTreeSet::from([first_client, second_client]), "both are kept");
}

fn step() -> impl Strategy<Value = Step> {
    let replica = || 0..3_usize;
    prop_oneof![
        3 => replica().prop_map(|replica| Step::Write { replica }),
        4 => (replica(), replica(), any::<usize>()).prop_map(|(from, to, choice)| Step::Feed { from, to, choice }),
        1 => (replica(), replica()).prop_map(|(from, to)| Step::Join { from, to }),
    ]
}

/// Performs a step on both registers and says which replica it touched.
fn act(step: &Step, replicas: &mut [Replica; 3], written: &mut Vec<Write>) -> usize {
    match *step {
        Step::Write { replica } => {
            let origin = dot(replica as u32 + 1, 1).origin;
            let number = written.len() as u32;
            let Replica { ours, theirs } = &replicas[replica];
            let write = Write {
                ours: write_set(ours, origin, ours.dots("a", "x"), number),
                theirs: theirs.write(number, theirs.read_ctx().derive_add_ctx(origin)),
            };
            replicas[replica].apply(&write);
            written.push(write);
            replica
        }
        Step::Feed { from, to, choice } => {
            let (sender, receiver) = (&replicas[from].ours.applied, &replicas[to].ours.applied);
            let mut next: Vec<_> = written.iter().filter(|w| sender.includes(w.ours.dot)).collect();
            next.retain(|w| w.ours.is_next_for(receiver));
            if !next.is_empty() {
                let write = next[choice % next.len()];
                replicas[to].apply(write);
            }
            to
        }
        Step::Join { from, to } => {
            let joined = replicas[to].ours.join(&replicas[from].ours);
            let theirs = replicas[from].theirs.clone();
            replicas[to].ours = joined;
            replicas[to].theirs.merge(theirs);
            to
        }
    }
}

fn write_set(state: &State, origin: Origin, supersedes: Vec<Dot>, number: u32) -> WriteSet {
    let change = Change { key: "a", field: "x", supersedes, put: Some(value(number)) };
    WriteSet {
        dot: Dot::new(origin, state.applied.seq(origin) + 1),
        hlc: Hlc::new(0, 0),
        saw: state.applied.clone(),
        changes: vec![change],
    }
}

impl Replica {
    fn apply(&mut self, write: &Write) {
        self.ours.apply(&write.ours);
        self.theirs.apply(write.theirs.clone());
    }

    fn our_values(&self) -> BTreeSet<u32> {
        let shown = self.ours.shown();
        let values = shown.values().flat_map(|values| values.values());
        values
            .map(|(_, value)| u32::from_be_bytes(value.as_ref().try_into().expect("the values here are four bytes")))
            .collect()
    }

    fn their_values(&self) -> BTreeSet<u32> {
        self.theirs.read().val.into_iter().collect()
    }
}

//! Applied-sets and bases, against a map from origins to numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use polyarch_crdt::{AppliedSet, Base, ClosedEpoch, Dot, Origin, SessionToken};
use polyarch_protocol::{ChainHash, ChainHead, ChainHeads};

use crate::script::Script;

/// What a set says, plainly.
type Model = BTreeMap<Origin, u64>;

/// An input is a script of what is done to a few sets and bases. Each answer of a set is that of its model, by whatever
/// base it is expressed; its bytes are those of the set spelled out, and read as the same.
pub fn applied_sets(data: &[u8]) {
    let mut script = Script::new(data);
    let mut bench = Bench { sets: vec![(AppliedSet::new(), Model::new()); 3], bases: Vec::new() };
    while !script.is_at_end() {
        bench.act(&mut script);
    }
    for (set, model) in &bench.sets {
        check_bytes(set, model);
    }
    for base in &bench.bases {
        check_base(base);
    }
}

struct Bench {
    sets: Vec<(AppliedSet, Model)>,
    bases: Vec<Arc<Base>>,
}

impl Bench {
    fn act(&mut self, script: &mut Script<'_>) {
        let (at, with) = (script.below(self.sets.len()), script.below(self.sets.len()));
        match script.below(7) {
            0 => self.add(at, script.origin()),
            1 => self.join(at, with),
            2 => self.rebase(at, script),
            3 => self.publish(at, script),
            4 => self.since(at, with),
            5 => {
                let dots = script.dots(6);
                self.sets[at] = (dots.iter().copied().collect(), model_of(&dots));
            }
            _ => self.read(at, script),
        }
        let (set, model) = &self.sets[at];
        check_answers(set, model, script.dot());
        let (other, other_model) = &self.sets[with];
        check_pair(set, other, model, other_model);
    }

    fn add(&mut self, at: usize, origin: Origin) {
        let (set, model) = &mut self.sets[at];
        let Some(next) = set.seq(origin).checked_add(1) else { return };
        set.add(Dot::new(origin, next));
        model.insert(origin, next);
    }

    fn join(&mut self, at: usize, with: usize) {
        let (other, other_model) = self.sets[with].clone();
        let (set, model) = &mut self.sets[at];
        set.join(&other);
        for (origin, seq) in other_model {
            let own = model.entry(origin).or_default();
            *own = (*own).max(seq);
        }
    }

    fn rebase(&mut self, at: usize, script: &mut Script<'_>) {
        let Some(base) = script.pick(&self.bases) else { return };
        let (set, model) = &mut self.sets[at];
        let holds = base.iter().map(|epoch| epoch.last).chain([base.name()]).all(|dot| includes(model, dot));
        match set.rebased(&base) {
            Some(rebased) => {
                assert!(holds, "it is not expressed by what it does not hold");
                assert!(rebased.base().is_some_and(|own| Arc::ptr_eq(own, &base)));
                *set = rebased;
            }
            None => assert!(!holds, "it holds all of the base"),
        }
    }

    /// A base over another, of what some set holds or of what nobody has.
    fn publish(&mut self, at: usize, script: &mut Script<'_>) {
        let parent = script.pick(&self.bases);
        let mut closed = script.dots(5);
        if script.coin() {
            closed.extend(self.sets[at].0.iter());
        }
        let epoch = |last: &Dot| ClosedEpoch { last: *last, chain: [last.seq as u8; 32] };
        let name = script.dot();
        let mut held =
            parent.iter().flat_map(|parent| parent.iter()).map(|epoch| (epoch.last.origin, epoch.last.seq)).collect();
        if let Ok(base) = Base::new(name, parent.as_deref(), closed.iter().map(epoch)) {
            closed.iter().for_each(|dot| reach(&mut held, *dot));
            let found: Model = base.iter().map(|epoch| (epoch.last.origin, epoch.last.seq)).collect();
            assert_eq!(found, held, "a base holds its parent's epochs and its own");
            assert!(!base.includes(name));
            self.bases.push(Arc::new(base));
        }
    }

    fn since(&mut self, at: usize, with: usize) {
        let ((set, model), (older, older_model)) = (&self.sets[at], &self.sets[with]);
        let newer = set.since(older);
        let is_newer = |(origin, seq): &(&Origin, &u64)| older_model.get(origin).copied().unwrap_or(0) < **seq;
        let expected: Model = model.iter().filter(is_newer).map(|(origin, seq)| (*origin, *seq)).collect();
        assert_eq!(plain(&newer), expected);
        let mut joined = older.clone();
        joined.join(&newer);
        assert!(joined.includes_all(set), "what is newer makes up for what lacks");
    }

    /// The set that some bytes are, where they are one.
    fn read(&mut self, at: usize, script: &mut Script<'_>) {
        let bytes = script.chunk(60);
        let Ok(token) = SessionToken::from_bytes(&[&[1], bytes].concat()) else { return };
        let model = plain(&token.seen);
        self.sets[at] = (token.seen, model);
    }
}

fn model_of(dots: &[Dot]) -> Model {
    let mut model = Model::new();
    dots.iter().for_each(|dot| reach(&mut model, *dot));
    model
}

fn reach(model: &mut Model, dot: Dot) {
    if dot.seq > 0 {
        let seq = model.entry(dot.origin).or_default();
        *seq = (*seq).max(dot.seq);
    }
}

fn includes(model: &Model, dot: Dot) -> bool {
    dot.seq <= model.get(&dot.origin).copied().unwrap_or(0)
}

fn plain(set: &AppliedSet) -> Model {
    set.iter().map(|dot| (dot.origin, dot.seq)).collect()
}

fn check_answers(set: &AppliedSet, model: &Model, dot: Dot) {
    assert_eq!(&plain(set), model);
    assert_eq!((set.len(), set.is_empty()), (model.len(), model.is_empty()));
    assert_eq!(set.includes(dot), includes(model, dot));
    let all = model.values().fold(0_u64, |sum, seq| sum.saturating_add(*seq));
    assert_eq!(set.write_sets(), all);
    assert!(set.iter().is_sorted_by(|one, two| one.origin < two.origin));
    let beyond = set.beyond(set.base());
    assert_eq!(beyond, set.beyond_base());
    let mut whole =
        set.base().map_or_else(AppliedSet::new, |base| AppliedSet::over(Arc::clone(base), &AppliedSet::new()));
    whole.join(&beyond);
    assert_eq!(&whole, set, "a set is its base and what goes beyond it");
}

fn check_pair(one: &AppliedSet, two: &AppliedSet, model: &Model, other: &Model) {
    assert_eq!(one == two, model == other);
    let holds = |all: &Model, of: &Model| of.iter().all(|(origin, seq)| includes(all, Dot::new(*origin, *seq)));
    assert_eq!(one.includes_all(two), holds(model, other));
    assert_eq!(one <= two, holds(other, model));
}

fn check_bytes(set: &AppliedSet, model: &Model) {
    let token = SessionToken { seen: set.clone() };
    let bytes = token.to_bytes();
    let read = SessionToken::from_bytes(&bytes).expect("it was written so");
    assert_eq!(&plain(&read.seen), model);
    let plainly: AppliedSet = model.iter().map(|(origin, seq)| Dot::new(*origin, *seq)).collect();
    assert_eq!(SessionToken { seen: plainly }.to_bytes(), bytes, "a set has one form");
}

/// Chain heads are expressed by a base as sets are.
fn check_base(base: &Arc<Base>) {
    let head =
        |epoch: &ClosedEpoch| (epoch.last.origin, ChainHead { seq: epoch.last.seq, hash: ChainHash(epoch.chain) });
    let mut heads: BTreeMap<Origin, ChainHead> = base.iter().map(head).collect();
    let own = heads.entry(base.name().origin).or_insert(ChainHead::NONE);
    if own.seq < base.name().seq {
        *own = ChainHead { seq: base.name().seq, hash: ChainHash([9; 32]) };
    }
    let plainly = ChainHeads::from(heads);
    if base.name().seq > 0 {
        let rebased = plainly.rebased(base).expect("they reach as far");
        assert_eq!(rebased, plainly);
        assert!(rebased.iter().eq(plainly.iter()) && rebased.applied() == plainly.applied());
    }
}

//! One key's dot store.
//!
//! A record holds, per field, the *siblings* that are live and the dots it must *absorb*: those
//! that a write superseded before they arrived here. The rules, checked against the oracle "a
//! register shows the writes that no applied write superseded":
//!
//! - [`Record::apply`] drops the siblings a change supersedes, notes each superseded dot that is
//!   not yet applied here, and adds the new sibling unless its dot is to be absorbed;
//! - an absorb entry is void once its dot is applied, but it is *kept* until a checkpoint has it
//!   in its applied-set ([`Record::drop_void_absorb`]): a crash goes back to the checkpoint and
//!   replays over records that may be newer, and without the entry a superseded value would return;
//! - [`Record::join`] is the join of two delta-state dot stores, with both sides' absorb entries.
//!
//! Absorb is kept per field because one dot is shared by all the fields of a write set.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{AppliedSet, Dot, Hlc, seeded_bug};

/// The most that a dot takes when it is encoded: 5, 5 and 10 bytes.
const DOT_BYTES: usize = 20;
/// The most that a sibling takes beside its value: dot, stamp and length.
const SIBLING_BYTES: usize = DOT_BYTES + 15;
/// Absorb entries that stay together in a piece of a record.
const ABSORB_AT_ONCE: usize = 1_024;

/// A field of a record: empty for an opaque value, a JSON Pointer within a document.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FieldPath(Box<str>);

impl FieldPath {
    /// The single field of an opaque value.
    pub fn opaque() -> Self {
        Self::default()
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for FieldPath {
    fn from(path: &str) -> Self {
        Self(path.into())
    }
}

impl fmt::Debug for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// A live value of a field: written, and not superseded by any write applied here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sibling {
    /// The write set that put it.
    pub dot: Dot,
    /// That write set's stamp.
    pub hlc: Hlc,
    /// The value's bytes.
    pub value: Bytes,
}

/// The live siblings of one field and the dots it absorbs. Both are sorted by dot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    path: FieldPath,
    siblings: Vec<Sibling>,
    absorb: Vec<Dot>,
}

/// What one key holds. An empty record is the same as no record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    // Sorted by path; a field with neither siblings nor absorb is not kept.
    fields: Vec<Field>,
}

/// What one write set does to one field of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldChange<'a> {
    /// The field.
    pub path: &'a FieldPath,
    /// The exact dots its writer was shown and replaces.
    pub supersedes: &'a [Dot],
    /// The new value; `None` deletes.
    pub put: Option<&'a Bytes>,
}

/// What [`Record::apply`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Outcome {
    /// The siblings that were live before and are no longer.
    pub dropped: Vec<Sibling>,
    /// Whether the change's value is now live and was not before.
    pub added: bool,
    /// Whether the value was absorbed: a write that saw it came here first.
    pub absorbed: bool,
    /// How many siblings the field has now.
    pub siblings: usize,
}

impl Outcome {
    /// Whether the field now shows values that were written concurrently.
    pub fn is_conflict(&self) -> bool {
        self.added && self.siblings > 1
    }
}

impl Record {
    /// Applies the change that write set `dot` makes to one field.
    ///
    /// `applied` is the applied-set before `dot` joins it. A caller applies each dot once per
    /// field, in causal order; to apply one again while replaying over a newer record is harmless.
    pub fn apply(&mut self, dot: Dot, hlc: Hlc, change: &FieldChange<'_>, applied: &AppliedSet) -> Outcome {
        let at = self.field_index(change.path);
        let field = &mut self.fields[at];
        let dropped = match change.put {
            None if seeded_bug("delete-removes-all") => std::mem::take(&mut field.siblings),
            _ => field.drop_superseded(change.supersedes),
        };
        if !seeded_bug("no-absorb") {
            let early = change.supersedes.iter().copied();
            field.note_absorb(early.filter(|old| *old != dot && !applied.includes(*old)));
        }
        let absorbed = change.put.is_some() && field.absorb.binary_search(&dot).is_ok();
        let added = match change.put {
            Some(value) if !absorbed => field.insert(Sibling { dot, hlc, value: value.clone() }),
            _ => false,
        };
        let outcome = Outcome { dropped, added, absorbed, siblings: field.siblings.len() };
        if field.is_empty() {
            self.fields.remove(at);
        }
        outcome
    }

    /// The join of this record under `applied` with `other` under `other_applied`.
    ///
    /// A sibling stays when the other side has it too or never applied it, and the other side does
    /// not absorb it (Almeida et al. 2018, with absorb).
    pub fn join(&self, applied: &AppliedSet, other: &Record, other_applied: &AppliedSet) -> Record {
        let mut paths: Vec<&FieldPath> = self.fields.iter().chain(&other.fields).map(|f| &f.path).collect();
        paths.sort_unstable();
        paths.dedup();
        let nothing = Field::default();
        let fields = paths.into_iter().map(|path| {
            let (mine, theirs) = (self.field(path).unwrap_or(&nothing), other.field(path).unwrap_or(&nothing));
            let mut joined = Field { path: path.clone(), ..Field::default() };
            for (one, two, two_applied) in [(mine, theirs, other_applied), (theirs, mine, applied)] {
                for sibling in one.siblings.iter().filter(|s| two.keeps(s.dot, two_applied)) {
                    joined.insert(sibling.clone());
                }
                if !seeded_bug("absorb-left-out-of-join") {
                    joined.note_absorb(one.absorb.iter().copied());
                }
            }
            joined
        });
        Record { fields: fields.filter(|f| !f.is_empty()).collect() }
    }

    /// Takes in what another piece of the same record holds: the union of both. Neither side takes
    /// anything from the other, so this is for pieces of one record only ([`Record::pieces`]).
    pub fn unite(&mut self, piece: Record) {
        for field in piece.fields {
            let at = self.field_index(&field.path);
            let mine = &mut self.fields[at];
            mine.note_absorb(field.absorb.into_iter());
            for sibling in field.siblings {
                mine.insert(sibling);
            }
        }
        // A dot that one piece shows and another absorbs was superseded between the two.
        for field in &mut self.fields {
            let absorb = &field.absorb;
            field.siblings.retain(|sibling| absorb.binary_search(&sibling.dot).is_err());
        }
    }

    /// Cuts the record into pieces of about `bytes_max` bytes each, in order; [`Record::unite`] puts
    /// them together again. At least one sibling or absorb entry goes into each, so a piece is
    /// longer where a value is.
    pub fn pieces(&self, bytes_max: usize) -> Vec<Record> {
        let (mut pieces, mut piece, mut bytes) = (Vec::new(), Record::default(), 0);
        for field in &self.fields {
            let siblings = field.siblings.iter().map(|sibling| {
                let part = Field { path: field.path.clone(), siblings: vec![sibling.clone()], absorb: Vec::new() };
                (part, SIBLING_BYTES + sibling.value.len())
            });
            let absorb = field.absorb.chunks(ABSORB_AT_ONCE).map(|dots| {
                let part = Field { path: field.path.clone(), siblings: Vec::new(), absorb: dots.to_vec() };
                (part, dots.len() * DOT_BYTES)
            });
            for (part, part_bytes) in siblings.chain(absorb) {
                let part_bytes = part_bytes + field.path.0.len();
                if bytes > 0 && bytes + part_bytes > bytes_max {
                    pieces.push(std::mem::take(&mut piece));
                    bytes = 0;
                }
                bytes += part_bytes;
                piece.unite(Record { fields: vec![part] });
            }
        }
        pieces.push(piece);
        pieces
    }

    /// About how many bytes the record takes when it is encoded.
    pub fn encoded_bytes(&self) -> usize {
        let field = |field: &Field| {
            let values: usize = field.siblings.iter().map(|sibling| SIBLING_BYTES + sibling.value.len()).sum();
            field.path.0.len() + values + field.absorb.len() * DOT_BYTES
        };
        self.fields.iter().map(field).sum()
    }

    /// Forgets absorb entries that `checkpointed` includes: the applied-set that the newest
    /// checkpoint holds (and the start set of every running scan). Says whether anything was dropped.
    pub fn drop_void_absorb(&mut self, checkpointed: &AppliedSet) -> bool {
        let before = self.absorb_len();
        for field in &mut self.fields {
            field.absorb.retain(|dot| !checkpointed.includes(*dot));
        }
        self.fields.retain(|field| !field.is_empty());
        self.absorb_len() != before
    }

    /// The field at `path`, if it has siblings or absorbs.
    pub fn field(&self, path: &FieldPath) -> Option<&Field> {
        self.fields.binary_search_by(|f| f.path.cmp(path)).ok().map(|at| &self.fields[at])
    }

    /// The live siblings at `path`, in the order of their dots.
    pub fn siblings(&self, path: &FieldPath) -> &[Sibling] {
        self.field(path).map_or(&[], |f| &f.siblings)
    }

    /// All fields, in the order of their paths.
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// Whether no field has a live sibling.
    pub fn is_deleted(&self) -> bool {
        self.fields.iter().all(|f| f.siblings.is_empty())
    }

    /// Whether nothing needs to be kept for this key.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// How many absorb entries the record holds.
    pub fn absorb_len(&self) -> usize {
        self.fields.iter().map(|f| f.absorb.len()).sum()
    }

    /// Says what is wrong with a record that came from outside, if anything: order, duplicates,
    /// empty fields, a sibling that its own field absorbs.
    pub fn validate(&self) -> Result<(), &'static str> {
        let paths_rise = self.fields.windows(2).all(|pair| pair[0].path < pair[1].path);
        let dots_rise = self.fields.iter().all(|f| {
            f.siblings.windows(2).all(|pair| pair[0].dot < pair[1].dot)
                && f.absorb.windows(2).all(|pair| pair[0] < pair[1])
        });
        let shows_absorbed = |f: &Field| f.siblings.iter().any(|s| f.absorb.binary_search(&s.dot).is_ok());
        match (paths_rise, dots_rise) {
            (false, _) => Err("fields are not in order"),
            (_, false) => Err("siblings or absorb entries are not in order"),
            _ if self.fields.iter().any(Field::is_empty) => Err("a field is empty"),
            _ if self.fields.iter().any(shows_absorbed) => Err("a sibling is to be absorbed"),
            _ => Ok(()),
        }
    }

    fn field_index(&mut self, path: &FieldPath) -> usize {
        match self.fields.binary_search_by(|f| f.path.cmp(path)) {
            Ok(at) => at,
            Err(at) => {
                self.fields.insert(at, Field { path: path.clone(), ..Field::default() });
                at
            }
        }
    }
}

impl Field {
    /// The field's path.
    pub fn path(&self) -> &FieldPath {
        &self.path
    }

    /// The live siblings, in the order of their dots.
    pub fn siblings(&self) -> &[Sibling] {
        &self.siblings
    }

    /// The dots that will not become live when they arrive, in order.
    pub fn absorb(&self) -> &[Dot] {
        &self.absorb
    }

    fn is_empty(&self) -> bool {
        self.siblings.is_empty() && self.absorb.is_empty()
    }

    /// Whether this side has nothing against `dot` being live.
    fn keeps(&self, dot: Dot, applied: &AppliedSet) -> bool {
        let live = self.siblings.binary_search_by_key(&dot, |s| s.dot).is_ok();
        let absorbs = self.absorb.binary_search(&dot).is_ok() && !seeded_bug("absorb-left-out-of-join");
        !absorbs && (live || !applied.includes(dot))
    }

    fn drop_superseded(&mut self, supersedes: &[Dot]) -> Vec<Sibling> {
        let is_superseded = |dot: Dot| match seeded_bug("context-is-a-maximum") {
            true => supersedes.iter().any(|old| old.origin == dot.origin && old.seq >= dot.seq),
            false => supersedes.contains(&dot),
        };
        self.siblings.extract_if(.., |sibling| is_superseded(sibling.dot)).collect()
    }

    fn note_absorb(&mut self, dots: impl Iterator<Item = Dot>) {
        for dot in dots {
            if let Err(at) = self.absorb.binary_search(&dot) {
                self.absorb.insert(at, dot);
            }
        }
    }

    fn insert(&mut self, sibling: Sibling) -> bool {
        match self.siblings.binary_search_by_key(&sibling.dot, |s| s.dot) {
            Ok(_) => false,
            Err(at) => {
                self.siblings.insert(at, sibling);
                true
            }
        }
    }
}

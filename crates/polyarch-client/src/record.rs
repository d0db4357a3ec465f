use bytes::Bytes;
use polyarch_crdt::SealedContext;
use polyarch_protocol::client::{RecordView, SiblingView, Supersede};

/// A key's live values, as its keyspace shows them: one in an `lww` keyspace, in an `mv` keyspace all that were written
/// concurrently. Never none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    view: RecordView,
}

impl Record {
    /// `None` when there is no live value.
    pub(crate) fn of(view: RecordView) -> Option<Self> {
        (!view.siblings.is_empty()).then_some(Self { view })
    }

    /// All live values with their GTIDs and stamps, in order of GTIDs.
    pub fn siblings(&self) -> &[SiblingView] {
        &self.view.siblings
    }

    /// All live values, in the order of [`Record::siblings`].
    pub fn values(&self) -> impl ExactSizeIterator<Item = &Bytes> {
        self.view.siblings.iter().map(|sibling| &sibling.value)
    }

    /// The value, if there is exactly one; `None` when concurrent writes left several.
    pub fn value(&self) -> Option<&Bytes> {
        match self.siblings() {
            [only] => Some(&only.value),
            _ => None,
        }
    }

    /// Whether concurrent writes left several values.
    pub fn is_conflict(&self) -> bool {
        self.siblings().len() > 1
    }

    /// What was shown, for the next write of this key; opaque. `None` if the node could not issue one: it does not hold
    /// the cluster's key yet.
    pub fn context(&self) -> Option<&SealedContext> {
        self.view.context.as_ref()
    }

    /// What a write replaces that was made in view of this record: these siblings and no others.
    ///
    /// Without a context it is nothing: the write then joins the siblings, and none is lost.
    pub fn shown(&self) -> Supersede {
        self.view.context.clone().map_or(Supersede::Nothing, Supersede::Shown)
    }
}

//! Keys that one session writes alone, each write at another node: what they show is known exactly.

use std::collections::BTreeSet;

use polyarch_client::Dot;

/// What may be read of a key that one session writes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Register {
    /// What was acknowledged, in order; `None` is a delete. The first is what was there before.
    acked: Vec<(Option<Dot>, Option<String>)>,
    /// A last write of which nobody knows whether it was done. It may still be done, so the key is not written again.
    unknown: Option<Option<String>>,
}

impl Register {
    pub(crate) fn acked(&mut self, gtid: Option<Dot>, value: Option<String>) {
        self.acked.push((gtid, value));
    }

    pub(crate) fn unknown(&mut self, value: Option<String>) {
        self.unknown = Some(value);
    }

    /// What was acknowledged last.
    pub(crate) fn last(&self) -> Option<&str> {
        self.acked.last().and_then(|(_, value)| value.as_deref())
    }

    /// The GTIDs that were acknowledged since it was settled.
    pub(crate) fn gtids(&self) -> impl Iterator<Item = Dot> {
        self.acked.iter().filter_map(|(gtid, _)| *gtid)
    }

    /// Whether this may be shown when what was lost is as if it had never been.
    pub(crate) fn may_show(&self, shown: Option<&str>, lost: &BTreeSet<Dot>) -> bool {
        let is_kept = |(gtid, _): &&(Option<Dot>, _)| gtid.is_none_or(|gtid| !lost.contains(&gtid));
        let last = self.acked.iter().rfind(is_kept).and_then(|(_, value)| value.as_deref());
        shown == last || self.unknown.as_ref().is_some_and(|unknown| shown == unknown.as_deref())
    }

    /// From now on this, which all nodes show, was always there.
    pub(crate) fn settle(&mut self, shown: Option<&str>) {
        *self = Self { acked: vec![(None, shown.map(str::to_owned))], unknown: None };
    }
}

//! A donor's walk over a store, as the node serves it.

use polyarch_protocol::peer::ClusterId;
use polyarch_protocol::{KeysHeld, SnapshotBegin, SnapshotId, SnapshotSource, SnapshotStep};
use polyarch_store::files::Files;
use polyarch_store::log::LogReader;
use polyarch_store::state::StateStore;
use polyarch_store::{DonorRecords, Pin, SnapshotReceiver, StateReader};

use crate::support::Node;

/// A walk and what it reads.
pub(crate) struct Walk<F: Files, S: StateStore> {
    pin: Pin,
    begin: SnapshotBegin,
    source: SnapshotSource,
    donor: Donor<F, S>,
}

struct Donor<F: Files, S> {
    records: StateReader<S>,
    log: LogReader<F>,
}

impl<F: Files, S: StateStore> Walk<F, S> {
    /// Begins at a node where nothing is staged.
    pub(crate) fn begin(node: &mut Node<F, S>, id: u128) -> Self {
        let pin = node.store.pin(&node.frontier).expect("nothing is staged");
        let start = pin.start().outline();
        let begin = SnapshotBegin { id: SnapshotId(id), cluster_id: ClusterId(7), donor: 1, start };
        let source = SnapshotSource::new(begin.clone(), pin.position());
        let donor = Donor { records: node.store.reader(), log: node.store.log_reader() };
        Self { pin, begin, source, donor }
    }

    /// Goes on from where a receiver has it.
    pub(crate) fn resume(&mut self, keys: KeysHeld) {
        self.source = SnapshotSource::resumed(self.begin.clone(), self.pin.position(), keys);
    }

    /// The next part; `None` behind the last.
    pub(crate) fn next(&mut self) -> Option<Vec<u8>> {
        let Donor { records, log } = &self.donor;
        let records = DonorRecords { records, log, published_end: || log.durable_end() };
        match self.source.poll(&records) {
            SnapshotStep::Part(part) => Some(part),
            SnapshotStep::Done => None,
            step @ (SnapshotStep::AwaitDurable | SnapshotStep::Failed(_)) => panic!("{step:?}"),
        }
    }

    /// All of it, into a file.
    pub(crate) fn fetch(mut self, files: F) -> SnapshotReceiver<F> {
        let mut receiver = SnapshotReceiver::begin(files, &self.next().unwrap()).unwrap();
        while let Some(part) = self.next() {
            receiver.push(&part).unwrap();
        }
        assert!(receiver.is_whole());
        receiver
    }
}

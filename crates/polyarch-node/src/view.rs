//! What reads see: the durable records together with the applied-set they belong to.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;
use polyarch_crdt::{AppliedSet, SessionToken};
use polyarch_protocol::LogPosition;
use polyarch_protocol::catalog::Catalog;
use tokio::sync::watch;

use crate::Reader;

/// How far the published state is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Published {
    pub(crate) applied: Arc<AppliedSet>,
    /// A session token of `applied`.
    pub(crate) token: Bytes,
    pub(crate) catalog: Arc<Catalog>,
    /// Up to where the log goes that this is of. With `durability = "interval"` not all of it may be durable.
    pub(crate) position: LogPosition,
}

impl Published {
    pub(crate) fn new(applied: AppliedSet, catalog: Arc<Catalog>, position: LogPosition) -> Self {
        // Whoever has applied what goes beyond the base has applied the base.
        let token = SessionToken { seen: applied.beyond_base() }.to_bytes().into();
        Self { applied: Arc::new(applied), token, catalog, position }
    }
}

/// The published state, shared by the driver, which writes it, and all who read.
///
/// A reader takes a record first and [`View::published`] after it, so that the token it passes on
/// includes what it read. The driver holds the lock while it publishes records and how far they
/// are, so the two never come apart.
pub(crate) struct View {
    pub(crate) records: Reader,
    published: RwLock<Published>,
    advanced: watch::Sender<u64>,
}

impl View {
    pub(crate) fn new(records: Reader, published: Published) -> Self {
        Self { records, published: RwLock::new(published), advanced: watch::Sender::new(0) }
    }

    pub(crate) fn published(&self) -> Published {
        self.published.read().clone()
    }

    /// Wakes with each publication.
    pub(crate) fn advanced(&self) -> watch::Receiver<u64> {
        self.advanced.subscribe()
    }

    /// Publishes records by `publish`, together with how far they are.
    pub(crate) fn advance(&self, publish: impl FnOnce() -> Published) {
        let mut published = self.published.write();
        *published = publish();
        drop(published);
        self.advanced.send_modify(|times| *times += 1);
    }
}

//! Wall clocks that are wrong.

use std::fs;
use std::path::PathBuf;

use super::Cluster;

/// The wall clock of one node's processes, as libfaketime tells them.
pub(crate) struct Clock(PathBuf);

impl Clock {
    /// Shifts the clock of a node from its next start on; by nothing at first.
    pub(crate) fn of(cluster: &mut Cluster, server_id: u32, library: &str) -> Self {
        let clock = Self(cluster.directory().join(format!("clock-{server_id}")));
        clock.set_ahead(0);
        let node = cluster.node(server_id);
        node.set_environment("LD_PRELOAD", library);
        node.set_environment("FAKETIME_TIMESTAMP_FILE", clock.0.to_str().expect("test paths are text"));
        node.set_environment("FAKETIME_CACHE_DURATION", "1");
        // Time-outs go by that one.
        node.set_environment("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        clock
    }

    /// Sets it so far ahead, or behind. Replaces the file as a whole: it is read at any moment.
    pub(crate) fn set_ahead(&self, seconds: i64) {
        let next = self.0.with_extension("next");
        fs::write(&next, format!("{seconds:+}\n")).expect("the file can be written");
        fs::rename(next, &self.0).expect("the file can be replaced");
    }
}

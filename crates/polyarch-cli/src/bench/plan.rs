//! What is asked for: one point of load, or the points of the suite.

use std::time::Duration;

use clap::ValueEnum;

use super::Placement;
use crate::failure::Failure;

/// Clients that share a connection, unless told otherwise. An application's tasks share one client; so some do here, and
/// with more clients there are more applications.
const CLIENTS_PER_CONNECTION: u32 = 16;

/// How long a point lasts when nothing is said about it.
const SECONDS: u64 = 10;

/// The least that counts as sustained.
const SUSTAINED_SECONDS_MIN: u64 = 60;

/// What bounds a sustained run that waits for checkpoints.
const SUSTAINED_MAX: Duration = Duration::from_secs(15 * 60);

/// What bounds a run that counts requests.
const REQUESTS_MAX: Duration = Duration::from_secs(60 * 60);

const PROBES: u64 = 300;

/// What the clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Workload {
    /// Put a value
    Put,
    /// Get a value; every key is written before
    Get,
    /// Half and half, at random
    Mixed,
    /// Put one value at a time at the first node, with pauses, and watch when every node shows it
    Lag,
}

/// One thing to measure.
#[derive(Debug, Clone)]
pub(super) enum Load {
    Requests(Point),
    Lag(Probes),
}

/// A load.
#[derive(Debug, Clone)]
pub(super) struct Point {
    pub(super) workload: Workload,
    pub(super) clients: u32,
    pub(super) pipeline: u32,
    pub(super) connections: Option<u32>,
    pub(super) placement: Placement,
    pub(super) value_bytes: usize,
    pub(super) key_bytes: usize,
    pub(super) keys: u64,
    pub(super) requests: Option<u64>,
    pub(super) seconds: Option<u64>,
    pub(super) warm_up: Duration,
    pub(super) sustained: bool,
}

/// Single writes to be watched.
#[derive(Debug, Clone)]
pub(super) struct Probes {
    pub(super) count: u64,
    pub(super) value_bytes: usize,
    pub(super) key_bytes: usize,
}

/// When a run ends: whichever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub(super) requests: Option<u64>,
    pub(super) after: Duration,
    /// Not before every node has finished so many checkpoints, but at the latest at this time.
    pub(super) checkpoints: Option<(u64, Duration)>,
}

impl Workload {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Mixed => "mixed",
            Self::Lag => "lag",
        }
    }

    /// Whether there must be something to read.
    pub(super) fn reads(self) -> bool {
        matches!(self, Self::Get | Self::Mixed)
    }
}

impl Point {
    pub(super) fn check(&self) -> Result<(), Failure> {
        let digits = u32::try_from(self.key_bytes - 1).unwrap_or(u32::MAX);
        let keys_max = 10_u64.checked_pow(digits).unwrap_or(u64::MAX);
        if self.keys > keys_max {
            return Err(Failure::usage(format_args!(
                "--keys {}: keys of {} bytes allow {keys_max}",
                self.keys, self.key_bytes
            )));
        }
        if self.seconds.is_some_and(|seconds| self.sustained && seconds < SUSTAINED_SECONDS_MIN) {
            return Err(Failure::usage(format_args!("--sustained takes at least --seconds {SUSTAINED_SECONDS_MIN}")));
        }
        Ok(())
    }

    pub(super) fn load(self) -> Load {
        match self.workload {
            Workload::Lag => Load::Lag(self.probes()),
            Workload::Put | Workload::Get | Workload::Mixed => Load::Requests(self),
        }
    }

    /// How many connections there are; with several nodes as many to each.
    pub(super) fn connections(&self, nodes: usize) -> usize {
        let clients = self.clients as usize;
        let wanted = self.connections.unwrap_or(self.clients.div_ceil(CLIENTS_PER_CONNECTION)) as usize;
        match self.placement {
            Placement::One => wanted.min(clients),
            Placement::All => wanted.min(clients).next_multiple_of(nodes),
        }
    }

    pub(super) fn end(&self) -> End {
        match (self.sustained, self.requests) {
            (true, _) => End {
                requests: None,
                after: Duration::from_secs(self.seconds.unwrap_or(SUSTAINED_SECONDS_MIN)),
                checkpoints: Some((2, SUSTAINED_MAX)),
            },
            (false, Some(requests)) => End { requests: Some(requests), after: REQUESTS_MAX, checkpoints: None },
            (false, None) => {
                let after = Duration::from_secs(self.seconds.unwrap_or(SECONDS));
                End { requests: None, after, checkpoints: None }
            }
        }
    }

    fn probes(&self) -> Probes {
        Probes { count: self.requests.unwrap_or(PROBES), value_bytes: self.value_bytes, key_bytes: self.key_bytes }
    }
}

/// The series that releases are compared by.
pub(super) fn suite(base: &Point) -> Vec<Load> {
    let point = |workload, clients, pipeline| Load::Requests(Point { workload, clients, pipeline, ..base.clone() });
    vec![
        point(Workload::Put, 1, 1),
        point(Workload::Put, 16, 1),
        point(Workload::Put, 64, 1),
        point(Workload::Put, 16, 16),
        point(Workload::Get, 64, 1),
        Load::Lag(base.probes()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point() -> Point {
        Point {
            workload: Workload::Put,
            clients: 64,
            pipeline: 1,
            connections: None,
            placement: Placement::One,
            value_bytes: 100,
            key_bytes: 16,
            keys: 100_000,
            requests: None,
            seconds: None,
            warm_up: Duration::ZERO,
            sustained: false,
        }
    }

    #[test]
    fn connections_grow_with_clients_and_spread_evenly_over_nodes() {
        let connections = |clients, placement| Point { clients, placement, ..point() }.connections(3);
        assert_eq!([1, 16, 17, 64].map(|clients| connections(clients, Placement::One)), [1, 1, 2, 4]);
        assert_eq!([1, 16, 17, 64].map(|clients| connections(clients, Placement::All)), [3, 3, 3, 6]);
        assert_eq!(Point { clients: 2, connections: Some(8), ..point() }.connections(3), 2);
    }

    #[test]
    fn every_run_ends() {
        assert_eq!(point().end().after, Duration::from_secs(10));
        assert_eq!(Point { requests: Some(5), ..point() }.end().after, REQUESTS_MAX);
        let sustained = Point { sustained: true, ..point() }.end();
        assert_eq!((sustained.after, sustained.checkpoints), (Duration::from_secs(60), Some((2, SUSTAINED_MAX))));
    }

    #[test]
    fn more_keys_than_a_key_can_name_are_refused() {
        assert!(Point { key_bytes: 4, keys: 1_000, ..point() }.check().is_ok());
        assert!(Point { key_bytes: 4, keys: 1_001, ..point() }.check().is_err());
        assert!(Point { key_bytes: 1_024, ..point() }.check().is_ok());
        assert!(Point { sustained: true, seconds: Some(59), ..point() }.check().is_err());
    }
}

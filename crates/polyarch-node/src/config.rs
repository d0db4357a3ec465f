//! A node's configuration file: this node's own matters and addresses to find the others, in TOML.
//!
//! What concerns the cluster (members, keyspaces, keys) is not here: it is replicated.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use polyarch_protocol::limits::wire;
use polyarch_protocol::{Durability, FeedTimings, Limits, LinkTimings, Timings};
use serde::Deserialize;

use crate::retention::Retention;

/// A node's configuration. Paths are relative to the file that holds it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// What people call this node, to 64 characters. Default: `node-` and its server id.
    #[serde(default)]
    pub name: Option<String>,
    /// The directory of this node's data. One node has it at a time. Required.
    pub data_dir: PathBuf,
    /// `IP:PORT` (UDP) for members and clients; not port 0, which nobody could find. Required.
    pub listen: SocketAddr,
    /// `HOST:PORT` under which other members reach this node. Default: `listen`, unless that is a wildcard.
    #[serde(default)]
    pub advertise: Vec<String>,
    /// `HOST:PORT` of other members, to find the cluster by. One that lives is enough; this node's own address does no
    /// harm. Default: none.
    #[serde(default)]
    pub peers: Vec<String>,
    /// The cluster's CA certificate, PEM. Required.
    pub ca: PathBuf,
    /// This node's certificate, PEM; it states the cluster's name and the server id. Required.
    pub cert: PathBuf,
    /// The certificate's private key, PEM, readable by its owner only. Required.
    pub key: PathBuf,
    /// When writes are acknowledged, and how the log and the state are kept.
    #[serde(default)]
    pub storage: StorageConfig,
    /// Which clients may do what, by the name in their certificate.
    #[serde(default)]
    pub roles: Roles,
    /// Bounds on what clients may send.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Intervals and time-outs between members.
    #[serde(default)]
    pub gossip: GossipConfig,
    /// How much of the machine to use.
    #[serde(default)]
    pub runtime: RuntimeConfig,
}

/// `[storage]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageConfig {
    /// `"sync"`: an acknowledged write survives a power cut. `"interval"`: acknowledged at once, synced
    /// every `sync_interval_ms`; a crash can lose what came since. Default `"sync"`.
    pub durability: DurabilityConfig,
    /// With `"interval"`: how often the log is synced, in milliseconds. Default 100.
    pub sync_interval_ms: u64,
    /// Size of a log segment, in MiB, from 1 to 1,024. Default 64.
    pub segment_mib: u64,
    /// A checkpoint is due when the memtable has grown to this, in MiB. Default 64.
    pub memtable_mib: u64,
    /// A checkpoint is due when the log has grown by this since the last, in MiB. Default 256.
    pub checkpoint_log_mib: u64,
    /// What the log leaves free on the disk, in MiB: room for checkpoints, without which writes are refused before
    /// the disk is full. Default 128, twice the default of `memtable_mib`; 0 for none.
    pub disk_reserve_mib: u64,
    /// Which log segments may go once two checkpoints are past them. `"members"`: those that every
    /// member has, and the oldest of what lies beyond `log_mib_max` and `log_hours_max`; a member
    /// that lacks them is sent a snapshot. `"all"`: none, whatever the bounds. Default `"members"`.
    pub log_retention: LogRetention,
    /// With `"members"`: the log's size, in MiB, beyond which its oldest segments go though a member
    /// lacks them. 0: no bound. Default 4,096.
    pub log_mib_max: u64,
    /// With `"members"`: how many hours after the last write to it a segment goes though a member
    /// lacks it. 0: no bound. Default 0.
    pub log_hours_max: u64,
    /// How long opening the state may take before it is set aside and rebuilt, in milliseconds. Default 60,000.
    pub open_timeout_ms: u64,
}

/// See [`StorageConfig::durability`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DurabilityConfig {
    /// Synced before it is acknowledged.
    #[default]
    Sync,
    /// Synced every so often.
    Interval,
}

/// See [`StorageConfig::log_retention`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogRetention {
    /// Every segment is kept.
    All,
    /// Segments go once every member has them, or beyond the bounds.
    #[default]
    Members,
}

/// `[roles]`: names of clients, as their certificates state them. `"*"` stands for every client of
/// the cluster's CA. Each role includes those below it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Roles {
    /// May also create keyspaces and cut links. Default `["admin"]`.
    pub admin: Vec<String>,
    /// May also write. Default: none.
    pub write: Vec<String>,
    /// May read. Default: none.
    pub read: Vec<String>,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Longest key, in bytes, to 65,536. Default 4,096.
    pub key_bytes_max: usize,
    /// Longest value, in bytes, to 512 less than `write_set_bytes_max`. Default 1,048,576.
    pub value_bytes_max: usize,
    /// Most changes in one batch, to 65,535. Default 4,096.
    pub changes_max: usize,
    /// Longest batch, in bytes, to 8 MiB. Default 4,194,304.
    pub write_set_bytes_max: usize,
    /// Most siblings of one key before a write that would add another is refused. Default 128.
    pub siblings_max: usize,
    /// Most requests a client connection may have under way; it is read no further beyond. Default 1,024.
    pub requests_max: usize,
}

/// `[gossip]`, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GossipConfig {
    /// A heartbeat goes to each linked member at least so often. Default 1,000.
    pub gossip_interval_ms: u64,
    /// Changes within this time share a heartbeat. Default 100.
    pub gossip_coalesce_ms: u64,
    /// What this member has is told to all others, those without a link too, at most so often, and only when it has
    /// changed. Default 5,000.
    pub progress_interval_ms: u64,
    /// How long a feed may stand still while a peer has more. Default 1,000.
    pub feed_stall_ms: u64,
    /// How long the preferred peer must have been as far before a feed goes back to it. Default 3,000.
    pub feed_return_ms: u64,
    /// A greater difference of two wall clocks is an alarm. Default 500.
    pub clock_offset_max_ms: u64,
    /// A stamp further ahead than this is not merged into this node's clock. Default 3,600,000.
    pub hlc_ahead_max_ms: u64,
    /// The first wait after a failed dial. Default 100.
    pub dial_backoff_ms_min: u64,
    /// The longest wait between dials. Default 2,000.
    pub dial_backoff_ms_max: u64,
    /// A link on which nothing was heard for this long is lost. Default 2,000. The value of the member that
    /// dialled counts, up to the other's or 8,000, whichever is greater.
    pub idle_timeout_ms: u64,
    /// Of members that cannot be reached and that the topology plans no link to, one more is dialled each time that
    /// this has passed. Default 250.
    pub dial_next_ms: u64,
    /// How long the topology must have had no use for a link before it is closed. Default 3,000.
    pub link_hold_ms: u64,
}

/// `[runtime]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeConfig {
    /// Threads for connections and reads, beside the one that commits. Default: half the cores, at least 1.
    pub worker_threads: usize,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            durability: DurabilityConfig::Sync,
            sync_interval_ms: 100,
            segment_mib: 64,
            memtable_mib: 64,
            checkpoint_log_mib: 256,
            disk_reserve_mib: 128,
            log_retention: LogRetention::default(),
            log_mib_max: 4_096,
            log_hours_max: 0,
            open_timeout_ms: 60_000,
        }
    }
}

impl Default for Roles {
    fn default() -> Self {
        Self { admin: vec!["admin".to_owned()], write: Vec::new(), read: Vec::new() }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            key_bytes_max: limits.key_bytes_max,
            value_bytes_max: limits.value_bytes_max,
            changes_max: limits.changes_max,
            write_set_bytes_max: limits.write_set_bytes_max,
            siblings_max: limits.siblings_max,
            requests_max: 1_024,
        }
    }
}

impl Default for GossipConfig {
    fn default() -> Self {
        let timings = Timings::default();
        Self {
            gossip_interval_ms: timings.gossip_interval_ms,
            gossip_coalesce_ms: timings.gossip_coalesce_ms,
            progress_interval_ms: timings.progress_interval_ms,
            feed_stall_ms: timings.feeds.feed_stall_ms,
            feed_return_ms: timings.feeds.feed_return_ms,
            clock_offset_max_ms: timings.clock_offset_max_ms,
            hlc_ahead_max_ms: timings.hlc_ahead_max_ms,
            dial_backoff_ms_min: 100,
            dial_backoff_ms_max: 2_000,
            idle_timeout_ms: 2_000,
            dial_next_ms: timings.links.dial_next_ms,
            link_hold_ms: timings.links.link_hold_ms,
        }
    }
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { worker_threads: (cores / 2).max(1) }
    }
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A key is not known.
    #[error("{path}: unknown setting `{key}`{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key, with its section.
        key: String,
        /// The known key most like it.
        nearest: Option<String>,
    },
    /// Not TOML, a setting is missing, or its value is of another kind.
    #[error("{path}: {message}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// A setting's value is out of its range.
    #[error("{path}: `{key}` {problem}")]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// The key, with its section.
        key: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// What a write set takes at least beside the value of its one change. A longer value could never be written.
const WRITE_SET_BYTES_BESIDE: usize = 512;

const TOP_LEVEL: &[&str] = &[
    "name",
    "data_dir",
    "listen",
    "advertise",
    "peers",
    "ca",
    "cert",
    "key",
    "storage",
    "roles",
    "limits",
    "gossip",
    "runtime",
];

const SECTIONS: &[(&str, &[&str])] = &[
    (
        "storage",
        &[
            "durability",
            "sync_interval_ms",
            "segment_mib",
            "memtable_mib",
            "checkpoint_log_mib",
            "disk_reserve_mib",
            "log_retention",
            "log_mib_max",
            "log_hours_max",
            "open_timeout_ms",
        ],
    ),
    ("roles", &["admin", "write", "read"]),
    (
        "limits",
        &["key_bytes_max", "value_bytes_max", "changes_max", "write_set_bytes_max", "siblings_max", "requests_max"],
    ),
    (
        "gossip",
        &[
            "gossip_interval_ms",
            "gossip_coalesce_ms",
            "progress_interval_ms",
            "feed_stall_ms",
            "feed_return_ms",
            "clock_offset_max_ms",
            "hlc_ahead_max_ms",
            "dial_backoff_ms_min",
            "dial_backoff_ms_max",
            "idle_timeout_ms",
            "dial_next_ms",
            "link_hold_ms",
        ],
    ),
    ("runtime", &["worker_threads"]),
];

impl NodeConfig {
    /// Reads and checks a file. Relative paths in it become relative to the file's directory.
    ///
    /// # Errors
    /// When it cannot be read, holds an unknown key, or a value out of its range.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config = Self::parse(&text, path)?;
        let directory = path.parent().unwrap_or(Path::new(""));
        for file in [&mut config.data_dir, &mut config.ca, &mut config.cert, &mut config.key] {
            *file = directory.join(&*file);
        }
        Ok(config)
    }

    /// Reads and checks text; `path` is named in errors.
    ///
    /// # Errors
    /// As [`NodeConfig::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let malformed =
            |error: toml::de::Error| ConfigError::Malformed { path: path.to_owned(), message: one_line(text, &error) };
        let table: toml::Table = text.parse().map_err(malformed)?;
        if let Some((key, nearest)) = unknown_key(&table) {
            return Err(ConfigError::UnknownKey { path: path.to_owned(), key, nearest });
        }
        let config: Self = toml::from_str(text).map_err(malformed)?;
        match config.problem() {
            Some((key, problem)) => Err(ConfigError::OutOfRange { path: path.to_owned(), key, problem }),
            None => Ok(config),
        }
    }

    /// The addresses in `peers` that are not this node's own: one list may serve all nodes.
    pub fn other_peers(&self) -> Vec<String> {
        let own = self.advertised();
        let is_own = |peer: &String| own.contains(peer) || *peer == self.listen.to_string();
        self.peers.iter().filter(|peer| !is_own(peer)).cloned().collect()
    }

    /// The addresses other members reach this node by.
    pub fn advertised(&self) -> Vec<String> {
        match self.advertise.is_empty() {
            true => vec![self.listen.to_string()],
            false => self.advertise.clone(),
        }
    }

    /// The replica's intervals.
    pub fn timings(&self) -> Timings {
        let gossip = &self.gossip;
        Timings {
            gossip_interval_ms: gossip.gossip_interval_ms,
            gossip_coalesce_ms: gossip.gossip_coalesce_ms,
            progress_interval_ms: gossip.progress_interval_ms,
            feeds: FeedTimings { feed_stall_ms: gossip.feed_stall_ms, feed_return_ms: gossip.feed_return_ms },
            links: LinkTimings { dial_next_ms: gossip.dial_next_ms, link_hold_ms: gossip.link_hold_ms },
            clock_offset_max_ms: gossip.clock_offset_max_ms,
            hlc_ahead_max_ms: gossip.hlc_ahead_max_ms,
        }
    }

    /// The replica's limits.
    pub fn replica_limits(&self) -> Limits {
        let limits = &self.limits;
        Limits {
            key_bytes_max: limits.key_bytes_max,
            value_bytes_max: limits.value_bytes_max,
            changes_max: limits.changes_max,
            write_set_bytes_max: limits.write_set_bytes_max,
            siblings_max: limits.siblings_max,
            ..Limits::default()
        }
    }

    /// When writes are acknowledged.
    pub fn durability(&self) -> Durability {
        match self.storage.durability {
            DurabilityConfig::Sync => Durability::Sync,
            DurabilityConfig::Interval => Durability::Interval,
        }
    }

    /// What of the log is kept.
    pub(crate) fn retention(&self) -> Retention {
        let storage = &self.storage;
        let bound = |value: u64, unit: u64| (value > 0).then(|| value.saturating_mul(unit));
        match storage.log_retention {
            LogRetention::All => Retention::All,
            LogRetention::Members => Retention::Members {
                bytes_max: bound(storage.log_mib_max, 1 << 20),
                age_max: bound(storage.log_hours_max, 3_600).map(Duration::from_secs),
            },
        }
    }

    fn problem(&self) -> Option<(&'static str, String)> {
        let (storage, limits, gossip) = (&self.storage, &self.limits, &self.gossip);
        let out_of = |key, value: u64, min: u64, max: u64| {
            (value < min || value > max).then(|| (key, format!("is {value}; it may be from {min} to {max}")))
        };
        if self.listen.port() == 0 {
            return Some(("listen", "has port 0; give a port that members and clients can be told".to_owned()));
        }
        if self.advertise.is_empty() && self.listen.ip().is_unspecified() {
            return Some(("advertise", "is needed, since `listen` is a wildcard that no member can reach".to_owned()));
        }
        if self.advertise.len() > wire::ADDRESSES_MAX {
            return Some(("advertise", format!("holds more than {} addresses", wire::ADDRESSES_MAX)));
        }
        let bad_address = self.advertise.iter().chain(&self.peers).find(|address| !is_host_port(address));
        if let Some(address) = bad_address {
            return Some(("advertise/peers", format!("holds `{address}`, which is not of the form HOST:PORT")));
        }
        let is_bad =
            |name: &String| name.trim().is_empty() || name.chars().count() > 64 || name.chars().any(char::is_control);
        if self.name.as_ref().is_some_and(is_bad) {
            return Some(("name", "must be of 1 to 64 characters, none of them a control character".to_owned()));
        }
        let day_ms = 86_400_000;
        let value_bytes_max = limits.write_set_bytes_max.saturating_sub(WRITE_SET_BYTES_BESIDE);
        [
            out_of("storage.sync_interval_ms", storage.sync_interval_ms, 1, 60_000),
            out_of("storage.segment_mib", storage.segment_mib, 1, 1_024),
            out_of("storage.memtable_mib", storage.memtable_mib, 1, 65_536),
            out_of("storage.checkpoint_log_mib", storage.checkpoint_log_mib, 1, 1 << 20),
            out_of("storage.disk_reserve_mib", storage.disk_reserve_mib, 0, 1 << 20),
            out_of("storage.log_mib_max", storage.log_mib_max, 0, 1 << 30),
            out_of("storage.log_hours_max", storage.log_hours_max, 0, 1 << 20),
            out_of("storage.open_timeout_ms", storage.open_timeout_ms, 100, day_ms),
            out_of("limits.key_bytes_max", limits.key_bytes_max as u64, 1, 65_536),
            out_of("limits.changes_max", limits.changes_max as u64, 1, 65_535),
            out_of("limits.write_set_bytes_max", limits.write_set_bytes_max as u64, 1 << 10, 8 << 20),
            out_of("limits.value_bytes_max", limits.value_bytes_max as u64, 1, value_bytes_max as u64),
            out_of("limits.siblings_max", limits.siblings_max as u64, 1, 1_024),
            out_of("limits.requests_max", limits.requests_max as u64, 1, 65_536),
            out_of("gossip.gossip_interval_ms", gossip.gossip_interval_ms, 10, 60_000),
            out_of("gossip.gossip_coalesce_ms", gossip.gossip_coalesce_ms, 1, 60_000),
            out_of("gossip.progress_interval_ms", gossip.progress_interval_ms, 100, 600_000),
            out_of("gossip.feed_stall_ms", gossip.feed_stall_ms, 10, 600_000),
            out_of("gossip.feed_return_ms", gossip.feed_return_ms, 10, 600_000),
            out_of("gossip.clock_offset_max_ms", gossip.clock_offset_max_ms, 1, day_ms),
            out_of("gossip.hlc_ahead_max_ms", gossip.hlc_ahead_max_ms, 1, 365 * day_ms),
            out_of("gossip.dial_backoff_ms_min", gossip.dial_backoff_ms_min, 1, 60_000),
            out_of("gossip.dial_backoff_ms_max", gossip.dial_backoff_ms_max, gossip.dial_backoff_ms_min, 600_000),
            out_of("gossip.idle_timeout_ms", gossip.idle_timeout_ms, 100, 600_000),
            out_of("gossip.dial_next_ms", gossip.dial_next_ms, 1, 60_000),
            out_of("gossip.link_hold_ms", gossip.link_hold_ms, 10, 600_000),
            out_of("runtime.worker_threads", self.runtime.worker_threads as u64, 1, 1_024),
        ]
        .into_iter()
        .flatten()
        .next()
    }
}

fn one_line(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().lines().map(str::trim).collect::<Vec<_>>().join("; ");
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => format!("line {}: {message}", 1 + before.matches('\n').count()),
        None => message,
    }
}

fn is_host_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p != 0))
}

fn unknown_key(table: &toml::Table) -> Option<(String, Option<String>)> {
    let sections: BTreeMap<_, _> = SECTIONS.iter().copied().collect();
    for (key, value) in table {
        if !TOP_LEVEL.contains(&key.as_str()) {
            return Some((key.clone(), nearest(key, TOP_LEVEL)));
        }
        let (Some(known), Some(section)) = (sections.get(key.as_str()), value.as_table()) else { continue };
        if let Some(inner) = section.keys().find(|inner| !known.contains(&inner.as_str())) {
            let nearest = nearest(inner, known).map(|n| format!("{key}.{n}"));
            return Some((format!("{key}.{inner}"), nearest));
        }
    }
    None
}

fn nearest(key: &str, known: &[&str]) -> Option<String> {
    let closest = known.iter().map(|k| (strsim::jaro_winkler(key, k), *k)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (closest.0 > 0.7).then(|| closest.1.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "data_dir = 'd'\nlisten = '127.0.0.1:7401'\nca = 'ca.pem'\ncert = 'n.pem'\nkey = 'n.key'\n";

    fn parse(extra: &str) -> Result<NodeConfig, ConfigError> {
        NodeConfig::parse(&format!("{MINIMAL}{extra}"), Path::new("node.toml"))
    }

    #[test]
    fn the_smallest_file_gives_the_documented_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config.durability(), Durability::Sync);
        assert_eq!(config.replica_limits(), Limits::default());
        assert_eq!(config.timings(), Timings::default());
        assert_eq!(config.retention(), Retention::Members { bytes_max: Some(4 << 30), age_max: None });
        assert_eq!(config.advertised(), ["127.0.0.1:7401"]);
        assert_eq!(config.roles.admin, ["admin"]);
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_known_one() {
        let error = parse("[storage]\ndurabilty = 'sync'").unwrap_err().to_string();
        assert_eq!(error, "node.toml: unknown setting `storage.durabilty`; did you mean `storage.durability`?");
        let error = parse("peer = []").unwrap_err().to_string();
        assert!(error.contains("did you mean `peers`?"), "{error}");
    }

    #[test]
    fn the_log_is_kept_whole_or_within_bounds() {
        let of = |settings: &str| parse(&format!("[storage]\n{settings}")).unwrap().retention();
        let bounds = "log_mib_max = 3\nlog_hours_max = 2";
        let two_hours = Some(Duration::from_secs(7_200));
        assert_eq!(of(bounds), Retention::Members { bytes_max: Some(3 << 20), age_max: two_hours });
        assert_eq!(of("log_mib_max = 0"), Retention::Members { bytes_max: None, age_max: None });
        assert_eq!(of(&format!("log_retention = 'all'\n{bounds}")), Retention::All);
    }

    #[test]
    fn a_value_out_of_range_is_refused_with_its_range() {
        let error = parse("[storage]\nsegment_mib = 0").unwrap_err().to_string();
        assert_eq!(error, "node.toml: `storage.segment_mib` is 0; it may be from 1 to 1024");
        assert!(parse("peers = ['nowhere']").unwrap_err().to_string().contains("HOST:PORT"));
    }

    #[test]
    fn a_value_that_no_write_set_could_hold_is_refused_with_the_longest_that_one_can() {
        let of = |value: usize| parse(&format!("[limits]\nwrite_set_bytes_max = 8192\nvalue_bytes_max = {value}"));
        let error = of(8_192).unwrap_err().to_string();
        assert_eq!(error, "node.toml: `limits.value_bytes_max` is 8192; it may be from 1 to 7680");
        assert_eq!(of(7_680).unwrap().limits.value_bytes_max, 7_680);
        let error = parse("[limits]\nwrite_set_bytes_max = 99999999").unwrap_err().to_string();
        assert!(error.contains("write_set_bytes_max` is 99999999; it may be from 1024 to 8388608"), "{error}");
    }

    #[test]
    fn port_0_is_refused_since_nobody_could_be_told_which_it_became() {
        let text = MINIMAL.replace("7401", "0");
        let error = NodeConfig::parse(&text, Path::new("node.toml")).unwrap_err().to_string();
        assert!(error.starts_with("node.toml: `listen` has port 0"), "{error}");
    }

    #[test]
    fn the_nodes_own_address_is_no_peer() {
        let config = parse("peers = ['127.0.0.1:7401', 'a:7401', 'b:7401']\nadvertise = ['a:7401']").unwrap();
        assert_eq!(config.other_peers(), ["b:7401"]);
    }

    #[test]
    fn a_malformed_file_is_refused_in_one_line_that_says_where() {
        let error = parse("[storage]\nsegment_mib = 'big'").unwrap_err().to_string();
        assert!(error.starts_with("node.toml: line 7: invalid type"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn every_field_is_among_the_known_keys() {
        // A known key with a wrong type fails as malformed, an unknown one as unknown.
        for (section, keys) in SECTIONS {
            for key in *keys {
                let error = parse(&format!("[{section}]\n{key} = {{}}")).unwrap_err();
                assert!(matches!(error, ConfigError::Malformed { .. }), "{section}.{key}: {error}");
                assert!(!error.to_string().contains("unknown field"), "{section}.{key}: {error}");
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_text_never_panics_and_is_refused_in_words(text in "\\PC{0,200}", at in 0usize..120, cut in 0usize..120) {
            let whole = format!("{MINIMAL}[storage]\nsegment_mib = 64\n");
            let head: String = whole.chars().take(cut).collect();
            let mutated: String = whole.chars().take(at).chain(text.chars()).chain(whole.chars().skip(at + 1)).collect();
            for candidate in [text, head, mutated] {
                if let Err(error) = NodeConfig::parse(&candidate, Path::new("node.toml")) {
                    proptest::prop_assert!(error.to_string().starts_with("node.toml: "));
                }
            }
        }
    }
}

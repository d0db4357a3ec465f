//! What each topology costs, counted: links, crossings, messages, hops, and the time until all have
//! a write.
//!
//! A healthy cluster is assembled, comes to rest, is left alone for a while, and then takes a
//! constant load: nodes write in turn. Only virtual time is counted, so the figures are the same on
//! every machine. Frames of feeds are counted as they are before any compression.

use std::collections::BTreeMap;
use std::fmt;
use std::thread;

use polyarch_protocol::Topology;

use crate::invariants::Violation;
use crate::invariants::links_are_as_planned::Pair;
use crate::world::World;

/// How long a parcel takes on a link.
pub const DELAY_US: u64 = 10_000;
/// Bytes of each value that is written.
pub const VALUE_BYTES: usize = 1_024;
/// Time from one write to the next, in the whole cluster.
pub const WRITE_GAP_MS: u64 = 20;
/// Writes that are counted.
pub const WRITES: usize = 192;
/// How long the cluster is left alone.
pub const IDLE_MS: u64 = 4_000;

/// What is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster {
    /// How many nodes.
    pub nodes: usize,
    /// How they are linked.
    pub layout: Layout,
}

/// How nodes are linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Every one with every other.
    Mesh,
    /// Each with the next.
    Ring,
    /// The first with all others.
    Star,
    /// A ring with one more link, across.
    RingWithChord,
}

/// All of them.
pub const LAYOUTS: [Layout; 4] = [Layout::Mesh, Layout::Ring, Layout::Star, Layout::RingWithChord];

/// What was counted. Rates are per second.
#[derive(Debug, Clone, PartialEq)]
pub struct Count {
    /// In what.
    pub cluster: Cluster,
    /// Links in the cluster.
    pub links: usize,
    /// Links of the node that has most.
    pub links_per_node_max: usize,
    /// Write sets that were counted.
    pub write_sets: usize,
    /// Times that write sets were sent over a link.
    pub crossings: u64,
    /// Bytes of feeds, by what it takes to send each write set once to each other node.
    pub bytes_ratio: f64,
    /// Control messages in the cluster while nobody writes.
    pub control_idle: f64,
    /// The same under load.
    pub control: f64,
    /// Their bytes.
    pub control_bytes: f64,
    /// How many times a write set was passed on to come to another node, on average.
    pub hops_mean: f64,
    /// At most.
    pub hops_max: u64,
    /// Until all have a write on their disks: of half of the writes at most, in milliseconds.
    pub until_all_p50_ms: f64,
    /// Of any.
    pub until_all_max_ms: f64,
}

/// Counts in one cluster.
///
/// # Errors
/// When an invariant does not hold, or the cluster does not come to rest.
pub fn count(cluster: Cluster) -> Result<Count, Violation> {
    World::count(&cluster)
}

/// Counts in a cluster of each layout, side by side.
pub fn count_each(nodes: usize) -> [Result<Count, Violation>; LAYOUTS.len()] {
    thread::scope(|scope| {
        let counting = LAYOUTS.map(|layout| scope.spawn(move || count(Cluster { nodes, layout })));
        counting.map(|thread| thread.join().expect("a count does not panic"))
    })
}

/// What the figures of the table mean.
pub fn how_it_is_counted() -> String {
    format!(
        "Virtual time, so the same on every machine. A parcel takes {} ms on a link; a value has {VALUE_BYTES} bytes; \
         {WRITES} writes, one each {WRITE_GAP_MS} ms, the nodes in turn; idle: {} s without a write. Control messages are \
         heartbeats, link states and subscriptions. Bytes of feeds are counted before any compression.",
        DELAY_US / 1_000,
        IDLE_MS / 1_000
    )
}

impl Cluster {
    /// Its topology.
    pub fn topology(&self) -> Topology {
        match self.layout {
            Layout::Mesh => Topology::Mesh,
            Layout::Ring => Topology::Ring,
            Layout::Star => Topology::Star { hubs: vec![1] },
            Layout::RingWithChord => Topology::Custom { edges: self.ring_with_chord() },
        }
    }

    /// In a ring of three there is no across.
    fn ring_with_chord(&self) -> Vec<Pair> {
        let last = self.nodes as u32;
        let mut edges: Vec<Pair> = (1..=last).map(|id| (id, id % last + 1)).collect();
        if last > 3 {
            edges.push((1, last / 2 + 1));
        }
        edges
    }
}

impl Layout {
    /// Its name in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Ring => "ring",
            Self::Star => "star",
            Self::RingWithChord => "custom: a ring and a chord",
        }
    }
}

impl Count {
    /// Works it out. `ways`: of each write set its bytes, hops, and microseconds until all had it.
    /// `under_load`: control messages and bytes; `fed`: crossings and bytes of feeds.
    pub(crate) fn of(
        cluster: &Cluster,
        links: &[Pair],
        ways: &[(usize, Vec<u64>, u64)],
        idle_messages: u64,
        under_load: (u64, u64),
        fed: (u64, u64),
    ) -> Self {
        let mut of_node: BTreeMap<u32, usize> = BTreeMap::new();
        links.iter().flat_map(|(one, two)| [one, two]).for_each(|id| *of_node.entry(*id).or_default() += 1);
        let once_bytes: usize = ways.iter().map(|(bytes, ..)| bytes * (cluster.nodes - 1)).sum();
        let hops: Vec<u64> = ways.iter().flat_map(|(_, hops, _)| hops.iter().copied()).collect();
        let mut until_all_us: Vec<u64> = ways.iter().map(|(_, _, us)| *us).collect();
        until_all_us.sort_unstable();
        let seconds = (WRITES as u64 * WRITE_GAP_MS) as f64 / 1_000.0;
        let in_ms = |us: Option<&u64>| us.map_or(0.0, |us| *us as f64 / 1_000.0);
        Self {
            cluster: *cluster,
            links: links.len(),
            links_per_node_max: of_node.into_values().max().unwrap_or(0),
            write_sets: ways.len(),
            crossings: fed.0,
            bytes_ratio: fed.1 as f64 / once_bytes as f64,
            control_idle: idle_messages as f64 * 1_000.0 / IDLE_MS as f64,
            control: under_load.0 as f64 / seconds,
            control_bytes: under_load.1 as f64 / seconds,
            hops_mean: hops.iter().sum::<u64>() as f64 / hops.len() as f64,
            hops_max: hops.iter().copied().max().unwrap_or(0),
            until_all_p50_ms: in_ms(until_all_us.get(until_all_us.len() / 2)),
            until_all_max_ms: in_ms(until_all_us.last()),
        }
    }

    /// Times that a write set was sent over a link, on average. One less than nodes is the least.
    pub fn crossings_per_write_set(&self) -> f64 {
        self.crossings as f64 / self.write_sets as f64
    }

    /// The table's head, in Markdown.
    pub const HEAD: &str = "\
| nodes | topology | links | links per node, max | crossings per write set | bytes, of one crossing per node | control messages/s, idle | control messages/s | per node | control KiB/s per node | hops mean | max | until all have a write, p50 | max |
|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|";

    /// The same as a JSON object.
    pub fn to_json(&self) -> String {
        format!(
            "{{\"nodes\":{},\"topology\":\"{}\",\"links\":{},\"links_per_node_max\":{},\"write_sets\":{},\
             \"crossings_per_write_set\":{},\"bytes_ratio\":{:.4},\"control_messages_per_second_idle\":{:.1},\
             \"control_messages_per_second\":{:.1},\"control_bytes_per_second\":{:.0},\"hops_mean\":{:.3},\
             \"hops_max\":{},\"link_delay_ms\":{},\"until_all_p50_ms\":{:.1},\"until_all_max_ms\":{:.1}}}",
            self.cluster.nodes,
            self.cluster.layout.as_str(),
            self.links,
            self.links_per_node_max,
            self.write_sets,
            self.crossings_per_write_set(),
            self.bytes_ratio,
            self.control_idle,
            self.control,
            self.control_bytes,
            self.hops_mean,
            self.hops_max,
            DELAY_US / 1_000,
            self.until_all_p50_ms,
            self.until_all_max_ms,
        )
    }
}

impl fmt::Display for Count {
    /// A row of the table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = self.cluster.nodes as f64;
        write!(
            f,
            "| {} | {} | {} | {} | {} | {:.3} | {:.0} | {:.0} | {:.1} | {:.1} | {:.2} | {} | {:.0} ms | {:.0} ms |",
            self.cluster.nodes,
            self.cluster.layout.as_str(),
            self.links,
            self.links_per_node_max,
            self.crossings_per_write_set(),
            self.bytes_ratio,
            self.control_idle,
            self.control,
            self.control / nodes,
            self.control_bytes / nodes / 1_024.0,
            self.hops_mean,
            self.hops_max,
            self.until_all_p50_ms,
            self.until_all_max_ms,
        )
    }
}

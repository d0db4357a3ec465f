//! A healthy cluster of a given topology, under a constant load, to count in.

use bytes::Bytes;
use polyarch_protocol::client::{Request, Supersede, WriteChange, WriteRequest};
use polyarch_protocol::{Input, RecordKey, Topology};

use super::meter::Meter;
use super::{Event, Phase, World};
use crate::history::{IntendedChange, Intent, Replaces};
use crate::invariants::{Checked, Violation};
use crate::scenario::Scenario;
use crate::topologies::{Cluster, Count, DELAY_US, IDLE_MS, VALUE_BYTES, WRITE_GAP_MS, WRITES};
use crate::trace::Sink;

/// Milliseconds between the starts of two nodes.
const START_GAP_MS: u64 = 100;
/// Tenths of a second in which a cluster must come to rest.
const PATIENCE_TENTHS: usize = 1_800;
/// Keys that are written in turn.
const KEYS: usize = 64;

impl World {
    /// Counts in a cluster.
    ///
    /// # Errors
    /// When an invariant does not hold, or the cluster does not come to rest.
    pub fn count(cluster: &Cluster) -> Result<Count, Violation> {
        let scenario = Scenario::counted(cluster.nodes, DELAY_US);
        let mut world = Self::of(scenario, 1, Sink::Nowhere);
        world.assemble(&cluster.topology())?;
        let links = world.links_up();
        // An epoch begins with a subscription: that is over before anything is counted.
        for at in 0..cluster.nodes {
            world.write_one(at, at)?;
        }
        world.settle("what each has written first", Self::is_equal)?;
        world.pass(2_000)?;
        world.meter = Some(Meter::default());
        world.pass(IDLE_MS)?;
        let idle = world.meter.replace(Meter::default()).unwrap_or_default();
        for turn in 0..WRITES {
            world.write_one(turn % cluster.nodes, turn)?;
            world.pass(WRITE_GAP_MS)?;
        }
        let under_load = world.meter.as_ref().map_or((0, 0), |meter| (meter.control_messages, meter.control_bytes));
        world.settle("what was counted", Self::is_equal)?;
        let meter = world.meter.take().unwrap_or_default();
        Ok(Count::of(
            cluster,
            &links,
            &ways(&meter),
            idle.control_messages,
            under_load,
            (meter.crossings, meter.feed_bytes),
        ))
    }

    /// Founds the cluster with the topology set, lets the others join, and waits until all is as planned.
    fn assemble(&mut self, topology: &Topology) -> Checked {
        self.after(0, Event::Start { at: 0 });
        self.after(100_000, Event::Review);
        self.settle("the founding", |world| world.phase == Phase::Scripted)?;
        // Links can be given only between members.
        let first = match topology {
            Topology::Custom { .. } => Topology::Ring,
            other => other.clone(),
        };
        self.order(first);
        for at in 1..self.nodes.len() {
            self.after(at as u64 * START_GAP_MS * 1_000, Event::Start { at });
        }
        self.settle("all to join", |world| world.check_order().is_ok())?;
        self.order(topology.clone());
        self.pass(1_000)?;
        self.settle("the links", |world| world.check_order().is_ok() && world.is_equal())
    }

    fn order(&mut self, topology: Topology) {
        let tag = self.admin_tag();
        self.push_input(0, Input::SetTopology(tag, topology), None);
    }

    fn settle(&mut self, what: &'static str, is_done: impl Fn(&Self) -> bool) -> Checked {
        for _ in 0..PATIENCE_TENTHS {
            if is_done(self) {
                return Ok(());
            }
            self.pass(100)?;
        }
        self.check_order()?;
        Err(Violation::new("counts", format!("waits in vain for {what}")))
    }

    fn is_equal(&self) -> bool {
        let seen = |at: usize| self.history.node(at).durable().seen();
        (1..self.nodes.len()).all(|at| seen(at) == seen(0)) && self.clients[0].is_quiet()
    }

    /// Writes a value through a node; the answer is not waited for.
    fn write_one(&mut self, at: usize, turn: usize) -> Checked {
        let keyspace = self.keyspaces.last().cloned().ok_or_else(|| Violation::new("counts", "no keyspace"))?;
        let key = RecordKey::new(keyspace.id, format!("k{}", turn % KEYS).as_bytes());
        let put = Some(Bytes::from(vec![b'x'; VALUE_BYTES]));
        let supersede = Supersede::Held;
        let change =
            WriteChange { keyspace: keyspace.name.to_owned(), key: key.key_bytes(), put: put.clone(), supersede };
        let intended = IntendedChange { key: key.clone(), kind: keyspace.kind, put, replaces: Replaces::Held };
        let request = Request::Write(WriteRequest { changes: vec![change] });
        self.clients[0].home = at;
        self.send_request(0, request, key, keyspace.kind, Some(Intent { changes: vec![intended] }));
        Ok(())
    }
}

/// Of each write set its bytes, its hops to each other node, and when all had it.
fn ways(meter: &Meter) -> Vec<(usize, Vec<u64>, u64)> {
    meter.written.values().map(|way| (way.bytes, way.hops().collect(), way.until_all_us())).collect()
}

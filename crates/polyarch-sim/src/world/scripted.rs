//! A world in which nothing happens but what a script says.

use bytes::Bytes;
use polyarch_protocol::catalog::{KeyspaceKind, MemberChange};
use polyarch_protocol::client::{Refusal, Request, Response, Supersede, WriteChange, WriteRequest};
use polyarch_protocol::{Input, KeyspaceId, RecordKey, Topology};

use super::faults::End;
use super::{Keyspace, Phase, World};
use crate::disk::Image;
use crate::history::{IntendedChange, Intent, Replaces};
use crate::invariants::{Checked, Violation};
use crate::scenario::Scenario;
use crate::trace::Sink;

/// How long anything in a script may take.
const PATIENCE_US: u64 = 20_000_000;

/// What a scripted write replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// Whatever the node holds.
    Held,
    /// Nothing.
    Nothing,
    /// What the last read of the key had shown.
    Shown,
}

impl World {
    /// A founded cluster of so many nodes, all linked.
    ///
    /// # Errors
    /// When an invariant does not hold.
    pub fn scripted(nodes: usize, sink: Sink) -> Result<Self, Violation> {
        let mut world = Self::of(Scenario::scripted(nodes), 1, sink);
        world.begin();
        world.run_until(|world| world.phase == Phase::Scripted)?;
        world.pass(3_000)?;
        Ok(world)
    }

    /// Lets time pass.
    ///
    /// # Errors
    /// When an invariant does not hold.
    pub fn pass(&mut self, milliseconds: u64) -> Checked {
        let until_us = self.now_us + milliseconds * 1_000;
        self.run_until(|world| world.now_us >= until_us)
    }

    fn run_until(&mut self, is_done: impl Fn(&Self) -> bool) -> Checked {
        let until_us = self.now_us + PATIENCE_US;
        while !is_done(self) {
            self.step()?;
            if self.now_us > until_us {
                return Err(Violation::new("script", "what it waits for does not happen"));
            }
        }
        Ok(())
    }

    /// Writes a key on a node and waits for the answer. `None` deletes.
    ///
    /// # Errors
    /// When an invariant does not hold.
    pub fn write(
        &mut self,
        at: usize,
        keyspace: &str,
        key: &str,
        put: Option<&str>,
        replace: Replace,
    ) -> Result<String, Violation> {
        let Keyspace { name, kind, id } = self.keyspace(keyspace)?;
        let record_key = RecordKey::new(id, key.as_bytes());
        let (supersede, replaces) = match (replace, self.last_shown(0, &record_key)) {
            (Replace::Nothing, _) => (Supersede::Nothing, Replaces::Nothing),
            (Replace::Shown, Some(shown)) => {
                (Supersede::Shown(shown.sealed.clone()), Replaces::Shown(shown.dots.clone()))
            }
            _ => (Supersede::Held, Replaces::Held),
        };
        let put = put.map(|value| Bytes::copy_from_slice(value.as_bytes()));
        let change =
            WriteChange { keyspace: name.to_owned(), key: record_key.key_bytes(), put: put.clone(), supersede };
        let intended = IntendedChange { key: record_key.clone(), kind, put, replaces };
        let request = Request::Write(WriteRequest { changes: vec![change] });
        let intent = Intent { changes: vec![intended] };
        Ok(match self.ask(at, request, record_key, kind, Some(intent))? {
            Ok(_) => "ok".to_owned(),
            Err(refusal) => refusal.to_string(),
        })
    }

    /// Reads a key on a node: the values it shows, in their order.
    ///
    /// # Errors
    /// When an invariant does not hold.
    pub fn read_values(&mut self, at: usize, keyspace: &str, key: &str) -> Result<Vec<String>, Violation> {
        let Keyspace { name, kind, id } = self.keyspace(keyspace)?;
        let record_key = RecordKey::new(id, key.as_bytes());
        let request = Request::Get { keyspace: name.to_owned(), key: record_key.key_bytes() };
        match self.ask(at, request, record_key, kind, None)? {
            Ok(Response::Record { record, .. }) => {
                let values = record.siblings.iter().map(|s| String::from_utf8_lossy(&s.value).into_owned());
                Ok(values.collect())
            }
            Ok(_) => Ok(Vec::new()),
            Err(refusal) => Err(Violation::new("script", refusal.to_string())),
        }
    }

    /// Takes the network between two nodes down; both notice.
    ///
    /// # Errors
    /// When an invariant does not hold.
    pub fn cut(&mut self, one: usize, two: usize) -> Checked {
        self.network.block(one, two);
        self.network.block(two, one);
        for link in self.network.ids() {
            self.lose_patience(link)?;
        }
        self.pass(500)
    }

    /// Lets all nodes reach one another again, and come to rest.
    ///
    /// # Errors
    /// When an invariant does not hold.
    pub fn mend(&mut self) -> Checked {
        self.network.unblock_all();
        self.pass(6_000)
    }

    /// Cuts a node's power and starts it again.
    ///
    /// # Errors
    /// When an invariant does not hold.
    pub fn power_cut(&mut self, at: usize) -> Checked {
        self.stop(at, End::PowerCut)?;
        self.pass(3_000)
    }

    /// Has an operator set a topology on a node.
    ///
    /// # Errors
    /// When an invariant does not hold.
    pub fn order_topology(&mut self, at: usize, topology: Topology) -> Result<String, Violation> {
        let tag = self.admin_tag();
        self.push_input(at, Input::SetTopology(tag, topology), None);
        self.operators_answer()
    }

    /// Has an operator change a member through a node.
    ///
    /// # Errors
    /// When an invariant does not hold.
    pub fn order_change(&mut self, asked: usize, member: usize, change: MemberChange) -> Result<String, Violation> {
        self.change_member(asked, member as u32 + 1, change);
        self.operators_answer()
    }

    fn operators_answer(&mut self) -> Result<String, Violation> {
        self.operators.answered = None;
        self.run_until(|world| world.operators.answered.is_some())?;
        Ok(match self.operators.answered.take() {
            Some(Err(refusal)) => refusal.to_string(),
            _ => "ok".to_owned(),
        })
    }

    /// The links that are up, by the places of their nodes, the smaller first.
    pub fn links(&self) -> Vec<(usize, usize)> {
        let mut links: Vec<_> = self.links_up().iter().map(|(a, b)| (*a as usize - 1, *b as usize - 1)).collect();
        links.sort_unstable();
        links
    }

    /// What a node has durably applied and its digest, in hex.
    pub fn standing(&self, at: usize) -> (String, String) {
        let Some(process) = &self.nodes[at].process else { return ("down".into(), String::new()) };
        let digest = process.replica.frontier().digest.total();
        (process.published.to_string(), format!("{digest:032x}"))
    }

    /// What the disks hold.
    pub(crate) fn images(&self) -> Vec<Image> {
        self.nodes.iter().map(|node| node.devices.image()).collect()
    }

    /// The write sets in a node's log.
    pub(crate) fn log_of(&self, at: usize) -> Vec<Bytes> {
        self.history.node(at).order().iter().map(|written| written.bytes.clone()).collect()
    }

    /// The id of a keyspace.
    ///
    /// # Errors
    /// When there is none of that name.
    pub(crate) fn keyspace_id(&self, name: &str) -> Result<KeyspaceId, Violation> {
        self.keyspace(name).map(|keyspace| keyspace.id)
    }

    fn keyspace(&self, name: &str) -> Result<Keyspace, Violation> {
        let found = self.keyspaces.iter().find(|keyspace| keyspace.name == name);
        found.cloned().ok_or_else(|| Violation::new("script", format!("there is no keyspace {name}")))
    }

    fn ask(
        &mut self,
        at: usize,
        request: Request,
        key: RecordKey,
        kind: KeyspaceKind,
        intent: Option<Intent>,
    ) -> Result<Result<Response, Refusal>, Violation> {
        self.clients[0].home = at;
        self.clients[0].answered = None;
        self.send_request(0, request, key, kind, intent);
        self.run_until(|world| world.clients[0].answered.is_some())?;
        Ok(self.clients[0].answered.take().unwrap_or(Err(Refusal::Stopping)))
    }
}

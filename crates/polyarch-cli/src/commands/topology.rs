//! `polyarch topology`: who has links to whom.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Args, Subcommand, ValueEnum};
use polyarch_client::{Edge, MemberStatus, StatusView, Topology};

use crate::connection::ConnectionArguments;
use crate::failure::Failure;
use crate::json::{TopologyObject, WrittenObject};
use crate::terminal::Output;

/// Show and choose who has links to whom.
#[derive(Debug, Subcommand)]
pub(crate) enum TopologyCommand {
    /// Choose the topology of the whole cluster, while it runs
    #[command(after_help = "\
Any node may be told; the others follow once they have heard of it: new links come up, then data goes over them, and
links that are of no use any more are closed some seconds later. `polyarch topology show` shows how far that is.
With --json: {\"gtid\", \"hlc\", \"token\"}

Examples:
  polyarch topology set mesh
  polyarch topology set ring
  polyarch topology set star --hubs 1,2
  polyarch topology set custom --edges 1-2,2-3,3-1")]
    Set(Set),
    /// Draw the links as a node sees them
    #[command(after_help = "\
A line and a column for each member, with # where two have a link. Of members that are not reached no links are known;
they are planned for again once they are reached.
With --json: {\"topology\", \"members\": [{\"server_id\", \"name\", \"status\", \"reachable\"}],
\"links\": [{\"ends\": [ID, ID], \"planned\", \"up\"}]}

Example:
  polyarch topology show")]
    Show {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Set {
    /// Which links there shall be
    #[arg(value_enum)]
    kind: Kind,
    /// For star: who may be the hub, best first [default: the smallest server id that is reached]
    #[arg(long, value_name = "IDS", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    hubs: Vec<u32>,
    /// For custom: the links, as pairs of server ids
    #[arg(long, value_name = "ID-ID", value_delimiter = ',', value_parser = edge)]
    edges: Vec<(u32, u32)>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Every member with every other
    Mesh,
    /// Each with the next in order of server ids
    Ring,
    /// One hub with all others
    Star,
    /// The links of --edges
    Custom,
}

fn edge(text: &str) -> Result<(u32, u32), String> {
    let parsed = text.split_once('-').and_then(|(one, two)| Some((one.trim().parse().ok()?, two.trim().parse().ok()?)));
    parsed.ok_or_else(|| format!("`{text}` is no pair of server ids, such as 1-2"))
}

impl Set {
    fn topology(&self) -> Result<Topology, Failure> {
        if !self.hubs.is_empty() && self.kind != Kind::Star {
            return Err(Failure::usage("--hubs is for a star"));
        }
        match (self.kind == Kind::Custom, self.edges.is_empty()) {
            (true, true) => return Err(Failure::usage("custom needs --edges, the links, such as 1-2,2-3")),
            (false, false) => return Err(Failure::usage("--edges is for custom")),
            _ => {}
        }
        Ok(match self.kind {
            Kind::Mesh => Topology::Mesh,
            Kind::Ring => Topology::Ring,
            Kind::Star => Topology::Star { hubs: self.hubs.clone() },
            Kind::Custom => Topology::Custom { edges: self.edges.clone() },
        })
    }
}

impl TopologyCommand {
    pub(crate) fn run(self, connection: ConnectionArguments) -> Result<(), Failure> {
        match self {
            Self::Set(set) => {
                let topology = set.topology()?;
                connection.run(async |connection| {
                    let written = connection.client.set_topology(&topology).await?;
                    let mut output = Output::stdout();
                    if set.json {
                        output.json(&WrittenObject::from(&written))?;
                    }
                    output.flush()
                })
            }
            Self::Show { json } => connection.run(async |connection| {
                let status = connection.client.status().await?;
                let shape = Shape::of(&status);
                let mut output = Output::stdout();
                match json {
                    true => output.json(&TopologyObject::of(&status, &shape))?,
                    false => shape.draw(&status, &mut output)?,
                }
                output.flush()
            }),
        }
    }
}

/// The cluster's links, as one node sees them.
pub(crate) struct Shape {
    /// Those that were not removed, in order.
    pub(crate) members: BTreeMap<u32, ShapeMember>,
    pub(crate) up: BTreeSet<Edge>,
    pub(crate) planned: BTreeSet<Edge>,
}

pub(crate) struct ShapeMember {
    pub(crate) name: String,
    pub(crate) status: Option<MemberStatus>,
    pub(crate) reachable: bool,
}

impl Shape {
    fn of(status: &StatusView) -> Self {
        let me = status.server_id;
        let own = ShapeMember { name: status.name.clone(), status: status.status, reachable: true };
        let others = status.peers.iter().filter(|peer| peer.status != MemberStatus::Removed).map(|peer| {
            let (name, reachable) = (peer.name.clone(), peer.reachable);
            (peer.server_id, ShapeMember { name, status: Some(peer.status), reachable })
        });
        let members: BTreeMap<u32, ShapeMember> = [(me, own)].into_iter().chain(others).collect();
        let own_links = status.peers.iter().filter(|peer| peer.linked).map(|peer| Edge::new(me, peer.server_id));
        let links = |of: u32| status.peers.iter().find(|peer| peer.server_id == of).map(|peer| &peer.links[..]);
        let names = |one: u32, two: u32| links(one).is_some_and(|links| links.contains(&two));
        let between = status.peers.iter().flat_map(|peer| peer.links.iter().map(|other| (peer.server_id, *other)));
        let between = between.filter(|(one, two)| *two != me && names(*two, *one));
        let up = own_links.chain(between.map(|(one, two)| Edge::new(one, two))).collect();
        let live = members.iter().filter(|(_, member)| member.reachable).map(|(id, _)| *id).collect();
        Self { planned: status.topology.edges(&live), members, up }
    }

    fn draw(&self, status: &StatusView, output: &mut Output) -> Result<(), Failure> {
        let (members, up) = (self.members.len(), self.up.len());
        let missing = self.planned.difference(&self.up).count();
        let beside = self.up.difference(&self.planned).count();
        output.line(format_args!(
            "{}, as node {} sees it: {members} members, {up} links up, {missing} planned and not up, {beside} beside the plan",
            status.topology, status.server_id
        ))?;
        if status.status == Some(MemberStatus::Removed) {
            output.line("this member was removed: it has no links, and does not see those of the others")?;
        }
        let width = self.members.keys().map(|id| id.to_string().len()).max().unwrap_or(1);
        let heads: Vec<String> = self.members.keys().map(|id| format!("{id:>width$}")).collect();
        output.line(format_args!("\n  {:>width$}  {}", "", heads.join(" ")))?;
        for (id, member) in &self.members {
            let cells: Vec<String> =
                self.members.keys().map(|other| format!("{:>width$}", self.cell(*id, *other))).collect();
            let status = member.status.map_or("no member yet", MemberStatus::as_str);
            let reached = if member.reachable { "" } else { ", not reached" };
            output.line(format_args!("  {id:>width$}  {}   {} ({status}{reached})", cells.join(" "), member.name))?;
        }
        output.line("\n  # link, o planned and not up, + up beside the plan")
    }

    fn cell(&self, one: u32, two: u32) -> char {
        let edge = Edge::new(one, two);
        match (self.up.contains(&edge), self.planned.contains(&edge)) {
            _ if one == two => '\\',
            (true, true) => '#',
            (true, false) => '+',
            (false, true) => 'o',
            (false, false) => '.',
        }
    }
}

//! Scripts as data: what is done on which node, and what it shows.
//!
//! ```text
//! cut a b; a put carts/k=1; b put carts/k=2; heal; a get carts/k
//! ```
//!
//! Nodes are `a`, `b`, `c`, keyspaces `carts` (`mv`) and `settings` (`lww`). Statements end with `;`
//! or a line:
//!
//! - `N put KEYSPACE/KEY=VALUE` replaces what the node holds; with `as shown` behind it what the
//!   last `get` of the key had shown, with `beside` nothing
//! - `N delete KEYSPACE/KEY`, with the same endings
//! - `N get KEYSPACE/KEY` prints `N KEYSPACE/KEY: VALUES`
//! - `N topology TOPOLOGY`, `N drain M`, `N remove M` (with force) and `N rejoin M` print why they are
//!   refused, if they are; `links` prints the links that are up
//! - `cut N M`, `heal`, `power-cut N`, `rest` (lets a few seconds pass), and `digests`, which prints whether all nodes are equal
//!
//! The API may change under them; scripts stay. All invariants of [`crate::invariants`] are checked
//! at every step.

use std::fmt::Write;

use polyarch_protocol::catalog::MemberChange;

use crate::invariants::Violation;
use crate::trace::Sink;
use crate::world::{Replace, World};

/// Runs a script on so many nodes; returns what it prints.
///
/// # Errors
/// When an invariant does not hold, or the script cannot be read.
pub fn run(nodes: usize, script: &str) -> Result<String, Violation> {
    let mut world = World::scripted(nodes, Sink::Nowhere)?;
    let mut printed = String::new();
    let statements = script.split([';', '\n']).map(str::trim).filter(|statement| !statement.is_empty());
    for statement in statements {
        let line = perform(&mut world, nodes, statement)?;
        if let Some(line) = line {
            writeln!(printed, "{line}").expect("a String takes all that is written");
        }
    }
    Ok(printed)
}

fn perform(world: &mut World, nodes: usize, statement: &str) -> Result<Option<String>, Violation> {
    let unreadable = || Violation::new("script", format!("cannot read `{statement}`"));
    let words: Vec<&str> = statement.split_whitespace().collect();
    let node = |name: &str| {
        let at = usize::from(name.bytes().next()?.checked_sub(b'a')?);
        (name.len() == 1 && at < nodes).then_some(at)
    };
    let on = |name: &str| node(name).ok_or_else(unreadable);
    match words.as_slice() {
        ["cut", one, two] => world.cut(on(one)?, on(two)?).map(|()| None),
        ["rest"] => world.pass(3_000).map(|()| None),
        ["heal"] => world.mend().map(|()| None),
        ["power-cut", name] => world.power_cut(on(name)?).map(|()| None),
        ["digests"] => {
            let standings: Vec<_> = (0..nodes).map(|at| world.standing(at)).collect();
            let are_equal = standings.windows(2).all(|pair| pair[0] == pair[1]);
            Ok(Some(if are_equal { "digests: equal" } else { "digests: different" }.to_owned()))
        }
        ["links"] => {
            let name = |at: usize| char::from(b'a' + at as u8);
            let links: Vec<_> = world.links().into_iter().map(|(a, b)| format!("{}-{}", name(a), name(b))).collect();
            Ok(Some(format!("links: {}", links.join(" "))))
        }
        [name, "topology", topology] => {
            let topology = topology.parse().map_err(|_| unreadable())?;
            refused(name, &world.order_topology(on(name)?, topology)?)
        }
        [name, verb @ ("drain" | "remove" | "rejoin"), member] => {
            let change = match *verb {
                "drain" => MemberChange::Drain,
                "remove" => MemberChange::Remove { force: true },
                _ => MemberChange::Rejoin,
            };
            refused(name, &world.order_change(on(name)?, on(member)?, change)?)
        }
        [name, "get", path] => {
            let (keyspace, key) = path.split_once('/').ok_or_else(unreadable)?;
            let values = world.read_values(on(name)?, keyspace, key)?;
            let values = if values.is_empty() { "nothing".to_owned() } else { values.join(", ") };
            Ok(Some(format!("{name} {path}: {values}")))
        }
        [name, verb @ ("put" | "delete"), path, ending @ ..] => {
            let replace = match ending {
                [] => Replace::Held,
                ["as", "shown"] => Replace::Shown,
                ["beside"] => Replace::Nothing,
                _ => return Err(unreadable()),
            };
            let (keyspace, rest) = path.split_once('/').ok_or_else(unreadable)?;
            let (key, value) = match *verb {
                "put" => rest.split_once('=').map(|(key, value)| (key, Some(value))).ok_or_else(unreadable)?,
                _ => (rest, None),
            };
            let said = world.write(on(name)?, keyspace, key, value, replace)?;
            refused(&format!("{name} {path}"), &said)
        }
        _ => Err(unreadable()),
    }
}

fn refused(what: &str, said: &str) -> Result<Option<String>, Violation> {
    Ok((said != "ok").then(|| format!("{what}: {said}")))
}

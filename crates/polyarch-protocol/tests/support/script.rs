use std::collections::BTreeMap;

use polyarch_crdt::SealedContext;
use polyarch_protocol::client::{Supersede, WriteChange};

use super::cluster::Cluster;
use super::node::change;

/// Plays a script on a fresh cluster of three and returns what it prints.
///
/// Statements are parted by `;` or `|` (which says that the two are concurrent, and means the
/// same). Keys are of the mv keyspace `m`, with `l/` before them of the lww keyspace `l`.
///
/// ```text
/// a put k=1 [j=2 ..] [over nothing | over C]     a write, atomic
/// a del k [over C]                               a delete; prints `nothing` if there was none
/// a see k as C                                   remembers the context of a read
/// a get k                                        prints the values
/// a <-> b    a -x- b                             a link comes up, goes down
/// a crash    a restart                           a power cut; an orderly restart
/// a stage    a sync                              no more syncs until told; one sync, and on
/// wait 500                                       milliseconds
/// equal                                          prints whether all three hold the same
/// ```
pub(crate) fn run(script: &str) -> String {
    let mut player = Player { cluster: Cluster::of(3), contexts: BTreeMap::new(), printed: Vec::new() };
    for statement in script.split([';', '|']).map(str::trim).filter(|s| !s.is_empty()) {
        player.play(statement);
    }
    player.printed.join("; ")
}

struct Player {
    cluster: Cluster,
    contexts: BTreeMap<String, SealedContext>,
    printed: Vec<String>,
}

fn node(name: &str) -> usize {
    match name {
        "a" => 0,
        "b" => 1,
        "c" => 2,
        _ => panic!("no node `{name}`"),
    }
}

impl Player {
    fn play(&mut self, statement: &str) {
        let words: Vec<&str> = statement.split_whitespace().collect();
        match words[..] {
            ["wait", ms] => self.cluster.run_ms(ms.parse().expect("milliseconds")),
            ["equal"] => self.print_equal(),
            [one, "<->", other] => {
                self.cluster.link(node(one), node(other));
                self.cluster.run_ms(300);
            }
            [one, "-x-", other] => self.cluster.unlink_between(node(one), node(other)),
            [at, "put", ref rest @ ..] => self.write(node(at), rest, true),
            [at, "del", ref rest @ ..] => self.write(node(at), rest, false),
            [at, "see", key, "as", name] => {
                let context = self.cluster.nodes[node(at)].context(key);
                self.contexts.insert(name.to_owned(), context);
            }
            [at, "get", key] => {
                let shown = self.cluster.nodes[node(at)].shown(key);
                self.printed.push(format!("{at} {key}={{{}}}", shown.join(",")));
            }
            [at, "stage"] => self.cluster.nodes[node(at)].syncs = false,
            [at, "sync"] => self.cluster.nodes[node(at)].syncs = true,
            [at, "crash"] => self.stop(node(at), false),
            [at, "restart"] => self.stop(node(at), true),
            _ => panic!("`{statement}`?"),
        }
        self.cluster.settle();
    }

    fn stop(&mut self, at: usize, syncs: bool) {
        if syncs {
            self.cluster.nodes[at].sync();
        }
        (0..3).filter(|other| *other != at).for_each(|other| self.cluster.unlink_between(at, other));
        self.cluster.nodes[at].syncs = true;
        self.cluster.nodes[at].crash();
    }

    fn write(&mut self, at: usize, words: &[&str], puts: bool) {
        let (places, over) = match words.iter().position(|word| *word == "over") {
            Some(split) => (&words[..split], Some(words[split + 1])),
            None => (words, None),
        };
        let supersede = match over {
            None => Supersede::Held,
            Some("nothing") => Supersede::Nothing,
            Some(name) => Supersede::Shown(self.contexts[name].clone()),
        };
        let changes: Vec<WriteChange> = places
            .iter()
            .map(|place| match place.split_once('=').filter(|_| puts) {
                Some((key, value)) => change(key, Some(value), supersede.clone()),
                None => change(place, None, supersede.clone()),
            })
            .collect();
        let node = &mut self.cluster.nodes[at];
        if !node.syncs {
            let _ = node
                .ask(|tag| polyarch_protocol::Input::Write(tag, polyarch_protocol::client::WriteRequest { changes }));
            return;
        }
        match node.write(changes) {
            Ok(written) if written.dot.is_none() => self.printed.push("nothing".to_owned()),
            Ok(_) => {}
            Err(refusal) => self.printed.push(format!("refused: {refusal}")),
        }
    }

    fn print_equal(&mut self) {
        let frontiers: Vec<_> = self.cluster.nodes.iter().map(|node| node.replica.frontier()).collect();
        let same =
            |pair: &[&polyarch_protocol::Frontier]| pair[0].heads == pair[1].heads && pair[0].digest == pair[1].digest;
        let equal = frontiers.windows(2).all(same);
        self.printed.push(if equal { "equal" } else { "different" }.to_owned());
    }
}

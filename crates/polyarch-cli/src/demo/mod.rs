//! `polyarch demo`: three real nodes, a real data set, a cut, a conflict, a heal.

use std::time::{Duration, Instant};

use clap::Args;
use polyarch_client::{Client, KeyspaceKind, Record, StatusView};
use serde_json::Value;

use crate::failure::Failure;
use crate::local_cluster::LocalCluster;
use crate::signals::{StopSignal, StopSignals};
use crate::terminal::{self, Output};

/// The media types of the npm package mime-db; see the folder for version and licence.
const MIME_DB: &str = include_str!("mime-db/db.json");
const EQUAL_WITHIN: Duration = Duration::from_secs(20);
const NODES: [u32; 3] = [1, 2, 3];
/// Changes that one import request carries.
const IMPORT_BATCH: usize = 100;

/// See three masters take writes at once, be cut apart, conflict, heal and agree.
#[derive(Debug, Args)]
#[command(after_help = "\
Starts three node processes on 127.0.0.1 (QUIC, mutual TLS, logs and states on disk) in a temporary directory, and
removes them at the end. Takes a few seconds. Ctrl-C cleans up.")]
pub(crate) struct Demo {
    /// Wait for Enter between the acts
    #[arg(long)]
    pause: bool,
    /// Leave the cluster running, and print commands to go on playing
    #[arg(long)]
    keep: bool,
}

impl Demo {
    pub(crate) fn run(&self, program: &str) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::system("start a runtime", &error))?;
        runtime.block_on(self.run_until_stopped(program))
    }

    /// Whatever ends the play, the nodes that it started end with it; unless it came to its end, and they are to stay.
    async fn run_until_stopped(&self, program: &str) -> Result<(), Failure> {
        let mut stop_signals = StopSignals::listen()?.and_hang_up()?;
        let directory = tempfile::Builder::new().prefix("polyarch-demo-").tempdir();
        let directory = directory.map_err(|error| Failure::system("make a temporary directory", &error))?;
        let cluster = tokio::select! {
            cluster = LocalCluster::start(directory.path(), 3, "") => cluster?,
            signal = stop_signals.next() => return Err(stopped(signal)),
        };
        let played = tokio::select! {
            played = self.play(&cluster, program) => played,
            signal = stop_signals.next() => Err(stopped(signal)),
        };
        match played.is_ok() && self.keep {
            true => {
                cluster.leave_running();
                // The directory is the user's from here on.
                let _ = directory.keep();
            }
            false => cluster.stop().await,
        }
        played
    }

    async fn play(&self, cluster: &LocalCluster, program: &str) -> Result<(), Failure> {
        let mut stage = Stage::open(cluster, self.pause)?;
        stage.three_masters().await?;
        stage.one_key_on_three_nodes().await?;
        stage.cut_apart().await?;
        stage.heal().await?;
        stage.settle().await?;
        stage.agree().await?;
        if self.keep {
            stage.say_how_to_go_on(program)?;
        }
        stage.output.flush()
    }
}

fn stopped(signal: StopSignal) -> Failure {
    Failure::stopped(signal, format_args!("ended by {}; the nodes are gone and their files removed", signal.name()))
}

/// The cluster, and a client that talks to each of its nodes and to no other.
struct Stage<'a> {
    cluster: &'a LocalCluster,
    at: Vec<Client>,
    output: Output,
    pause: bool,
    colours: bool,
}

impl<'a> Stage<'a> {
    fn open(cluster: &'a LocalCluster, pause: bool) -> Result<Self, Failure> {
        let client = cluster.client()?;
        let at = cluster.nodes().iter().map(|node| client.only(&node.address)).collect();
        let colours = terminal::has_colours(&std::io::stdout());
        Ok(Self { cluster, at, output: Output::stdout(), pause, colours })
    }

    fn at(&self, server_id: u32) -> &Client {
        &self.at[server_id as usize - 1]
    }

    async fn three_masters(&mut self) -> Result<(), Failure> {
        self.act("Three masters")?;
        for node in self.cluster.nodes() {
            self.output.line(format_args!(
                "  node {} listens on {} (process {})",
                node.server_id,
                node.address,
                node.pid().unwrap_or_default()
            ))?;
        }
        self.at(1).create_keyspace("types", KeyspaceKind::Mv).await?;
        self.at(1).create_keyspace("settings", KeyspaceKind::Lww).await?;
        self.equal().await?;
        let types: serde_json::Map<String, Value> = serde_json::from_str(MIME_DB).map_err(Failure::refused)?;
        let types: Vec<(String, Value)> = types.into_iter().collect();
        let since = Instant::now();
        // Every node takes a third of the data, all at once.
        let thirds: Vec<_> = types.chunks(types.len().div_ceil(3)).collect();
        tokio::try_join!(import(self.at(1), thirds[0]), import(self.at(2), thirds[1]), import(self.at(3), thirds[2]))?;
        self.equal().await?;
        self.output.line(format_args!(
            "  imported {} media types, a third through each node at the same time; all three hold all of them after {} ms",
            types.len(),
            since.elapsed().as_millis()
        ))?;
        self.done().await
    }

    async fn one_key_on_three_nodes(&mut self) -> Result<(), Failure> {
        self.act("One key, changed on all three nodes at once")?;
        // Three people read the same value, then each changes it at another node.
        let read = tokio::try_join!(self.json_type(1), self.json_type(2), self.json_type(3))?;
        tokio::try_join!(
            edit(self.at(1), JSON, &read.0, "by 1"),
            edit(self.at(2), JSON, &read.1, "by 2"),
            edit(self.at(3), JSON, &read.2, "by 3"),
        )?;
        self.equal().await?;
        self.show(&[("types", JSON)]).await?;
        self.output.line(
            "  None of the three saw another's change, so none may replace it: all three are kept, as siblings.",
        )?;
        self.done().await
    }

    async fn cut_apart(&mut self) -> Result<(), Failure> {
        self.act("Node 3 is cut off; both sides go on writing and deleting")?;
        for (here, there) in [(1, 3), (2, 3), (3, 1), (3, 2)] {
            self.at(1).cut_link(&self.cluster.nodes()[here - 1].address, there).await?;
        }
        let (left, right) = (self.at(1), self.at(3));
        for (client, who) in [(left, "by 1"), (right, "by 3")] {
            edit(client, CSS, &read(client, CSS).await?, who).await?;
        }
        delete(left, PNG).await?;
        edit(right, PNG, &read(right, PNG).await?, "by 3").await?;
        delete(right, WOFF).await?;
        left.put("settings", "banner", "blue, by 1").await?;
        right.put("settings", "banner", "green, by 3").await?;
        self.cluster.wait_until_equal(self.at(1), &[1, 2], EQUAL_WITHIN).await?;
        self.show(PLAYED).await?;
        self.output.line("  Every write was acknowledged at once: no node waits for another.")?;
        self.done().await
    }

    async fn heal(&mut self) -> Result<(), Failure> {
        self.act("The link is healed")?;
        let since = Instant::now();
        for (here, there) in [(1, 3), (2, 3), (3, 1), (3, 2)] {
            self.at(1).heal_link(&self.cluster.nodes()[here - 1].address, there).await?;
        }
        self.equal().await?;
        self.output.line(format_args!("  equal after {} ms", since.elapsed().as_millis()))?;
        self.show(PLAYED).await?;
        self.output.line(format_args!("  {CSS}: changed on both sides, so both changes are shown."))?;
        self.output.line(format_args!(
            "  {PNG}: deleted on one side and changed on the other; the delete had not seen the change, which survives."
        ))?;
        self.output.line(format_args!(
            "  {WOFF}: deleted on one side and untouched on the other: gone everywhere, and it does not come back."
        ))?;
        self.output.line("  banner: its keyspace is `lww`, so the later of two concurrent writes is shown.")?;
        self.done().await
    }

    async fn settle(&mut self) -> Result<(), Failure> {
        self.act("A person settles the conflict, at any node")?;
        let seen = read(self.at(2), CSS).await?;
        edit(self.at(2), CSS, &seen, "by 1 and 3").await?;
        self.equal().await?;
        self.show(&[("types", CSS)]).await?;
        self.output.line("  The write named what its writer had been shown, and replaced exactly that.")?;
        self.done().await
    }

    async fn agree(&mut self) -> Result<(), Failure> {
        self.act("Proof that the three are equal")?;
        let statuses = self.equal().await?;
        for status in &statuses {
            let applied: Vec<String> = status.applied.iter().map(|dot| dot.to_string()).collect();
            self.output.line(format_args!("  node {}: applied {}", status.server_id, applied.join(", ")))?;
            self.output.line(format_args!("          digest  {}", status.digest))?;
        }
        let equal =
            statuses.windows(2).all(|pair| (&pair[0].applied, &pair[0].digest) == (&pair[1].applied, &pair[1].digest));
        if !equal {
            return Err(Failure::refused(
                "equal applied-sets, different digests: this must not happen; please report it",
            ));
        }
        self.output.line(
            "
What you saw: three nodes that all take writes, also alone. What was written concurrently was kept and shown
instead of lost; what was deleted stayed deleted; and in the end each could prove that it holds the same.",
        )
    }

    fn say_how_to_go_on(&mut self, program: &str) -> Result<(), Failure> {
        let (program, profile) = (terminal::shell_word(program.as_ref()), self.cluster.profile_path());
        let (profile, directory) = (terminal::shell_word(&profile), terminal::shell_word(self.cluster.directory()));
        let nodes = self.cluster.nodes();
        let pids: Vec<String> = nodes.iter().filter_map(|node| node.pid()).map(|pid| pid.to_string()).collect();
        let (pids, node_1, node_3) = (pids.join(" "), &nodes[0].address, &nodes[2].address);
        // The nodes have a second to close their files before these are removed.
        self.output.line(format_args!(
            "
The cluster goes on running. To play:

export POLYARCH_PROFILE={profile}
{program} status --all
{program} get types {JSON} --json
{program} link cut 3 --node {node_1}
{program} put types {PNG} 'written at node 3' --node {node_3}
{program} link heal 3 --node {node_1}

To end it:

kill {pids} && sleep 1 && rm -r {directory}"
        ))
    }

    async fn json_type(&self, server_id: u32) -> Result<Record, Failure> {
        read(self.at(server_id), JSON).await
    }

    async fn equal(&self) -> Result<Vec<StatusView>, Failure> {
        self.cluster.wait_until_equal(self.at(1), &NODES, EQUAL_WITHIN).await
    }

    /// Shows keys as each node has them, side by side.
    async fn show(&mut self, keys: &[(&str, &str)]) -> Result<(), Failure> {
        let mut rows = vec![["".to_owned(), "node 1".to_owned(), "node 2".to_owned(), "node 3".to_owned()]];
        for (keyspace, key) in keys {
            let mut row = [(*key).to_owned(), String::new(), String::new(), String::new()];
            for (cell, client) in row[1..].iter_mut().zip(&self.at) {
                *cell = cell_of(client.get(keyspace, key).await?.as_ref());
            }
            rows.push(row);
        }
        let widths: Vec<usize> =
            (0..4).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)).collect();
        self.output.line("")?;
        for row in rows {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            self.output.line(format_args!("    {}", cells.join("   ").trim_end()))?;
        }
        self.output.line("")?;
        Ok(())
    }

    fn act(&mut self, title: &str) -> Result<(), Failure> {
        match self.colours {
            true => self.output.line(format_args!("\n\x1b[1m{title}\x1b[0m")),
            false => self.output.line(format_args!("\n{title}")),
        }
    }

    /// The end of an act.
    async fn done(&mut self) -> Result<(), Failure> {
        if self.pause {
            self.output.bytes(b"  [Enter] ")?;
        }
        self.output.flush()?;
        match self.pause {
            true => terminal::enter().await,
            false => Ok(()),
        }
    }
}

const JSON: &str = "application/json";
const CSS: &str = "text/css";
const PNG: &str = "image/png";
const WOFF: &str = "font/woff";
const PLAYED: &[(&str, &str)] = &[("types", CSS), ("types", PNG), ("types", WOFF), ("settings", "banner")];

async fn import(client: &Client, types: &[(String, Value)]) -> Result<(), Failure> {
    for group in types.chunks(IMPORT_BATCH) {
        let batch = group.iter().fold(client.batch(), |batch, (key, value)| batch.put("types", key, value.to_string()));
        batch.commit().await?;
    }
    Ok(())
}

async fn read(client: &Client, key: &str) -> Result<Record, Failure> {
    client.get("types", key).await?.ok_or_else(|| Failure::not_found(format_args!("{key} is not there")))
}

/// Writes what was read with a note, in place of exactly what was read.
async fn edit(client: &Client, key: &str, seen: &Record, note: &str) -> Result<(), Failure> {
    let mut value: Value = seen.values().next().and_then(|v| serde_json::from_slice(v).ok()).unwrap_or(Value::Null);
    value["note"] = note.into();
    client.put_with("types", key, value.to_string(), seen.shown()).await?;
    Ok(())
}

async fn delete(client: &Client, key: &str) -> Result<(), Failure> {
    let seen = read(client, key).await?;
    client.delete_with("types", key, seen.shown()).await?;
    Ok(())
}

/// A record in a few letters: the note of each sibling.
fn cell_of(record: Option<&Record>) -> String {
    let Some(record) = record else { return "(deleted)".to_owned() };
    let values = record.values().map(|value| match serde_json::from_slice::<Value>(value) {
        Ok(value) => value["note"].as_str().unwrap_or("as imported").to_owned(),
        Err(_) => String::from_utf8_lossy(value).into_owned(),
    });
    values.collect::<Vec<_>>().join(" | ")
}

//! `polyarch demo`: three real nodes, a real data set, a cut, a conflict, a heal.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use clap::Args;
use polyarch_client::{Client, KeyspaceKind, Record, StatusView};
use serde_json::Value;

use crate::failure::Failure;
use crate::local_cluster::LocalCluster;
use crate::terminal;

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
        runtime.map_err(|error| Failure::system("start a runtime", &error))?.block_on(async {
            tokio::select! {
                played = self.play(program) => played,
                () = told_to_end() => Err(Failure::refused("stopped; the nodes are gone and their files removed")),
            }
        })
    }

    async fn play(&self, program: &str) -> Result<(), Failure> {
        let directory = tempfile::Builder::new().prefix("polyarch-demo-").tempdir();
        let directory = directory.map_err(|error| Failure::system("make a temporary directory", &error))?;
        let stage = Stage::open(LocalCluster::start(directory.path(), 3, "").await?, self.pause)?;
        stage.three_masters().await?;
        stage.one_key_on_three_nodes().await?;
        stage.cut_apart().await?;
        stage.heal().await?;
        stage.settle().await?;
        stage.agree().await?;
        if self.keep {
            stage.say_how_to_go_on(program);
            stage.cluster.leave_running();
            // The directory is the user's from here on.
            let _ = directory.keep();
        } else {
            stage.cluster.stop().await;
        }
        Ok(())
    }
}

/// Ctrl-C, a SIGTERM, or the terminal's end.
async fn told_to_end() {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::hangup()));
    let (Ok(mut terminate), Ok(mut hang_up)) = signals else {
        let _ = tokio::signal::ctrl_c().await;
        return;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
}

/// The cluster, and a client that talks to each of its nodes and to no other.
struct Stage {
    cluster: LocalCluster,
    at: Vec<Client>,
    pause: bool,
    colours: bool,
}

impl Stage {
    fn open(cluster: LocalCluster, pause: bool) -> Result<Self, Failure> {
        let client = cluster.client()?;
        let at = cluster.nodes().iter().map(|node| client.only(&node.address)).collect();
        Ok(Self { cluster, at, pause, colours: terminal::has_colours(&std::io::stdout()) })
    }

    fn at(&self, server_id: u32) -> &Client {
        &self.at[server_id as usize - 1]
    }

    async fn three_masters(&self) -> Result<(), Failure> {
        self.act("Three masters");
        for node in self.cluster.nodes() {
            println!(
                "  node {} listens on {} (process {})",
                node.server_id,
                node.address,
                node.pid().unwrap_or_default()
            );
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
        println!(
            "  imported {} media types, a third through each node at the same time; all three hold all of them after {} ms",
            types.len(),
            since.elapsed().as_millis()
        );
        self.done()
    }

    async fn one_key_on_three_nodes(&self) -> Result<(), Failure> {
        self.act("One key, changed on all three nodes at once");
        // Three people read the same value, then each changes it at another node.
        let read = tokio::try_join!(self.json_type(1), self.json_type(2), self.json_type(3))?;
        tokio::try_join!(
            edit(self.at(1), JSON, &read.0, "by 1"),
            edit(self.at(2), JSON, &read.1, "by 2"),
            edit(self.at(3), JSON, &read.2, "by 3"),
        )?;
        self.equal().await?;
        self.show(&[("types", JSON)]).await?;
        println!("  None of the three saw another's change, so none may replace it: all three are kept, as siblings.");
        self.done()
    }

    async fn cut_apart(&self) -> Result<(), Failure> {
        self.act("Node 3 is cut off; both sides go on writing and deleting");
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
        println!("  Every write was acknowledged at once: no node waits for another.");
        self.done()
    }

    async fn heal(&self) -> Result<(), Failure> {
        self.act("The link is healed");
        let since = Instant::now();
        for (here, there) in [(1, 3), (2, 3), (3, 1), (3, 2)] {
            self.at(1).heal_link(&self.cluster.nodes()[here - 1].address, there).await?;
        }
        self.equal().await?;
        println!("  equal after {} ms", since.elapsed().as_millis());
        self.show(PLAYED).await?;
        println!("  {CSS}: changed on both sides, so both changes are shown.");
        println!(
            "  {PNG}: deleted on one side and changed on the other; the delete had not seen the change, which survives."
        );
        println!(
            "  {WOFF}: deleted on one side and untouched on the other: gone everywhere, and it does not come back."
        );
        println!("  banner: its keyspace is `lww`, so the later of two concurrent writes is shown.");
        self.done()
    }

    async fn settle(&self) -> Result<(), Failure> {
        self.act("A person settles the conflict, at any node");
        let seen = read(self.at(2), CSS).await?;
        edit(self.at(2), CSS, &seen, "by 1 and 3").await?;
        self.equal().await?;
        self.show(&[("types", CSS)]).await?;
        println!("  The write named what its writer had been shown, and replaced exactly that.");
        self.done()
    }

    async fn agree(&self) -> Result<(), Failure> {
        self.act("Proof that the three are equal");
        let statuses = self.equal().await?;
        for status in &statuses {
            let applied: Vec<String> = status.applied.iter().map(|dot| dot.to_string()).collect();
            println!("  node {}: applied {}", status.server_id, applied.join(", "));
            println!("          digest  {}", status.digest);
        }
        let equal =
            statuses.windows(2).all(|pair| (&pair[0].applied, &pair[0].digest) == (&pair[1].applied, &pair[1].digest));
        if !equal {
            return Err(Failure::refused(
                "equal applied-sets, different digests: this must not happen; please report it",
            ));
        }
        println!(
            "\nWhat you saw: three nodes that all take writes, also alone. What was written concurrently was kept and shown"
        );
        println!(
            "instead of lost; what was deleted stayed deleted; and in the end each could prove that it holds the same."
        );
        Ok(())
    }

    fn say_how_to_go_on(&self, program: &str) {
        let program = terminal::shell_word(program.as_ref());
        println!("\nThe cluster goes on running. To play:\n");
        println!("export POLYARCH_PROFILE={}", terminal::shell_word(&self.cluster.profile_path()));
        println!("{program} status --all");
        println!("{program} get types {JSON} --json");
        println!("{program} link cut 3 --node {}", self.cluster.nodes()[0].address);
        println!("{program} put types {PNG} 'written at node 3' --node {}", self.cluster.nodes()[2].address);
        println!("{program} link heal 3 --node {}", self.cluster.nodes()[0].address);
        let pids: Vec<String> =
            self.cluster.nodes().iter().filter_map(|n| n.pid()).map(|pid| pid.to_string()).collect();
        println!("\nTo end it:\n");
        println!("kill {} && rm -r {}", pids.join(" "), terminal::shell_word(self.cluster.directory()));
    }

    async fn json_type(&self, server_id: u32) -> Result<Record, Failure> {
        read(self.at(server_id), JSON).await
    }

    async fn equal(&self) -> Result<Vec<StatusView>, Failure> {
        self.cluster.wait_until_equal(self.at(1), &NODES, EQUAL_WITHIN).await
    }

    /// Shows keys as each node has them, side by side.
    async fn show(&self, keys: &[(&str, &str)]) -> Result<(), Failure> {
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
        println!();
        for row in rows {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            println!("    {}", cells.join("   ").trim_end());
        }
        println!();
        Ok(())
    }

    fn act(&self, title: &str) {
        match self.colours {
            true => println!("\n\x1b[1m{title}\x1b[0m"),
            false => println!("\n{title}"),
        }
    }

    fn done(&self) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure::system("use the terminal", &error);
        std::io::stdout().flush().map_err(failed)?;
        if self.pause && std::io::stdin().is_terminal() {
            print!("  [Enter] ");
            std::io::stdout().flush().map_err(failed)?;
            std::io::stdin().read_line(&mut String::new()).map_err(failed)?;
        }
        Ok(())
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

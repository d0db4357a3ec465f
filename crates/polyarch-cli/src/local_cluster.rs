//! A cluster of real node processes on this machine, for the demo and the benchmark.
//!
//! Its nodes are this very executable, started with `serve`; they end when the cluster is dropped.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use polyarch_client::{Client, NodeAddress, Profile, StatusView};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::failure::Failure;
use crate::waiting::wait_until_equal;

/// How long one node may take to start.
const START_MAX: Duration = Duration::from_secs(60);

/// Running node processes with their files in one directory.
#[derive(Debug)]
pub(crate) struct LocalCluster {
    directory: PathBuf,
    nodes: Vec<LocalNode>,
}

/// One node process.
#[derive(Debug)]
pub(crate) struct LocalNode {
    pub(crate) server_id: u32,
    pub(crate) address: NodeAddress,
    child: Child,
}

impl LocalCluster {
    /// Prepares and starts `nodes` nodes in an empty directory. `settings` is appended to each
    /// node's configuration.
    pub(crate) async fn start(directory: &Path, nodes: u32, settings: &str) -> Result<Self, Failure> {
        let base_port = free_ports(nodes)?;
        let (count, port) = (nodes.to_string(), base_port.to_string());
        run(&["certs", "dev", "--nodes", &count, "--base-port", &port, "--dir"], directory).await?;
        let mut cluster = Self { directory: directory.to_owned(), nodes: Vec::new() };
        for server_id in 1..=nodes {
            let config = cluster.config(server_id);
            append(&config, settings)?;
            run(&[if server_id == 1 { "init" } else { "join" }, "--config"], &config).await?;
            let address = format!("{}:{}", Ipv4Addr::LOCALHOST, base_port + server_id as u16 - 1);
            let address = address.parse().map_err(Failure::refused)?;
            cluster.nodes.push(LocalNode { server_id, address, child: serve(&config, &cluster.log(server_id)).await? });
        }
        Ok(cluster)
    }

    /// The nodes, the first of which has server id 1.
    pub(crate) fn nodes(&self) -> &[LocalNode] {
        &self.nodes
    }

    /// Where the files are.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The profile of the client that may do anything.
    pub(crate) fn profile_path(&self) -> PathBuf {
        self.directory.join("client.toml")
    }

    /// A client that prefers the first node.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        Ok(Client::builder(Profile::load(self.profile_path())?).prefer(0).connect()?)
    }

    /// Waits until these nodes have applied the same, and returns how each then is.
    pub(crate) async fn wait_until_equal(
        &self,
        client: &Client,
        server_ids: &[u32],
        within: Duration,
    ) -> Result<Vec<StatusView>, Failure> {
        let nodes = self.nodes.iter().filter(|node| server_ids.contains(&node.server_id));
        let clients: Vec<Client> = nodes.map(|node| client.only(&node.address)).collect();
        let statuses = async || {
            let mut statuses = Vec::with_capacity(clients.len());
            for client in &clients {
                statuses.push(client.status().await?);
            }
            Ok(statuses)
        };
        wait_until_equal(within, statuses).await
    }

    /// Ends the nodes in order.
    pub(crate) async fn stop(mut self) {
        for node in &mut self.nodes {
            if let Some(pid) = node.child.id() {
                // The command is part of every Unix system; without it the drop below ends the node.
                let _ = Command::new("kill").args(["-TERM", &pid.to_string()]).status().await;
            }
        }
        for node in &mut self.nodes {
            let _ = timeout(Duration::from_secs(10), node.child.wait()).await;
        }
    }

    /// Lets the nodes run on after this process.
    pub(crate) fn leave_running(self) {
        for node in self.nodes {
            std::mem::forget(node.child);
        }
    }

    /// The configuration of a node.
    pub(crate) fn config(&self, server_id: u32) -> PathBuf {
        self.directory.join(format!("node-{server_id}.toml"))
    }

    /// What a node logged.
    pub(crate) fn log(&self, server_id: u32) -> PathBuf {
        self.directory.join(format!("node-{server_id}.log"))
    }
}

impl LocalNode {
    /// The process's id.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }
}

/// Starts a node and waits until it listens.
async fn serve(config: &Path, log: &Path) -> Result<Child, Failure> {
    let log_file = std::fs::File::create(log).map_err(|error| Failure::file(log, &error))?;
    let mut child = command()?
        .args(["serve", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log_file)
        // A signal to this process's group, as Ctrl-C sends it, is not for the nodes: they are stopped in order.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| Failure::system("start a node", &error))?;
    let stdout = child.stdout.take().map(BufReader::new);
    let Some(mut stdout) = stdout else { return Ok(child) };
    let mut line = String::new();
    match timeout(START_MAX, stdout.read_line(&mut line)).await {
        Ok(Ok(read)) if read > 0 => Ok(child),
        _ => Err(Failure::refused(format_args!("a node did not start; see {}", log.display()))),
    }
}

/// Runs one of this executable's commands to its end.
async fn run(arguments: &[&str], last: &Path) -> Result<(), Failure> {
    let output = command()?
        .args(arguments)
        .arg(last)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| Failure::system("start a command", &error))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(Failure::refused(format_args!("`polyarch {}` failed: {said}", arguments.join(" "))))
        }
    }
}

fn command() -> Result<Command, Failure> {
    let executable = std::env::current_exe().map_err(|error| Failure::system("find this executable", &error))?;
    let mut command = Command::new(executable);
    command.env_remove("POLYARCH_PROFILE");
    Ok(command)
}

fn append(path: &Path, text: &str) -> Result<(), Failure> {
    let written = std::fs::read_to_string(path).and_then(|old| std::fs::write(path, format!("{old}\n{text}")));
    written.map_err(|error| Failure::file(path, &error))
}

/// The first of so many UDP ports in a row that nobody uses.
fn free_ports(count: u32) -> Result<u16, Failure> {
    for _ in 0..100 {
        let first = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr());
        let first = first.map_err(|error| Failure::system("bind a port", &error))?.port();
        let Some(last) = first.checked_add(count as u16) else { continue };
        let bound: Vec<_> = (first..last).map(|port| UdpSocket::bind((Ipv4Addr::LOCALHOST, port))).collect();
        if bound.iter().all(Result::is_ok) {
            return Ok(first);
        }
    }
    Err(Failure::refused("there are not enough free ports in a row"))
}

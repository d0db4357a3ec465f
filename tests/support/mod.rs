//! A cluster of real `polyarch` processes on this machine, for tests that must see what only processes show.
//!
//! ```text
//! let mut cluster = Cluster::start(3);
//! cluster.polyarch(["keyspace", "create", "notes", "--kind", "mv"]).ok();
//! cluster.node(2).kill();                       // or stop(), and serve() again
//! cluster.wait_until_equal(&[1, 3], Duration::from_secs(5));
//! ```
//!
//! - All waiting is for an event, with a deadline; nothing sleeps for luck.
//! - When a cluster is dropped its processes are killed and its files removed. If the test is failing by then, the end of
//!   each node's log is printed before.
//! - For load and for measuring what clients are told, take a `polyarch::Client` with [`Cluster::profile`]: a process for
//!   each write would be slow.

// Each test file uses a part of it.
#![allow(dead_code)]

pub(crate) mod clock;
pub(crate) mod disk;
pub(crate) mod ledger;
mod ports;
pub(crate) mod writers;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use polyarch_client::{Client, Profile};
use ports::ReservedPorts;
use serde_json::Value;
use tempfile::TempDir;

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_polyarch");

/// How long a node may take to say that it listens. Generous: a loaded machine is no failure.
pub(crate) const START_MAX: Duration = Duration::from_secs(60);
/// How long a node may take to stop in order.
pub(crate) const STOP_MAX: Duration = Duration::from_secs(30);
/// How long a new cluster may take to be equal.
pub(crate) const EQUAL_MAX: Duration = Duration::from_secs(30);

/// Between two looks at something that is waited for.
const POLL: Duration = Duration::from_millis(20);
/// Lines of each node's log that a failing test prints.
const LOG_LINES_SHOWN: usize = 40;

/// A cluster on loopback with its files in one temporary directory, laid out by `polyarch certs dev`.
pub(crate) struct Cluster {
    nodes: Vec<ClusterNode>,
    directory: TempDir,
    ports: ReservedPorts,
}

/// A node of a [`Cluster`]: its files, and its process while it runs.
pub(crate) struct ClusterNode {
    server_id: u32,
    address: SocketAddr,
    directory: PathBuf,
    process: Option<Child>,
    /// What it runs.
    binary: PathBuf,
    environment: Vec<(String, String)>,
    /// A program with arguments that becomes the binary; for a network of the node's own, or to look at its system calls.
    wrapper: Vec<String>,
}

impl Cluster {
    /// A cluster of `nodes` nodes that serve, know each other and are equal.
    pub(crate) fn start(nodes: u32) -> Self {
        Self::start_with(nodes, "")
    }

    /// The same, with `settings` (TOML, sections only) at the end of each node's configuration.
    pub(crate) fn start_with(nodes: u32, settings: &str) -> Self {
        Self::start_of(Path::new(BINARY), nodes, settings)
    }

    /// The same, laid out and run by another binary than the one under test.
    pub(crate) fn start_of(binary: &Path, nodes: u32, settings: &str) -> Self {
        let mut cluster = Self::prepare_of(binary, nodes);
        let begin = |node: &mut ClusterNode| {
            node.configure(settings);
            node.found();
            node.serve();
        };
        let (founder, others) = cluster.nodes.split_first_mut().expect("a cluster has a node");
        begin(founder);
        // As when a whole cluster is set up by a script: all join at once.
        std::thread::scope(|scope| others.iter_mut().for_each(|node| _ = scope.spawn(move || begin(node))));
        cluster.wait_until_linked(EQUAL_MAX);
        cluster
    }

    /// Certificates, configurations and profile of a cluster; nothing is founded, and nothing runs.
    pub(crate) fn prepare(nodes: u32) -> Self {
        Self::prepare_of(Path::new(BINARY), nodes)
    }

    fn prepare_of(binary: &Path, nodes: u32) -> Self {
        let directory = TempDir::with_prefix("polyarch-test-").expect("a temporary directory can be made");
        let ports = ReservedPorts::reserve(nodes);
        let (count, base_port) = (nodes.to_string(), ports.base().to_string());
        let mut command = command_of(binary);
        command.args(["certs", "dev", "--nodes", &count, "--base-port", &base_port, "--dir"]).arg(directory.path());
        finish(command, b"").ok();
        let node = |server_id| ClusterNode {
            server_id,
            address: ports.address(server_id),
            directory: directory.path().to_owned(),
            process: None,
            binary: binary.to_owned(),
            environment: Vec::new(),
            wrapper: Vec::new(),
        };
        Self { nodes: (1..=nodes).map(node).collect(), directory, ports }
    }

    /// Where certificates, configurations and data are.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The profile of the client that may do anything; it names all nodes.
    pub(crate) fn profile(&self) -> PathBuf {
        self.directory.path().join("client.toml")
    }

    /// A client that talks to this node alone. To be called on a tokio runtime.
    pub(crate) fn client_of(&self, server_id: u32) -> Client {
        let profile = Profile::load(self.profile()).expect("`certs dev` wrote it");
        let address = self.address(server_id).parse().expect("it is an address");
        Client::connect(profile).expect("a client needs no node yet").only(&address)
    }

    /// All server ids, which are 1 and up.
    pub(crate) fn server_ids(&self) -> Vec<u32> {
        self.nodes.iter().map(|node| node.server_id).collect()
    }

    /// A node.
    pub(crate) fn node(&mut self, server_id: u32) -> &mut ClusterNode {
        &mut self.nodes[server_id as usize - 1]
    }

    /// `HOST:PORT` of a node.
    pub(crate) fn address(&self, server_id: u32) -> String {
        self.nodes[server_id as usize - 1].address.to_string()
    }

    /// Leaves its files where they are when it is dropped.
    pub(crate) fn keep_files(&mut self) {
        self.directory.disable_cleanup(true);
    }

    /// A UDP address of this cluster at which nobody listens.
    pub(crate) fn unused_address(&self) -> String {
        self.ports.address(self.nodes.len() as u32 + 1).to_string()
    }

    /// Runs a command of the binary to its end, with the cluster's profile.
    pub(crate) fn polyarch<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Finished {
        self.polyarch_with_input(arguments, b"")
    }

    /// The same, with bytes on standard input.
    pub(crate) fn polyarch_with_input<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
        input: &[u8],
    ) -> Finished {
        let mut command = command();
        command.env("POLYARCH_PROFILE", self.profile()).args(arguments);
        finish(command, input)
    }

    /// What `status --json` says of a node; `None` when it does not answer.
    pub(crate) fn status(&self, server_id: u32) -> Option<Value> {
        let finished = self.polyarch(["status", "--json", "--timeout", "2s", "--node", &self.address(server_id)]);
        (finished.code == Some(0)).then(|| finished.json())
    }

    /// Waits until these nodes have the same applied-set, and returns how each is then. That their digests are equal as
    /// well is a law, and is asserted.
    pub(crate) fn wait_until_equal(&self, server_ids: &[u32], within: Duration) -> Vec<Value> {
        let mut last = Vec::new();
        let equal = poll(within, || {
            last = server_ids.iter().map(|server_id| self.status(*server_id)).collect();
            let statuses: Vec<Value> = last.iter().flatten().cloned().collect();
            let is_equal = statuses.windows(2).all(|pair| pair[0]["applied"] == pair[1]["applied"]);
            // A node does not know its digest while more is staged than it says is applied.
            let is_known = statuses.iter().all(|status| status["digest"] != "");
            (statuses.len() == server_ids.len() && is_equal && is_known).then_some(statuses)
        });
        let Some(equal) = equal else {
            panic!("nodes {server_ids:?} are not equal within {within:?}: {last:#?}");
        };
        for pair in equal.windows(2) {
            assert_eq!(pair[0]["digest"], pair[1]["digest"], "equal applied-sets imply equal digests: {equal:#?}");
        }
        equal
    }

    /// Waits until every node is linked to every other, takes writes, and all are equal.
    pub(crate) fn wait_until_linked(&self, within: Duration) {
        self.wait_for_links(within);
        self.wait_until_equal(&self.server_ids(), within);
    }

    /// Waits until every node is linked to every other and takes writes.
    pub(crate) fn wait_for_links(&self, within: Duration) {
        let others = self.nodes.len() - 1;
        let is_ready = |status: &Value| {
            let peers = status["peers"].as_array().expect("peers is an array");
            let linked = peers.iter().filter(|peer| peer["linked"] == true).count();
            status["writes_refused"].is_null() && linked == others
        };
        eventually("all nodes to be linked", within, || {
            self.server_ids().into_iter().all(|id| self.status(id).as_ref().is_some_and(is_ready)).then_some(())
        });
    }

    /// Takes the links between a node and all others down, at both ends: it is alone with its clients.
    pub(crate) fn isolate(&self, server_id: u32) {
        self.on_links_of(server_id, &["cut"]);
    }

    /// Lets the links of a node come up again.
    pub(crate) fn heal(&self, server_id: u32) {
        // The first end of a link that is healed would wait for the other.
        self.on_links_of(server_id, &["heal", "--no-wait"]);
    }

    /// Stops all nodes that run, each in order, all at once.
    pub(crate) fn stop(&mut self) {
        let mut running: Vec<_> = self.nodes.iter_mut().filter_map(|n| n.is_running().then_some(n)).collect();
        running.iter().for_each(|node| node.signal("TERM"));
        running.iter_mut().for_each(|node| node.stopped());
    }

    /// Takes the link between two nodes down, at both ends.
    pub(crate) fn cut(&self, one: u32, other: u32) {
        self.on_end(one, other, &["cut"]);
        self.on_end(other, one, &["cut"]);
    }

    /// Lets the link between two nodes come up again.
    pub(crate) fn mend(&self, one: u32, other: u32) {
        // The first end that is healed would wait for the other.
        self.on_end(one, other, &["heal", "--no-wait"]);
        self.on_end(other, one, &["heal", "--no-wait"]);
    }

    /// `polyarch link` at one end.
    pub(crate) fn on_end(&self, server_id: u32, peer: u32, verb: &[&str]) {
        let (peer, node) = (peer.to_string(), self.address(server_id));
        self.polyarch([&["link"], verb, &[peer.as_str(), "--node", node.as_str()]].concat()).ok();
    }

    /// Checks the stopped nodes' data with `verify`: each is sound, all hold the same history of every origin, and a log
    /// that goes back to the beginning has each write set once.
    pub(crate) fn verify_equal_histories(&mut self) {
        let verify = |node: &ClusterNode| {
            let mut command = command();
            command.args(["verify", "--json"]).arg(node.data_dir());
            finish(command, b"").ok().json()
        };
        let reports: Vec<Value> = self.nodes.iter().map(verify).collect();
        for pair in reports.windows(2) {
            assert_eq!(pair[0]["chain_heads"], pair[1]["chain_heads"], "chains differ: {reports:#?}");
            assert_eq!(pair[0]["digest"], pair[1]["digest"], "digests differ: {reports:#?}");
        }
        for report in reports.iter().filter(|report| report["from_the_beginning"] == true) {
            assert_eq!(report["write_sets"].as_u64(), Some(write_sets(&report["applied"])), "{report:#?}");
        }
    }

    fn on_links_of(&self, server_id: u32, verb: &[&str]) {
        for other in self.server_ids().into_iter().filter(|other| *other != server_id) {
            self.on_end(server_id, other, verb);
            self.on_end(other, server_id, verb);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.nodes.iter_mut().for_each(ClusterNode::kill);
        if std::thread::panicking() {
            self.nodes.iter().for_each(ClusterNode::print_log);
        }
    }
}

impl ClusterNode {
    /// Its configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.directory.join(format!("node-{}.toml", self.server_id))
    }

    /// Its data directory.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory.join(format!("data/node-{}", self.server_id))
    }

    /// What it logged, over all of its lives.
    pub(crate) fn log(&self) -> PathBuf {
        self.directory.join(format!("node-{}.log", self.server_id))
    }

    /// The process's id, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Whether its process runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.try_wait().is_ok_and(|status| status.is_none()))
    }

    /// Adds settings (TOML, sections only) to its configuration; they count from its next start.
    pub(crate) fn configure(&self, settings: &str) {
        let mut file = File::options().append(true).open(self.config()).expect("`certs dev` wrote the configuration");
        writeln!(file, "\n{settings}").expect("the configuration can be written");
    }

    /// What it runs from its next start on.
    pub(crate) fn set_binary(&mut self, binary: &Path) {
        binary.clone_into(&mut self.binary);
    }

    /// Sets an environment variable for its processes from the next start on.
    pub(crate) fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Makes it listen elsewhere, and says where it and the others are found; from its next start on.
    pub(crate) fn place(&mut self, listen: SocketAddr, advertise: SocketAddr, peers: &[SocketAddr]) {
        let text = fs::read_to_string(self.config()).expect("`certs dev` wrote the configuration");
        let stays = |line: &&str| !["listen =", "advertise =", "peers ="].iter().any(|key| line.starts_with(key));
        let (before, sections) = text.split_once("\n[").expect("`certs dev` writes sections");
        let before: Vec<&str> = before.lines().filter(stays).collect();
        let peers: Vec<String> = peers.iter().map(SocketAddr::to_string).collect();
        let placed = format!("listen = \"{listen}\"\nadvertise = [\"{advertise}\"]\npeers = {peers:?}");
        let text = format!("{}\n{placed}\n\n[{sections}", before.join("\n"));
        fs::write(self.config(), text).expect("the configuration can be written");
        self.address = listen;
    }

    /// Runs its next processes by way of a program that becomes the binary; empty: as it is.
    pub(crate) fn run_under(&mut self, wrapper: Vec<String>) {
        self.wrapper = wrapper;
    }

    /// Makes its data directory: node 1 founds the cluster, and the others join it.
    pub(crate) fn found(&self) {
        let verb = if self.server_id == 1 { "init" } else { "join" };
        let mut command = self.command();
        command.args([verb, "--config"]).arg(self.config());
        finish(command, b"").ok();
    }

    /// Starts its process and waits until it says that it listens.
    pub(crate) fn serve(&mut self) {
        if let Err(said) = self.start() {
            panic!("node {} does not serve, but said {said:?}", self.server_id);
        }
    }

    /// The same; says whether it listens, and leaves no process behind if not.
    pub(crate) fn try_serve(&mut self) -> bool {
        let serves = self.start().is_ok();
        if !serves {
            self.kill();
        }
        serves
    }

    fn command(&self) -> Command {
        let Some((program, arguments)) = self.wrapper.split_first() else { return command_of(&self.binary) };
        let mut command = command_of(Path::new(program));
        command.args(arguments).arg(&self.binary);
        command
    }

    fn start(&mut self) -> Result<(), Result<String, mpsc::RecvTimeoutError>> {
        assert!(!self.is_running(), "node {} runs already", self.server_id);
        let log = File::options().create(true).append(true).open(self.log()).expect("a log file can be made");
        let mut command = self.command();
        command.args(["serve", "--config"]).arg(self.config()).envs(self.environment.iter().cloned());
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn();
        let mut process = spawned.expect("the binary can be started");
        let said = first_line(process.stdout.take().expect("stdout is piped"));
        self.process = Some(process);
        let expected = format!("listening on {}\n", self.address);
        match said.recv_timeout(START_MAX) {
            Ok(line) if line == expected => Ok(()),
            said => Err(said),
        }
    }

    /// Ends its process as a crash would: with SIGKILL, at once.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Stops its process in order, with SIGTERM.
    pub(crate) fn stop(&mut self) {
        self.signal("TERM");
        self.stopped();
    }

    fn stopped(&mut self) {
        let status = self.wait(STOP_MAX);
        assert_eq!(status.code(), Some(0), "node {} stops in order", self.server_id);
    }

    /// Sends its process a signal, by its name without SIG: `STOP` and `CONT` make it stand still and go on.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.pid().expect("the node runs").to_string();
        let sent = Command::new("kill").args([&format!("-{signal}"), &pid]).status().expect("every Unix has kill");
        assert!(sent.success(), "kill -{signal} {pid}");
    }

    /// Waits until its process has ended.
    pub(crate) fn wait(&mut self, within: Duration) -> ExitStatus {
        let mut process = self.process.take().expect("the node runs");
        let ended = poll(within, || process.try_wait().expect("a child can be waited for"));
        ended.unwrap_or_else(|| {
            self.process = Some(process);
            panic!("node {} has not ended within {within:?}", self.server_id)
        })
    }

    fn print_log(&self) {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        eprintln!("--- end of the log of node {} ---\n{}", self.server_id, shown.join("\n"));
    }
}

/// A command that has run to its end.
#[derive(Debug)]
pub(crate) struct Finished {
    /// For messages.
    pub(crate) command: String,
    /// The exit status; `None` when a signal ended it.
    pub(crate) code: Option<i32>,
    /// What it printed.
    pub(crate) stdout: Vec<u8>,
    /// What it complained about.
    pub(crate) stderr: String,
}

impl Finished {
    /// It did what it was told.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        self.exits(0)
    }

    /// It ended with this exit status.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}{}", self.command, self.text(), self.stderr);
        self
    }

    /// It complained in these words, among others.
    #[track_caller]
    pub(crate) fn says(self, words: &str) -> Self {
        assert!(self.stderr.contains(words), "{}: `{words}` is not in:\n{}", self.command, self.stderr);
        self
    }

    /// It complained about nothing.
    #[track_caller]
    pub(crate) fn keeps_silent(self) -> Self {
        assert_eq!(self.stderr, "", "{}", self.command);
        self
    }

    /// What it printed, as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The one object that it printed.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        match self.json_lines().as_slice() {
            [only] => only.clone(),
            lines => panic!("{} printed {} objects instead of one", self.command, lines.len()),
        }
    }

    /// The objects that it printed, one on each line.
    #[track_caller]
    pub(crate) fn json_lines(&self) -> Vec<Value> {
        let parse = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{} printed `{line}`: {error}", self.command))
        };
        self.text().lines().map(parse).collect()
    }
}

/// Looks again and again until there is something, and fails when there is nothing in time.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, within: Duration, look: impl FnMut() -> Option<T>) -> T {
    poll(within, look).unwrap_or_else(|| panic!("waited {within:?} for {what}"))
}

/// The bytes of all files in a directory, on the disk.
pub(crate) fn bytes_of(directory: &Path) -> u64 {
    // A segment may go while it is looked at.
    let entries = fs::read_dir(directory).expect("the directory can be read").flatten();
    let of = |entry: fs::DirEntry| match entry.file_type().expect("an entry has a type").is_dir() {
        true => bytes_of(&entry.path()),
        false => entry.metadata().map_or(0, |metadata| metadata.len()),
    };
    entries.map(of).sum()
}

/// How many write sets are in an applied-set: the last GTID of each origin, as `--json` prints them.
fn write_sets(applied: &Value) -> u64 {
    let gtids = applied.as_array().expect("it is a list").iter().map(|gtid| gtid.as_str().expect("it is a GTID"));
    gtids.map(|gtid| gtid.rsplit(':').next().and_then(|seq| seq.parse::<u64>().ok()).expect("it ends in a seq")).sum()
}

fn poll<T>(within: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

/// The binary, without anything of the environment that would change what it does.
pub(crate) fn command() -> Command {
    command_of(Path::new(BINARY))
}

fn command_of(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    command.env_remove("POLYARCH_PROFILE").env_remove("RUST_LOG").env_remove("NO_COLOR");
    command
}

/// Runs a command to its end, with bytes on standard input.
pub(crate) fn finish(mut command: Command, input: &[u8]) -> Finished {
    let shown = format!("{command:?}");
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.expect("the binary can be started");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let output = std::thread::scope(|scope| {
        // On a thread of its own, since the command may print before it has read all. It need not read at all.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().expect("a child can be waited for")
    });
    Finished {
        command: shown,
        code: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Reads the first line on a thread of its own, so that one can wait for it with a deadline, and then all others, so
/// that the process is never held up.
fn first_line(stdout: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stdout);
        let mut line = String::new();
        // Without a line the sender is dropped, which tells as much.
        if lines.read_line(&mut line).is_ok_and(|read| read > 0) {
            let _ = sender.send(line);
        }
        let _ = std::io::copy(&mut lines, &mut std::io::sink());
    });
    receiver
}

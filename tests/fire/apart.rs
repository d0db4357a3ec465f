//! A process apart: with networks, mounts and processes of its own, which go with it however it ends. Needs root.
//!
//! ```text
//! relay and clients ── bridge 10.77.0.0/16 ─┬─ veth ── node 1, 10.77.0.1, a namespace of its own
//!   10.77.1.N stands for node N             ├─ veth ── node 2
//!   10.77.0.254                             └─ ...
//! ```

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// Set in the process apart.
const INSIDE: &str = "POLYARCH_FIRE_APART";
const PORT: u16 = 7_400;

/// Whether this process is one apart.
pub(crate) fn is_apart() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs a test once more in a process apart. Its files are removed if it passes.
pub(crate) fn run_apart(test: &str) {
    let mut files = TempDir::with_prefix("polyarch-fire-").expect("a temporary directory can be made");
    let executable = std::env::current_exe().expect("a process knows its program");
    let mut again = Command::new("unshare");
    again.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]).arg(executable);
    again.args(["--exact", test, "--nocapture", "--ignored"]).env(INSIDE, "1").env("TMPDIR", files.path());
    // So that an interrupt at the terminal comes to the one that ends the others.
    again.process_group(0);
    let status = again.status().expect("every Linux has unshare");
    if !status.success() {
        files.disable_cleanup(true);
        panic!("{status}; what the nodes left is in {}", files.path().display());
    }
}

/// Networks for so many nodes. To be made once in a process apart.
pub(crate) fn make_networks(nodes: u32) {
    for directory in ["/run", "/dev/shm"] {
        run("mount", &["-t", "tmpfs", "tmpfs", directory]);
    }
    run("ip", &["link", "set", "lo", "up"]);
    run("ip", &["link", "add", "fire", "type", "bridge"]);
    run("ip", &["link", "set", "fire", "up"]);
    run("ip", &["address", "add", "10.77.0.254/16", "dev", "fire"]);
    for id in 1..=nodes {
        let (name, outer) = (network(id), format!("veth-{id}"));
        run("ip", &["address", "add", &format!("{}/16", door_of(id).ip()), "dev", "fire"]);
        run("ip", &["netns", "add", &name]);
        run("ip", &["link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", &name]);
        run("ip", &["link", "set", &outer, "master", "fire", "up"]);
        run("ip", &["-n", &name, "address", "add", &format!("{}/16", address_of(id).ip()), "dev", "eth0"]);
        run("ip", &["-n", &name, "link", "set", "eth0", "up"]);
        run("ip", &["-n", &name, "link", "set", "lo", "up"]);
        if has_filter() {
            filter(id, "add table ip fire");
            filter(id, "add chain ip fire input { type filter hook input priority 0; }");
        }
    }
}

/// Where a node listens.
pub(crate) fn address_of(id: u32) -> SocketAddr {
    at(0, id)
}

/// Where the relay stands for a node.
pub(crate) fn door_of(id: u32) -> SocketAddr {
    at(1, id)
}

/// What becomes a program within the network of a node.
pub(crate) fn within(id: u32) -> Vec<String> {
    ["nsenter", &format!("--net=/run/netns/{}", network(id)), "--"].map(str::to_owned).to_vec()
}

/// Whether packets can be filtered: nftables is there.
pub(crate) fn has_filter() -> bool {
    has("nft")
}

/// Whether a program is there.
pub(crate) fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Lets node `to` lose what comes to it from node `from`: so many datagrams of a thousand.
pub(crate) fn lose(from: u32, to: u32, of_thousand: u64) {
    let source = door_of(from).ip();
    let drawn = match of_thousand {
        1_000.. => String::new(),
        some => format!("numgen random mod 1000 < {some} "),
    };
    filter(to, &format!("add rule ip fire input ip saddr {source} {drawn}drop"));
}

/// Lets all come to a node again.
pub(crate) fn lose_nothing(id: u32) {
    filter(id, "flush chain ip fire input");
}

fn filter(id: u32, rule: &str) {
    let mut command = within(id);
    command.extend(["nft".to_owned(), rule.to_owned()]);
    let arguments: Vec<&str> = command[1..].iter().map(String::as_str).collect();
    run(&command[0], &arguments);
}

fn network(id: u32) -> String {
    format!("fire-{id}")
}

fn at(third: u8, id: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(10, 77, third, id as u8), PORT))
}

/// Where libfaketime is, if it is.
pub(crate) fn faketime() -> Option<String> {
    let given = std::env::var("POLYARCH_FAKETIME").ok();
    let usual = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
    given.or_else(|| Path::new(usual).exists().then(|| usual.to_owned()))
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Args;
use polyarch_transport::certs::{create_ca, issue};
use polyarch_transport::{ClientName, ClusterName, Identity};

use super::Making;
use crate::failure::Failure;
use crate::terminal::{Output, shell_word};

/// Clients that a cluster on one machine knows: one that may do anything, one that reads and writes.
const CLIENTS: [&str; 2] = ["admin", "app"];

/// Write all files of a cluster on this machine, and print the commands that start it.
#[derive(Debug, Args)]
#[command(after_help = "\
Writes into one directory: the authority, the certificates of nodes 1 to N and of the clients
`admin` and `app`, a configuration node-<ID>.toml for each node, and the profiles client.toml
(admin) and client-app.toml. The nodes listen on 127.0.0.1 and keep their data under data/ in the
same directory.

Example:
  polyarch certs dev --dir /tmp/cluster")]
pub(crate) struct Dev {
    /// The cluster's name
    #[arg(long, value_name = "NAME", default_value = "dev")]
    cluster: ClusterName,
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    nodes: u32,
    /// The UDP port of node 1; the others follow
    #[arg(long, value_name = "PORT", default_value_t = 7401, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    base_port: u16,
    #[command(flatten)]
    making: Making,
}

impl Dev {
    pub(super) fn run(&self, program: &str) -> Result<(), Failure> {
        self.check_free()?;
        self.certificates()?;
        for (path, text) in self.files() {
            fs::write(&path, text).map_err(|error| Failure::file(&path, &error))?;
        }
        let mut output = Output::stdout();
        output.bytes(self.commands(program).as_bytes())?;
        output.flush()
    }

    fn certificates(&self) -> Result<(), Failure> {
        let (directory, cluster, options) = (&self.making.dir, &self.cluster, self.making.options());
        create_ca(directory, cluster, &options)?;
        let nodes = (1..=self.nodes).map(|server_id| Identity::Node { cluster: cluster.clone(), server_id });
        let clients = CLIENTS.map(|name| {
            let name: ClientName = name.parse().expect("both names are well formed");
            Identity::Client { cluster: cluster.clone(), name }
        });
        for identity in nodes.chain(clients) {
            issue(directory, &identity, &options)?;
        }
        Ok(())
    }

    /// Nothing is written when something would be replaced that nobody asked to replace.
    fn check_free(&self) -> Result<(), Failure> {
        let taken = self.files().into_iter().map(|(path, _)| path).find(|path| path.exists());
        match taken {
            Some(path) if !self.making.overwrite => {
                let message = format!("{} exists already and was left as it is", path.display());
                Err(Failure::usage(message).hint("--overwrite replaces it, or choose another directory with --dir"))
            }
            _ => Ok(()),
        }
    }

    /// Configurations and profiles with their paths.
    fn files(&self) -> Vec<(PathBuf, String)> {
        let nodes = (1..=self.nodes).map(|id| (self.path(&format!("node-{id}.toml")), self.node_config(id)));
        let profiles = CLIENTS.map(|name| (self.profile_path(name), self.profile(name)));
        nodes.chain(profiles).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.making.dir.join(name)
    }

    fn profile_path(&self, client: &str) -> PathBuf {
        match client {
            "admin" => self.path("client.toml"),
            other => self.path(&format!("client-{other}.toml")),
        }
    }

    fn address(&self, server_id: u32) -> SocketAddr {
        let offset = u16::try_from(server_id - 1).expect("there are at most 99 nodes");
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.base_port + offset))
    }

    fn node_config(&self, server_id: u32) -> String {
        // The founder's too: `init` asks them, so that a founder whose disk was lost founds no second cluster.
        let peers = self.addresses((1..=self.nodes).filter(|id| *id != server_id));
        format!(
            "# Node {server_id} of a cluster on one machine. Paths are meant from this file's directory.\n\
             data_dir = \"data/node-{server_id}\"\n\
             listen = \"{}\"\n\
             peers = {peers}\n\
             ca = \"ca.pem\"\n\
             cert = \"node-{server_id}.pem\"\n\
             key = \"node-{server_id}.key\"\n\
             \n\
             [roles]\n\
             admin = [\"admin\"]\n\
             write = [\"app\"]\n",
            self.address(server_id),
        )
    }

    fn profile(&self, client: &str) -> String {
        format!(
            "# The client `{client}` of a cluster on one machine. Paths are meant from this file's directory.\n\
             nodes = {}\n\
             ca = \"ca.pem\"\n\
             cert = \"client-{client}.pem\"\n\
             key = \"client-{client}.key\"\n",
            self.addresses(1..=self.nodes),
        )
    }

    fn addresses(&self, server_ids: impl Iterator<Item = u32>) -> String {
        let quoted: Vec<String> = server_ids.map(|id| format!("\"{}\"", self.address(id))).collect();
        format!("[{}]", quoted.join(", "))
    }

    /// What starts the cluster when it is pasted into a shell.
    fn commands(&self, program: &str) -> String {
        let program = shell_word(Path::new(program));
        let mut text = format!("# Wrote {} to {}\n", self.described(), self.making.dir.display());
        for id in 1..=self.nodes {
            let config = shell_word(&self.path(&format!("node-{id}.toml")));
            let log = shell_word(&self.path(&format!("node-{id}.log")));
            let verb = if id == 1 { "init" } else { "join" };
            // Writing to a String does not fail. A join waits until the member that it asks is up.
            let _ = writeln!(text, "{program} {verb} --config {config}");
            let _ = writeln!(text, "{program} serve --config {config} 2>>{log} &");
        }
        let _ = writeln!(text, "export POLYARCH_PROFILE={}", shell_word(&self.path("client.toml")));
        let _ = writeln!(text, "{program} keyspace create notes --kind mv");
        let _ = writeln!(text, "{program} put notes hello world");
        let _ = writeln!(text, "{program} status --all");
        text
    }

    fn described(&self) -> String {
        match self.nodes {
            1 => "a cluster of one node".to_owned(),
            nodes => format!("a cluster of {nodes} nodes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use polyarch_client::Profile;
    use polyarch_node::NodeConfig;
    use polyarch_transport::Credentials;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        dev: Dev,
    }

    fn dev(directory: &Path, more: &[&str]) -> Dev {
        let directory = directory.to_str().unwrap();
        Line::parse_from([&["dev", "--dir", directory], more].concat()).dev
    }

    #[test]
    fn all_files_are_of_use_as_they_are() {
        let directory = tempfile::tempdir().unwrap();
        dev(directory.path(), &["--cluster", "try", "--nodes", "3", "--base-port", "9001"]).run("polyarch").unwrap();
        for server_id in 1..=3_u16 {
            let config = NodeConfig::load(&directory.path().join(format!("node-{server_id}.toml"))).unwrap();
            let credentials = Credentials::load(&config.ca, &config.cert, &config.key).unwrap();
            assert_eq!(credentials.identity().to_string(), format!("polyarch://try/node/{server_id}"));
            assert_eq!(config.listen.port(), 9000 + server_id);
            assert_eq!(config.data_dir, directory.path().join(format!("data/node-{server_id}")));
            assert_eq!(config.roles.write, ["app"]);
            let others = (1..=3).filter(|other| *other != server_id).map(|other| format!("127.0.0.1:{}", 9000 + other));
            assert_eq!(config.peers, others.collect::<Vec<_>>());
        }
        for (file, name) in [("client.toml", "admin"), ("client-app.toml", "app")] {
            let profile = Profile::load(directory.path().join(file)).unwrap();
            let credentials = Credentials::load(&profile.ca, &profile.cert, &profile.key).unwrap();
            assert_eq!(credentials.identity().to_string(), format!("polyarch://try/client/{name}"));
            assert_eq!(profile.nodes.len(), 3);
        }
    }

    #[test]
    fn nothing_is_replaced_unless_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("node-2.toml"), "precious").unwrap();
        dev(directory.path(), &[]).run("polyarch").unwrap_err();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is written either");
        dev(directory.path(), &["--overwrite"]).run("polyarch").unwrap();
        NodeConfig::load(&directory.path().join("node-2.toml")).unwrap();
    }

    #[test]
    fn the_commands_name_the_program_and_the_files() {
        let commands = dev(Path::new("my certs"), &["--nodes", "2"]).commands("target/debug/polyarch");
        assert!(commands.contains("target/debug/polyarch init --config 'my certs/node-1.toml'\n"), "{commands}");
        assert!(commands.contains("target/debug/polyarch join --config 'my certs/node-2.toml'\n"), "{commands}");
        assert!(commands.contains("export POLYARCH_PROFILE='my certs/client.toml'\n"), "{commands}");
    }
}

//! `polyarch init`, `join` and `serve`: a node's life.

use std::future::Future;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use polyarch_node::{Node, NodeConfig, NodeIdentity, StartError};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinHandle, spawn_blocking};
use tracing::{info, warn};

use crate::failure::Failure;
use crate::json::IdentityObject;
use crate::logging::{self, LogFormat};
use crate::signals::StopSignals;
use crate::terminal::{Output, note};

/// Found a cluster, or join one.
#[derive(Debug, Args)]
pub(crate) struct Found {
    /// The node's configuration, TOML
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Run a node.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// The node's configuration, TOML
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How log lines look, on stderr
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug or trace, or directives as in RUST_LOG [default: RUST_LOG, else info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl Found {
    pub(crate) fn init(&self) -> Result<(), Failure> {
        self.run("founded", async |config| {
            let founded = polyarch_node::init(config).await?;
            if !founded.unanswered.is_empty() {
                note(&format!(
                    "of the configured peers nobody answered, so this is a new cluster ({}). If it should have been theirs, \
                     remove {} and run `polyarch join` while one of them runs",
                    founded.unanswered.join("; "),
                    config.data_dir.display()
                ));
            }
            Ok::<_, StartError>(founded.identity)
        })
    }

    pub(crate) fn join(&self) -> Result<(), Failure> {
        self.run("joined", polyarch_node::join)
    }

    fn run<E: Into<Failure>>(
        &self,
        done: &str,
        found: impl AsyncFnOnce(&NodeConfig) -> Result<NodeIdentity, E>,
    ) -> Result<(), Failure> {
        let config = NodeConfig::load(&self.config)?;
        let identity = runtime(1)?.block_on(found(&config)).map_err(Into::into)?;
        let mut output = Output::stdout();
        match self.json {
            true => output.json(&IdentityObject::from(&identity))?,
            false => {
                let NodeIdentity { cluster, cluster_id, server_id, .. } = &identity;
                let directory = config.data_dir.display();
                output.line(format_args!(
                    "{done} cluster {cluster} ({cluster_id}) as server {server_id} in {directory}"
                ))?;
            }
        }
        output.flush()
    }
}

impl Serve {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        logging::start(self.log_format, self.log_level.as_deref())?;
        let config = NodeConfig::load(&self.config)?;
        let runtime = runtime(config.runtime.worker_threads)?;
        let ended = runtime.block_on(serve(config));
        // A start that was broken off goes on in a thread of its own until the process has ended. The log bears that.
        runtime.shutdown_background();
        ended
    }
}

async fn serve(config: NodeConfig) -> Result<(), Failure> {
    let mut stop_signals = StopSignals::listen()?;
    // Opening the data reads the log and may take long.
    let starting: JoinHandle<_> = spawn_blocking(move || Node::start(&config));
    let node = tokio::select! {
        node = starting => node.map_err(|error| Failure::refused(format_args!("the start failed: {error}")))??,
        _ = stop_signals.next() => return Ok(()),
    };
    announce(&node);
    tokio::select! {
        () = node.ended() => {
            node.stop().await;
            Err(Failure::refused("the node's driver has ended by itself; what it acknowledged is in the log")
                .hint("its last log lines say why; start the node again, and report this"))
        }
        signal = stop_signals.next() => {
            info!(signal = signal.name(), "stopping");
            stop_unless_hurried(node.stop(), &mut stop_signals).await
        }
    }
}

/// One line for whoever waits for the node to serve. A node serves also when nobody reads it.
fn announce(node: &Node) {
    let mut stdout = io::stdout().lock();
    let told = writeln!(stdout, "listening on {}", node.address()).and_then(|()| stdout.flush());
    if let Err(error) = told {
        warn!(%error, "cannot write to standard output that the node listens");
    }
}

async fn stop_unless_hurried(stop: impl Future<Output = ()>, stop_signals: &mut StopSignals) -> Result<(), Failure> {
    tokio::select! {
        () = stop => Ok(()),
        signal = stop_signals.next() => {
            Err(Failure::stopped(signal, format_args!("ended at once by a second signal, {}", signal.name())))
        }
    }
}

fn runtime(worker_threads: usize) -> Result<Runtime, Failure> {
    let runtime = Builder::new_multi_thread().worker_threads(worker_threads).enable_all().build();
    runtime.map_err(|error| Failure::system("start threads", &error))
}

//! `polyarch restore`: a backup becomes a node's data directory.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use polyarch_node::{NodeConfig, RestoreSource, Restored, restore};
use tokio::runtime::Builder;

use crate::failure::Failure;
use crate::json::RestoredObject;
use crate::signals::stoppable;
use crate::terminal::{Output, shell_word};

/// Make an empty data directory that of a node again, from a backup
#[derive(Debug, Args)]
#[command(after_help = "\
The data directory that the configuration names must be empty or missing, and becomes that of the
server id in the certificate, whatever node the backup was made of; the backup is only read, and
verified first. A node that is restored while others live is fed all it lacks when it serves, its own
later writes included, so nothing is lost. When all nodes are restored, what was written since the
backups is gone: docs/operations.md says what that means for clients.

A backup knows the authority of its cluster by its fingerprint: one of another cluster of the same name
is refused. So is one from before the authority was replaced, unless --other-ca says that this is so.

A restore that was interrupted is done anew by the same command; until then the directory is refused.

With --json: {\"cluster\", \"cluster_id\", \"server_id\", \"backup\": {as `polyarch backup --json`}}

Example:
  polyarch restore monday --config certs/node-1.toml && polyarch serve --config certs/node-1.toml")]
pub(crate) struct Restore {
    /// The directory of the backup
    backup: PathBuf,
    /// The node's configuration, TOML
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Take the backup though it was made while the cluster had another authority than `ca`
    #[arg(long)]
    other_ca: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Restore {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let config = NodeConfig::load(&self.config)?;
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::system("start", &error))?;
        let progress = progress_bar();
        let restored = runtime.block_on(self.restore(config, &progress));
        progress.finish_and_clear();
        self.print(&restored?)
    }

    /// Restores until it is done or a signal says to stop; then it is waited for, and leaves an order.
    async fn restore(&self, config: NodeConfig, progress: &ProgressBar) -> Result<Restored, Failure> {
        let source = RestoreSource { backup: self.backup.clone(), of_any_authority: self.other_ca };
        let shown = progress.clone();
        let (ended, signal) = stoppable("restore", move |is_stopped| {
            restore(&config, &source, |so_far| {
                shown.set_position(so_far.records);
                !is_stopped.load(Ordering::Relaxed)
            })
        })
        .await?;
        match (ended, signal) {
            (Err(error), Some(signal)) if error.is_stopped() => {
                Err(Failure::stopped(signal, format_args!("the restore is not complete: {}", signal.name()))
                    .hint("the same command does it anew; until then the data directory is refused"))
            }
            (ended, _) => Ok(ended?),
        }
    }

    fn print(&self, restored: &Restored) -> Result<(), Failure> {
        let Restored { identity, manifest } = restored;
        let mut output = Output::stdout();
        if self.json {
            output.json(&RestoredObject::of(&self.backup, restored))?;
        } else {
            output.line(format_args!(
                "restored server {} of cluster {} from a backup of server {} of {}: {} records",
                identity.server_id, identity.cluster, manifest.donor, manifest.time, manifest.records
            ))?;
            output.line(format_args!("now run `polyarch serve --config {}`", shell_word(&self.config)))?;
        }
        output.flush()
    }
}

/// Shown on stderr, and only on a terminal.
fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {human_pos} records  {elapsed}");
    ProgressBar::new_spinner().with_style(style.expect("the template is well formed"))
}

//! `polyarch repair`: a damaged data directory opens again, with all that is whole in it.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use polyarch_node::{NodeConfig, RepairDataError, abandon_salvage, repair, survey};
use polyarch_store::{Problem, RepairError, RepairReport};
use tokio::runtime::Builder;

use crate::commands::left_out::LeftOutFile;
use crate::failure::Failure;
use crate::json::{AbandonedObject, RepairedObject};
use crate::signals::{StopSignal, stoppable};
use crate::terminal::{Output, note, shell_word};

/// Rebuild the damaged data directory of a node that is not running, and keep what only it has
#[derive(Debug, Args)]
#[command(after_help = "\
First the directory is verified; when nothing is wrong nothing is done. Then every whole write set is
taken out of the log, whatever lies between; the records are kept if they are whole, and otherwise set
aside, and the node begins with none; and a new log begins. Nothing is deleted: the old log, and the
old records, stay beside the new ones as log.damaged-N and state.damaged-N.

When the node serves again it gets from the other members what it lacks, and applies what was taken out
of its log as soon as all that it follows on is there: `polyarch status` shows how much waits. So what
only this node had comes back, but for what lay in the damaged places and was nowhere else.

What follows on write sets that are nowhere any more waits for ever, and the node says so after a while.
--abandon FILE writes it, as JSON lines, to a file, for a person to look at, and ends the waiting:
  {\"gtid\", \"hlc\", \"dependencies\", \"changes\": [{\"op\", \"keyspace\", \"key\", \"field\", \"supersedes\", \"value\"}]}

A repair that is interrupted is done anew, or ended, by the same command. With --json:
  {\"problems\": [{\"place\", \"what\"}], \"repaired\", \"resumed\", \"segments\", \"write_sets\", \"damaged_places\",
   \"waiting\", \"state_lost\", \"set_aside\": [..]}
and with --abandon {\"abandoned\": COUNT}

Examples:
  polyarch repair --config certs/node-1.toml && polyarch serve --config certs/node-1.toml
  polyarch repair --config certs/node-1.toml --abandon left-out.jsonl")]
pub(crate) struct Repair {
    /// The node's configuration, TOML
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Repair without verifying first, also where nothing is wrong
    #[arg(long)]
    force: bool,
    /// Do not repair: write what an earlier repair left waiting to this file, which must not exist
    #[arg(long, value_name = "FILE", conflicts_with = "force")]
    abandon: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Repair {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let config = NodeConfig::load(&self.config)?;
        match &self.abandon {
            Some(file) => self.give_up_waiting(&config, file),
            None => self.repair(config),
        }
    }

    fn repair(&self, config: NodeConfig) -> Result<(), Failure> {
        let found = match self.force {
            true => None,
            false => Some(survey(&config)?),
        };
        if found.as_ref().is_some_and(|report| report.is_clean()) {
            return self.print(&RepairedObject::unneeded(), &[]);
        }
        let problems: Vec<_> = found.into_iter().flat_map(|report| report.problems).collect();
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::system("start", &error))?;
        let repaired = runtime.block_on(repaired(config))?;
        self.print(&RepairedObject::of(&problems, &repaired), &self.said(&problems, &repaired))
    }

    fn said(&self, problems: &[Problem], report: &RepairReport) -> Vec<String> {
        const LISTED_MAX: usize = 10;
        let mut said: Vec<String> =
            problems.iter().take(LISTED_MAX).map(|problem| format!("problem  {problem}")).collect();
        if problems.len() > LISTED_MAX {
            said.push(format!("problem  and {} more", problems.len() - LISTED_MAX));
        }
        if report.is_resumed {
            said.push("ended a repair that had been cut short".to_owned());
        } else {
            said.push(format!(
                "log      segments: {}, whole write sets: {}, damaged places: {}",
                report.log.segments, report.log.frames, report.log.damaged_places
            ));
            said.push(match &report.state_lost {
                None => "records  kept".to_owned(),
                Some(why) => format!("records  not kept: {why}"),
            });
            said.push(format!("waiting  {} write sets, which the node applies when it serves", report.waiting));
        }
        said.extend(report.set_aside.iter().map(|path| format!("aside    {}", path.display())));
        said.push(format!("now run `polyarch serve --config {}`", shell_word(&self.config)));
        said
    }

    fn print(&self, object: &RepairedObject<'_>, lines: &[String]) -> Result<(), Failure> {
        let mut output = Output::stdout();
        match self.json {
            true => output.json(object)?,
            false if lines.is_empty() => output.line("nothing is wrong, and nothing was done")?,
            false => lines.iter().try_for_each(|line| output.line(line))?,
        }
        output.flush()
    }

    fn give_up_waiting(&self, config: &NodeConfig, file: &Path) -> Result<(), Failure> {
        let mut left_out = LeftOutFile::create(file)?;
        let given = abandon_salvage(config, &mut left_out);
        match given {
            Ok(Some(count)) if self.json => {
                let mut output = Output::stdout();
                output.json(&AbandonedObject { abandoned: count })?;
                output.flush()
            }
            Ok(Some(count)) => {
                note(&format!("{count} write sets are in {} and wait no longer", file.display()));
                Ok(())
            }
            Ok(None) => {
                left_out.remove();
                Err(Failure::refused("nothing waits: no repair left anything, or all of it is applied"))
            }
            Err(error) => {
                left_out.remove();
                Err(error.into())
            }
        }
    }
}

/// Repairs until it is done or a signal says to stop; then it is waited for, and leaves an order.
async fn repaired(config: NodeConfig) -> Result<RepairReport, Failure> {
    let progress = progress_bar();
    let shown = progress.clone();
    let (ended, signal) = stoppable("repair", move |is_stopped| {
        repair(&config, None, |write_sets| {
            shown.set_position(write_sets);
            !is_stopped.load(Ordering::Relaxed)
        })
    })
    .await?;
    progress.finish_and_clear();
    match (ended, signal) {
        (Err(RepairDataError::Repair(RepairError::Stopped)), Some(signal)) => Err(nothing_changed(signal)),
        (ended, _) => Ok(ended?),
    }
}

/// It was stopped before the first step that changes anything.
pub(super) fn nothing_changed(signal: StopSignal) -> Failure {
    Failure::stopped(signal, format_args!("nothing was changed: {}", signal.name()))
}

/// Shown on stderr, and only on a terminal.
fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {human_pos} write sets  {elapsed}");
    ProgressBar::new_spinner().with_style(style.expect("the template is well formed"))
}

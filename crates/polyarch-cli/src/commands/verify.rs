//! `polyarch verify`: check a data directory that no node has open.

use std::path::PathBuf;

use clap::Args;
use polyarch_store::{VerifyConfig, VerifyReport, verify};

use crate::failure::Failure;
use crate::json::VerifyObject;
use crate::terminal::Output;

/// Check the data directory of a node that is not running, and change nothing
#[derive(Debug, Args)]
#[command(after_help = "\
Reads the log with its checksums, chains and positions, a copy of the state, and compares them. Exit status 3 when
something is wrong. With --json:
  {\"clean\", \"segments\", \"write_sets\", \"log_end\", \"unsynced_bytes\", \"from_the_beginning\",
   \"state_position\", \"state_records\", \"applied\": [GTID..], \"digest\",
   \"chain_heads\": [{\"gtid\", \"hash\"}], \"problems\": [{\"place\", \"what\"}],
   \"problems_unlisted\"}

Example:
  polyarch verify certs/data/node-1")]
pub(crate) struct Verify {
    /// The node's data directory
    dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let report = verify(&self.dir, &VerifyConfig::default())?;
        let mut output = Output::stdout();
        match self.json {
            true => output.json(&VerifyObject::from(&report))?,
            false => print(&report, &mut output)?,
        }
        output.flush()?;
        match report.is_clean() {
            true => Ok(()),
            false => {
                let problems = report.problems.len() as u64 + report.problems_unlisted;
                Err(Failure::refused(format_args!("{} is not well; problems found: {problems}", self.dir.display())))
            }
        }
    }
}

fn print(report: &VerifyReport, output: &mut Output) -> Result<(), Failure> {
    output.line(format_args!(
        "log     {} write sets, {} segment{}, up to {}{}",
        report.write_sets,
        report.segments,
        if report.segments == 1 { "" } else { "s" },
        report.log_end,
        if report.from_the_beginning { "" } else { "; its beginning was removed" },
    ))?;
    if report.unsynced_bytes > 0 {
        output.line(format_args!(
            "        {} bytes behind it were never synced; the next start removes them",
            report.unsynced_bytes
        ))?;
    }
    match report.state_position {
        Some(position) => {
            output.line(format_args!("state   {} records, up to {position} of the log", report.state_records))?;
        }
        None => output.line("state   none; the next start rebuilds it from the log")?,
    }
    if let Some(frontier) = &report.frontier {
        let applied: Vec<String> = frontier.heads.applied().iter().map(|dot| dot.to_string()).collect();
        output.line(format_args!("applied {}", applied.join(", ")))?;
        output.line(format_args!("digest  {:032x}", frontier.digest.total()))?;
    }
    report.problems.iter().try_for_each(|problem| output.line(format_args!("problem {problem}")))?;
    if report.problems_unlisted > 0 {
        output.line(format_args!("        and {} more", report.problems_unlisted))?;
    }
    if report.is_clean() {
        output.line("all is well")?;
    }
    Ok(())
}

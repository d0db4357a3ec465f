//! `polyarch verify`: check a data directory that no node has open, or a backup.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use polyarch_node::{NodeIdentity, StartError, restore_is_unfinished};
use polyarch_protocol::ChainHeads;
use polyarch_store::{
    BackupManifest, BackupReport, BackupSurvey, Problem, VerifyConfig, VerifyReport, verify, verify_backup,
};

use crate::failure::Failure;
use crate::json::{BackupReportObject, VerifyObject};
use crate::terminal::{Output, shell_word};

const IDENTITY: &str = "identity.toml";

/// Check the data directory of a node that is not running, or a backup, and change nothing
#[derive(Debug, Args)]
#[command(after_help = "\
Reads the log with its checksums, chains and positions, a copy of the state, and compares them. The directory need
not be writable. Exit status 0 when all is well, 3 when something is wrong or a node has the directory, 2 when it is
no data directory or cannot be read.

A backup is known by its manifest.toml: its checksum, all records and write sets that it holds, and that
the manifest says the same. One without a manifest was not finished, which is said apart. With --json it is
  {\"clean\", \"backup\": {as `polyarch backup --json`}, \"chain_heads\": [{\"gtid\", \"hash\"}],
   \"problems\": [{\"place\", \"what\"}]}
and a data directory
  {\"clean\", \"segments\", \"write_sets\", \"log_end\", \"unsynced_bytes\", \"from_the_beginning\",
   \"state_position\", \"state_records\", \"applied\": [GTID..], \"digest\",
   \"chain_heads\": [{\"gtid\", \"hash\"}], \"problems\": [{\"place\", \"what\"}],
   \"problems_unlisted\"}

Examples:
  polyarch verify certs/data/node-1
  polyarch verify monday")]
pub(crate) struct Verify {
    /// The node's data directory, or the directory of a backup
    dir: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        match BackupManifest::is_in(&self.dir) {
            true => self.verify_backup(),
            false => self.verify_data(),
        }
    }

    fn verify_backup(&self) -> Result<(), Failure> {
        let report = verify_backup(&self.dir)?;
        let mut output = Output::stdout();
        match self.json {
            true => output.json(&BackupReportObject::of(&self.dir, &report))?,
            false => print_backup(&report, &mut output)?,
        }
        output.flush()?;
        if report.is_unfinished {
            let word = shell_word(&self.dir);
            return Err(Failure::refused(format_args!("{} is a backup that was not finished", self.dir.display()))
                .hint(format_args!("`polyarch backup {word}` goes on with it; to give it up, remove {word}")));
        }
        self.ended(report.problems.len() as u64)
    }

    fn verify_data(&self) -> Result<(), Failure> {
        let mut report = verify(&self.dir, &VerifyConfig::default())?;
        check_identity(&self.dir, &mut report)?;
        let mut output = Output::stdout();
        match self.json {
            true => output.json(&VerifyObject::from(&report))?,
            false => print(&report, &mut output)?,
        }
        output.flush()?;
        self.ended(report.problems.len() as u64 + report.problems_unlisted)
    }

    fn ended(&self, problems: u64) -> Result<(), Failure> {
        match problems {
            0 => Ok(()),
            _ => Err(Failure::refused(format_args!("{} is not well; problems found: {problems}", self.dir.display()))),
        }
    }
}

/// Whether the directory says whose data it holds, where it holds any.
fn check_identity(directory: &Path, report: &mut VerifyReport) -> Result<(), Failure> {
    let path = directory.join(IDENTITY);
    let is_unfinished = restore_is_unfinished(directory).unwrap_or(false);
    let problem = match fs::metadata(&path).and_then(|_| fs::File::open(&path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_unfinished => {
            "it is missing: a restore into this directory did not end. Run `polyarch restore` again".to_owned()
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            "it is missing, and nothing else says whose data this is; restore it from a backup of this directory. Do \
             not run `polyarch init` or `polyarch join` here"
                .to_owned()
        }
        Err(error) => return Err(Failure::file(&path, &error)),
        Ok(_) => match NodeIdentity::read(directory) {
            Ok(_) => return Ok(()),
            Err(StartError::Identity { problem, .. }) => problem,
            Err(error) => error.to_string(),
        },
    };
    report.problems.insert(0, Problem { place: IDENTITY.to_owned(), what: problem });
    Ok(())
}

fn print_backup(report: &BackupReport, output: &mut Output) -> Result<(), Failure> {
    if let Some(manifest) = &report.manifest {
        let BackupManifest { cluster, cluster_id, donor, version, time, .. } = manifest;
        output.line(format_args!("backup  of server {donor} of cluster {cluster} ({cluster_id})"))?;
        output.line(format_args!("        complete at {time}; the server ran polyarch {version}"))?;
    }
    if let Some(BackupSurvey { begin, end, records, write_sets, log_end, bytes, .. }) = &report.survey {
        let gtids =
            |heads: &ChainHeads| heads.applied().iter().map(|dot| dot.to_string()).collect::<Vec<_>>().join(", ");
        output.line(format_args!("holds   {records} records, {write_sets} write sets, {bytes} bytes"))?;
        output.line(format_args!("began   with {}", gtids(&begin.start.heads)))?;
        output.line(format_args!("applied {}", gtids(end)))?;
        if let Some(log_end) = log_end {
            output.line(format_args!("log     of the server, up to {log_end}"))?;
        }
    }
    report.problems.iter().try_for_each(|problem| output.line(format_args!("problem {problem}")))?;
    if report.is_clean() {
        output.line("all is well")?;
    }
    Ok(())
}

fn print(report: &VerifyReport, output: &mut Output) -> Result<(), Failure> {
    output.line(format_args!(
        "log     {} write sets, {} segment{}, up to {}{}",
        report.write_sets,
        report.segments,
        if report.segments == 1 { "" } else { "s" },
        report.log_end,
        match report.from_the_beginning || report.segments == 0 {
            true => "",
            false => "; what came before is not there",
        },
    ))?;
    if report.unsynced_bytes > 0 {
        output.line(format_args!(
            "        {} bytes behind it were never synced, or are damaged; the next start removes them",
            report.unsynced_bytes
        ))?;
    }
    if let Some(number) = report.unborn_segment {
        output.line(format_args!("        segment {number} was begun and never synced; the next start removes it"))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Status;

    #[test]
    fn a_directory_without_an_identity_is_not_well() {
        let dir = tempfile::tempdir().unwrap();
        let mut report = VerifyReport::default();
        check_identity(dir.path(), &mut report).unwrap();
        assert!(report.problems[0].to_string().starts_with("identity.toml: it is missing"), "{report:?}");
        fs::write(dir.path().join("restoring.toml"), "").unwrap();
        report = VerifyReport::default();
        check_identity(dir.path(), &mut report).unwrap();
        assert!(report.problems[0].to_string().contains("`polyarch restore` again"), "{report:?}");
        fs::write(dir.path().join(IDENTITY), "format = 1").unwrap();
        report = VerifyReport::default();
        check_identity(dir.path(), &mut report).unwrap();
        assert!(!report.is_clean());
    }

    #[test]
    fn what_is_no_data_directory_is_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        for dir in [dir.path().to_owned(), dir.path().join("none"), dir.path().join("file")] {
            fs::write(dir.with_file_name("file"), "").unwrap();
            let failure = Verify { dir: dir.clone(), json: false }.run().unwrap_err();
            assert!(matches!(failure, Failure::Said { status: Status::Usage, .. }), "{}: {failure:?}", dir.display());
        }
    }
}

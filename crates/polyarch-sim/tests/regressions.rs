//! What once failed passes now, and what seeded bugs showed they still show.

use std::path::{Path, PathBuf};

use polyarch_sim::Sink;
use polyarch_sim::case::CaseFile;
use polyarch_sim::run::run_case;

fn files() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    let entries = std::fs::read_dir(directory).expect("there are regressions");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("it can be listed").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    paths.sort();
    paths
}

#[test]
fn every_regression_passes() {
    for path in files() {
        let file = CaseFile::read(&path).unwrap_or_else(|error| panic!("{error}"));
        let run = run_case(&file.case, None, Sink::Nowhere);
        assert_eq!(run.violation, None, "{}", path.display());
    }
}

#[test]
fn a_case_is_written_as_it_is_read() {
    for path in files() {
        let file = CaseFile::read(&path).unwrap_or_else(|error| panic!("{error}"));
        let text = std::fs::read_to_string(&path).expect("it was just read");
        assert_eq!(file.to_text(), text, "{}", path.display());
    }
}

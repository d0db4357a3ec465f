//! The table of promises and their tests: a row for each promise, and no test named that is not there.

use std::collections::BTreeSet;

use crate::tree::{RepositoryFile, files};
use crate::{assert_clean, assert_objects};

/// Where the promises are, each with its number.
const PROMISES: &str = "docs/consistency.md";
/// Where the table is.
const TESTS: &str = "docs/testing.md";
/// What stands above it.
const HEADING: &str = "## Promises and their tests";
/// The columns behind the first, with where their tests are.
const LEVELS: [(&str, &[&str]); 7] = [
    ("law", &["crates/polyarch-crdt/"]),
    (
        "crates",
        &[
            "crates/polyarch-protocol/",
            "crates/polyarch-transport/",
            "crates/polyarch-client/",
            "crates/polyarch-node/",
        ],
    ),
    ("script", &["crates/polyarch-sim/tests/", "crates/polyarch-protocol/tests/"]),
    ("simulation", &["crates/polyarch-sim/"]),
    ("storage", &["crates/polyarch-store/"]),
    ("real", &["tests/"]),
    ("fuzz", &["fuzz/"]),
];
/// A cell that names nothing.
const NOTHING: &str = "—";

/// What tests there are, by the path of their file.
struct Tests<'a> {
    sources: Vec<(&'a str, String)>,
}

impl<'a> Tests<'a> {
    fn of(files: &'a [RepositoryFile]) -> Self {
        let sources = files.iter().filter(|file| file.has_extension("rs"));
        Self { sources: sources.map(|file| (file.path.as_str(), file.text())).collect() }
    }

    /// Whether there is a function, an invariant or a script of a name under one of these paths.
    fn has(&self, name: &str, under: &[&str]) -> bool {
        let here = self.sources.iter().filter(|(path, _)| under.iter().any(|place| path.starts_with(place)));
        let (function, file) = (format!("fn {name}("), format!("/{name}.rs"));
        let is_it = |path: &str, text: &str| match name.strip_prefix('"') {
            Some(_) => text.contains(&format!("name: {name}")),
            None => text.contains(&function) || path.ends_with(&file),
        };
        here.into_iter().any(|(path, text)| is_it(path, text))
    }
}

/// The numbers of the promises.
fn promises(text: &str) -> BTreeSet<u32> {
    let in_list = text.split("\n## ").find(|part| part.starts_with("Promises")).unwrap_or_default();
    in_list.lines().filter_map(|line| line.split_once(". **")?.0.parse().ok()).collect()
}

/// The rows of the table, with their lines and their cells.
fn rows(text: &str) -> Vec<(usize, Vec<String>)> {
    let lines = text.lines().enumerate().skip_while(|(_, line)| *line != HEADING).skip(1);
    let rows = lines.take_while(|(_, line)| !line.starts_with("## ")).filter(|(_, line)| line.starts_with("| "));
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    rows.map(|(at, line)| (at + 1, cells(line))).collect()
}

/// The names in a cell: what stands between back-ticks, or in quotes, which stay.
fn names(cell: &str) -> Vec<String> {
    let quoted = cell.split('"').skip(1).step_by(2).map(|name| format!("\"{name}\""));
    cell.split('`').skip(1).step_by(2).map(str::to_owned).chain(quoted).collect()
}

fn check_table(files: &[RepositoryFile]) -> Vec<String> {
    let text = |path: &str| files.iter().find(|file| file.path == path).map(RepositoryFile::text).unwrap_or_default();
    let (tests, rows) = (Tests::of(files), rows(&text(TESTS)));
    let mut violations = Vec::new();
    let mut told = BTreeSet::new();
    for (line, cells) in rows.iter().skip(1) {
        told.extend(cells[0].parse::<u32>());
        if cells.len() != LEVELS.len() + 1 {
            violations.push(format!("{TESTS}:{line}: a row has {} cells", LEVELS.len() + 1));
        }
        for (cell, (level, under)) in cells[1..].iter().zip(LEVELS) {
            let named = names(cell);
            if named.is_empty() && cell != NOTHING {
                violations.push(format!("{TESTS}:{line}: `{cell}` names no test; write {NOTHING}"));
            }
            let missing = named.iter().filter(|name| !tests.has(name, under));
            violations.extend(missing.map(|name| format!("{TESTS}:{line}: there is no {name} at the level `{level}`")));
        }
        if cells[1..].iter().all(|cell| cell == NOTHING) {
            violations.push(format!("{TESTS}:{line}: nothing tests promise {}", cells[0]));
        }
    }
    let promised = promises(&text(PROMISES));
    let untold = promised.symmetric_difference(&told);
    violations.extend(untold.map(|number| format!("{TESTS}: promise {number} is in one of the two documents alone")));
    violations
}

#[test]
fn every_promise_has_its_tests_and_each_of_them_is_there() {
    let files = files();
    let text = files.iter().find(|file| file.path == TESTS).map(RepositoryFile::text).unwrap_or_default();
    assert!(rows(&text).len() > 20, "the table under `{HEADING}` is not found");
    assert_clean(&check_table(&files));
}

/// A tree with one promise, whose law is called `law`.
fn example(law: &str) -> [RepositoryFile; 3] {
    let head =
        "| promise | law | crates | script | simulation | storage | real | fuzz |\n|---|---|---|---|---|---|---|---|";
    let table = format!("{HEADING}\n\n{head}\n| 1 | {law} | — | — | — | — | — | — |\n");
    [
        RepositoryFile::example(PROMISES, "# P\n\n## Promises\n\n1. **All is well.** Yes.\n"),
        RepositoryFile::example(TESTS, &table),
        RepositoryFile::example("crates/polyarch-crdt/tests/laws.rs", "#[test]\nfn all_is_well() {}\n"),
    ]
}

#[test]
fn a_test_that_is_there_is_found() {
    assert_clean(&check_table(&example("`all_is_well`")));
}

#[test]
fn a_test_that_is_not_there_is_seen() {
    assert_objects(&check_table(&example("`all_is_better`")), "all_is_better");
}

#[test]
fn a_promise_without_a_test_or_a_row_is_seen() {
    assert_objects(&check_table(&example(NOTHING)), "promise 1");
    let [promises, tests, laws] = example("`all_is_well`");
    let two = promises.text() + "2. **And more.**\n";
    assert_objects(&check_table(&[RepositoryFile::example(PROMISES, &two), tests, laws]), "promise 2");
}

#[test]
fn a_test_of_another_level_is_seen() {
    let [promises, tests, _] = example("`all_is_well`");
    let elsewhere = RepositoryFile::example("crates/polyarch-store/tests/laws.rs", "fn all_is_well() {}\n");
    assert_objects(&check_table(&[promises, tests, elsewhere]), "all_is_well");
}

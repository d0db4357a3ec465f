//! Rust source as the rules look at it: lines without comments, and without what only tests and simulations compile.
//!
//! This is no parser. It relies on rustfmt, which `.ci/run` insists on: an item ends where a line closes it at the
//! indentation at which it began.

use std::collections::BTreeSet;

use crate::tree::{RepositoryFile, files};
use crate::{assert_clean, assert_objects};

/// A line of code.
pub(crate) struct CodeLine {
    /// `path:number`, for messages.
    pub(crate) place: String,
    /// The line without its comment.
    pub(crate) code: String,
    /// Whether a comment stands on the line or directly above it.
    pub(crate) is_commented: bool,
}

/// What of these files ends up in a shipped binary: no tests, nothing behind features that are never shipped.
pub(crate) fn shipped_lines<'a>(files: impl IntoIterator<Item = &'a RepositoryFile>) -> Vec<CodeLine> {
    let sources: Vec<_> = files.into_iter().filter(|file| file.has_extension("rs")).collect();
    let mut lines = Vec::new();
    let mut left_out = BTreeSet::new();
    for file in &sources {
        let (shipped, modules) = split_shipped(&file.path, &file.text());
        lines.push((&file.path, shipped));
        left_out.extend(modules);
    }
    let is_left_out = |path: &str| {
        left_out
            .iter()
            .any(|module| path.strip_prefix(module.as_str()).is_some_and(|rest| rest == ".rs" || rest.starts_with('/')))
    };
    lines.into_iter().filter(|(path, _)| !is_left_out(path)).flat_map(|(_, lines)| lines).collect()
}

/// The shipped lines of one file, and the modules (paths without `.rs`) that it declares for tests only.
fn split_shipped(path: &str, text: &str) -> (Vec<CodeLine>, Vec<String>) {
    let mut shipped = Vec::new();
    let mut modules = Vec::new();
    let mut lines = text.lines().enumerate();
    let mut comment_above = false;
    while let Some((index, line)) = lines.next() {
        if is_unshipped_attribute(line.trim()) {
            let indent = indent_of(line);
            let item = lines.by_ref().map(|(_, line)| line).find(|line| !line.trim_start().starts_with(['#', '/']));
            let item = item.unwrap_or_default();
            modules.extend(declared_module(item).map(|module| module_path(path, module)));
            if !closes_on_its_line(item) {
                lines.by_ref().map(|(_, line)| line).find(|line| closes_item(line, indent));
            }
            continue;
        }
        let (code, comment) = split_comment(line);
        let is_commented = comment_above || comment.is_some();
        comment_above = code.trim().is_empty() && comment.is_some();
        shipped.push(CodeLine { place: format!("{path}:{}", index + 1), code: code.to_owned(), is_commented });
    }
    (shipped, modules)
}

fn is_unshipped_attribute(attribute: &str) -> bool {
    let unshipped = ["test", "feature = \"seeded-bugs\"", "feature = \"simulated-disk\""];
    let condition = attribute.strip_prefix("#[cfg(").and_then(|rest| rest.strip_suffix(")]"));
    let any_of = condition.map(|condition| {
        let parts = condition.strip_prefix("any(").and_then(|rest| rest.strip_suffix(')')).unwrap_or(condition);
        parts.split(", ").all(|part| unshipped.contains(&part))
    });
    any_of.unwrap_or(false)
}

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

fn closes_on_its_line(item: &str) -> bool {
    item.ends_with([';', ',', '}'])
}

fn closes_item(line: &str, indent: usize) -> bool {
    indent_of(line) == indent && line.trim_start().starts_with(['}', ']', ')']) && closes_on_its_line(line)
}

fn declared_module(item: &str) -> Option<&str> {
    item.trim().strip_suffix(';')?.rsplit_once("mod ").map(|(_, name)| name)
}

/// `src/lib.rs`, `src/log/mod.rs` and `src/log.rs` declare modules in `src/`, `src/log/` and `src/log/`.
fn module_path(declared_in: &str, module: &str) -> String {
    let parent = declared_in.trim_end_matches(".rs");
    let parent = ["/lib", "/main", "/mod"].iter().find_map(|name| parent.strip_suffix(name)).unwrap_or(parent);
    format!("{parent}/{module}")
}

/// Parts a line at its `//`, unless that stands in a string.
fn split_comment(line: &str) -> (&str, Option<&str>) {
    let mut in_string = false;
    let mut previous = ' ';
    let mut escaped = false;
    for (index, character) in line.char_indices() {
        match character {
            '"' if !escaped && previous != '\'' => in_string = !in_string,
            '/' if !in_string && previous == '/' => return (&line[..index - 1], Some(&line[index - 1..])),
            _ => {}
        }
        escaped = in_string && character == '\\' && !escaped;
        previous = character;
    }
    (line, None)
}

/// Whether a text stands in a line by itself, not as a part of a longer name.
pub(crate) fn has_word(line: &str, word: &str) -> bool {
    let is_of_name = |character: char| character.is_alphanumeric() || character == '_';
    let goes_on = |rest: &str| word.ends_with(is_of_name) && rest.starts_with(is_of_name);
    line.match_indices(word)
        .any(|(start, _)| !line[..start].ends_with(is_of_name) && !goes_on(&line[start + word.len()..]))
}

/// Split, for this file is searched as well.
const LEFTOVERS: &[(&str, &str)] = &[
    (concat!("to", "do!("), "finish it"),
    (concat!("unimpl", "emented!("), "finish it"),
    (concat!("db", "g!("), "remove it"),
    (
        // With a reason, as for what only prints figures, it is fine.
        concat!("#[", "ignore]"),
        "a test that never runs shows nothing: fix it, remove it, or give it a command of its own",
    ),
];

fn check_leftovers(files: &[RepositoryFile]) -> Vec<String> {
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| file.has_extension("rs")) {
        for (index, line) in file.text().lines().enumerate() {
            let found = LEFTOVERS.iter().filter(|(leftover, _)| line.contains(leftover));
            violations.extend(found.map(|(found, advice)| format!("{}:{}: `{found}`: {advice}", file.path, index + 1)));
        }
    }
    violations
}

fn is_server_source(path: &str) -> bool {
    ["protocol", "store", "transport", "node"]
        .iter()
        .any(|name| path.starts_with(&format!("crates/polyarch-{name}/src/")))
}

/// In what a server runs, `unwrap` stands only beside the proof that it cannot fail. `expect` carries its own.
fn check_unwraps(files: &[RepositoryFile]) -> Vec<String> {
    let lines = shipped_lines(files.iter().filter(|file| is_server_source(&file.path)));
    let bare = lines.iter().filter(|line| line.code.contains(".unwrap()") && !line.is_commented);
    bare.map(|line| format!("{}: say beside it why it cannot fail, or return an error", line.place)).collect()
}

#[test]
fn nothing_is_left_unfinished() {
    assert_clean(&check_leftovers(&files()));
}

#[test]
fn a_server_unwraps_only_beside_the_proof() {
    assert_clean(&check_unwraps(&files()));
}

#[test]
fn a_leftover_is_seen() {
    for (leftover, _) in LEFTOVERS {
        assert_objects(&check_leftovers(&[RepositoryFile::example("a.rs", leftover)]), "a.rs:1");
    }
}

#[test]
fn a_bare_unwrap_is_seen_outside_tests() {
    let objections = |text: &str| check_unwraps(&[RepositoryFile::example("crates/polyarch-node/src/a.rs", text)]);
    assert_objects(&objections("fn f() {\n    g().unwrap();\n}"), "a.rs:2");
    assert_objects(&objections("// Far away.\n\nf().unwrap();"), "a.rs:3");
    assert_objects(&objections("let x = \"//\".parse().unwrap();"), "a.rs:1");
    assert_objects(&objections("#[cfg(test)]\nmod tests {\n    f().unwrap();\n}\ng().unwrap();"), "a.rs:5");
    assert_objects(&objections("#[cfg(not(test))]\nfn f() {\n    g().unwrap();\n}"), "a.rs:3");
    assert_clean(&objections(
        "// Never empty: see above.\nf().unwrap();\ng().unwrap(); // Nor this.\n/// `x.unwrap()`",
    ));
}

#[test]
fn modules_for_tests_are_left_out_with_their_files() {
    let file = |path, text| RepositoryFile::example(path, text);
    let text = "#[cfg(any(test, feature = \"simulated-disk\"))]\npub mod fake;\nmod real;\n";
    let sources = [
        file("src/log.rs", text),
        file("src/log/fake.rs", "a"),
        file("src/log/fake/b.rs", "b"),
        file("src/log/real.rs", "c"),
    ];
    let shipped: Vec<_> = shipped_lines(&sources).into_iter().map(|line| line.place).collect();
    assert_eq!(shipped, ["src/log.rs:3", "src/log/real.rs:1"]);
}

#[test]
fn a_word_is_found_only_by_itself() {
    assert!(has_word("use rand::Rng;", "rand") && has_word("(rand)", "rand") && has_word("std::{fs}", "std::{"));
    assert!(!has_word("operand, rand_core, brand", "rand"));
}

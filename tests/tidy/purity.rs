//! The pure crates know no clock, disk, socket, thread or global randomness, and no order that differs from run to run.
//! Time, randomness and storage are arguments; so every run can be replayed.

use crate::code::{has_word, shipped_lines};
use crate::tree::{Manifest, RepositoryFile, files};
use crate::{assert_clean, assert_objects};

const PURE: &[&str] = &["polyarch-crdt", "polyarch-protocol"];

/// What a pure crate may depend on. None of these does anything but compute.
const PURE_DEPENDENCIES: &[&str] =
    &["blake3", "bytes", "crdts", "lz4_flex", "polyarch-crdt", "postcard", "serde", "thiserror", "xxhash-rust"];

const IMPURE: &[(&str, &str)] = &[
    ("Instant", "time is an argument"),
    ("SystemTime", "time is an argument"),
    ("UNIX_EPOCH", "time is an argument"),
    ("std::env", "settings are arguments"),
    ("std::fs", "storage is an argument"),
    ("std::net", "messages are arguments"),
    ("std::process", "the world outside is not known here"),
    ("std::thread", "one call, one thread"),
    ("thread_local!", "state is an argument"),
    ("rand", "randomness is an argument"),
    ("getrandom", "randomness is an argument"),
    ("HashMap", "its order differs from run to run; use BTreeMap"),
    ("HashSet", "its order differs from run to run; use BTreeSet"),
    ("RandomState", "randomness is an argument"),
    ("std::{", "name each module in a line of its own, so that this can be checked"),
];

fn check_sources(files: &[RepositoryFile]) -> Vec<String> {
    let is_pure = |path: &str| PURE.iter().any(|name| path.starts_with(&format!("crates/{name}/src/")));
    let mut violations = Vec::new();
    for line in shipped_lines(files.iter().filter(|file| is_pure(&file.path))) {
        for (word, reason) in IMPURE.iter().filter(|(word, _)| has_word(&line.code, word)) {
            violations.push(format!("{}: `{word}` in a pure crate: {reason}", line.place));
        }
    }
    violations
}

fn check_dependencies(manifests: &[Manifest]) -> Vec<String> {
    let mut violations = Vec::new();
    for manifest in manifests.iter().filter(|manifest| PURE.contains(&manifest.package.as_str())) {
        let dependencies = manifest.dependencies();
        let shipped = dependencies.iter().filter(|dependency| !dependency.is_dev);
        for dependency in shipped.filter(|dependency| !PURE_DEPENDENCIES.contains(&dependency.name)) {
            violations.push(format!(
                "{}: a pure crate depends on `{}`; if that only computes, add it to the table",
                manifest.path, dependency.name
            ));
        }
    }
    violations
}

#[test]
fn the_pure_crates_know_nothing_of_the_world() {
    let files = files();
    for name in PURE {
        let library = format!("crates/{name}/src/lib.rs");
        assert!(files.iter().any(|file| file.path == library), "{library} is gone; correct the table");
    }
    assert_clean(&check_sources(&files));
}

#[test]
fn the_pure_crates_depend_only_on_what_computes() {
    assert_clean(&check_dependencies(&Manifest::all()));
}

#[test]
fn the_world_is_seen_in_a_pure_crate() {
    let objections =
        |text: &str| check_sources(&[RepositoryFile::example("crates/polyarch-protocol/src/replica/a.rs", text)]);
    assert_objects(&objections("use std::time::{Duration, Instant};"), "Instant");
    assert_objects(&objections("let now = std::time::SystemTime::now();"), "SystemTime");
    assert_objects(&objections("use std::{fmt, io};"), "std::{");
    assert_objects(&objections("static X: HashMap<u8, u8> = y; // no HashSet here"), "HashMap");
    assert_objects(&objections("thread_local! {\n}"), "thread_local");
    assert_objects(&objections("#[cfg(test)]\nuse std::fs;\nuse std::net::IpAddr;"), "std::net");
    assert_clean(&objections("//! No `HashMap`.\nuse std::time::Duration;\nlet operand = \"/\";"));
    assert_clean(&objections("#[cfg(feature = \"seeded-bugs\")]\nmod on {\n    thread_local! {\n    }\n}"));
    assert_clean(&check_sources(&[RepositoryFile::example("crates/polyarch-node/src/a.rs", "use std::fs;")]));
}

#[test]
fn a_dependency_on_the_world_is_seen() {
    let body = "[package]\nname = 'polyarch-crdt'\n[dependencies]\ntokio.workspace = true\nserde.workspace = true";
    assert_objects(&check_dependencies(&[Manifest::parse("x/Cargo.toml", body)]), "tokio");
    let for_tests = "[package]\nname = 'polyarch-crdt'\n[dev-dependencies]\nproptest.workspace = true";
    assert_clean(&check_dependencies(&[Manifest::parse("x/Cargo.toml", for_tests)]));
}

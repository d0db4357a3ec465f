//! What no file of the repository may hold.

use crate::tree::{RepositoryFile, files};
use crate::{assert_clean, assert_objects};

const FILE_BYTES_MAX: usize = 1 << 20;

/// Places that exist on one machine only. Split, for this file is searched as well.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ro", "ot/")];

/// Hosts of package registries: where packages come from is the business of whoever builds.
const REGISTRY_HOSTS: &[&str] = &[
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("pythonhosted", ".org"),
    concat!("npmjs", ".com"),
    concat!("npmjs", ".org"),
    concat!("deb.debian", ".org"),
];

fn check_sizes(files: &[RepositoryFile]) -> Vec<String> {
    let large = files.iter().filter(|file| file.bytes.len() > FILE_BYTES_MAX);
    large.map(|file| format!("{}: {} bytes, the limit is {FILE_BYTES_MAX}", file.path, file.bytes.len())).collect()
}

fn check_places(files: &[RepositoryFile]) -> Vec<String> {
    let mut violations = Vec::new();
    // Cargo writes the index's address into its lock file.
    for file in files.iter().filter(|file| file.path != "Cargo.lock") {
        for (index, line) in file.text().lines().enumerate() {
            let found = MACHINE_PATHS.iter().chain(REGISTRY_HOSTS).filter(|place| line.contains(*place));
            violations.extend(found.map(|place| format!("{}:{}: names `{place}`", file.path, index + 1)));
        }
    }
    violations
}

/// Files that people edit. Data sets and frozen bytes stay as they came.
fn is_edited(file: &RepositoryFile) -> bool {
    let name = file.path.rsplit('/').next().unwrap_or_default();
    ["rs", "toml", "md", "sh", "yml"].iter().any(|extension| file.has_extension(extension))
        || file.path.starts_with(".ci/")
        || name.starts_with('.')
}

fn check_whitespace(files: &[RepositoryFile]) -> Vec<String> {
    let mut violations = Vec::new();
    for file in files.iter().filter(|file| is_edited(file)) {
        let text = file.text();
        for (index, line) in text.split('\n').enumerate() {
            let at = format!("{}:{}", file.path, index + 1);
            if line.contains('\t') {
                violations.push(format!("{at}: a tab"));
            }
            if line.ends_with(char::is_whitespace) {
                violations.push(format!("{at}: white space at the end of the line"));
            }
        }
        if !text.is_empty() && (!text.ends_with('\n') || text.ends_with("\n\n")) {
            violations.push(format!("{}: does not end with exactly one line end", file.path));
        }
    }
    violations
}

#[test]
fn no_file_is_larger_than_it_may_be() {
    assert_clean(&check_sizes(&files()));
}

#[test]
fn no_file_names_a_machines_paths_or_a_registrys_host() {
    assert_clean(&check_places(&files()));
}

#[test]
fn lines_have_no_tabs_and_end_where_their_text_ends() {
    assert_clean(&check_whitespace(&files()));
}

#[test]
fn a_large_file_is_seen() {
    let file = RepositoryFile { path: "a.json".to_owned(), bytes: vec![b'0'; FILE_BYTES_MAX + 1] };
    assert_objects(&check_sizes(&[file]), "a.json");
}

#[test]
fn a_place_is_seen() {
    for place in MACHINE_PATHS.iter().chain(REGISTRY_HOSTS) {
        let file = RepositoryFile::example("docs/a.md", &format!("see\n{place}x"));
        assert_objects(&check_places(&[file]), "docs/a.md:2");
    }
}

#[test]
fn stray_white_space_is_seen() {
    let objections = |path: &str, text: &str| check_whitespace(&[RepositoryFile::example(path, text)]);
    assert_objects(&objections("a.rs", "a\n\tb\n"), "a.rs:2: a tab");
    assert_objects(&objections(".ci/run", "a \n"), ".ci/run:1: white space");
    assert_objects(&objections("a.md", "a\r\n"), "a.md:1: white space");
    assert_objects(&objections("a.toml", "a"), "exactly one line end");
    assert_objects(&objections("a.toml", "a\n\n"), "exactly one line end");
    assert_clean(&objections("data.json", "\t"));
}

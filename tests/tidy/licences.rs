//! Under which licences the crates of the build may be used: the table of `deny.toml` against what cargo says of them.

use crate::tree::{cargo, output, read, strings};
use crate::{assert_clean, assert_objects};

/// A crate and the expression under which it may be used.
struct Licensed {
    package: String,
    expression: Option<String>,
}

/// Licence expressions as they occur: a conjunction of choices, with parentheses around them or not. A choice with an
/// exception (`Apache-2.0 WITH LLVM-exception`) counts as a licence of its own. Older crates write `/` for `OR`.
fn is_allowed(expression: &str, allowed: &[&str]) -> bool {
    let expression = expression.replace('/', " OR ");
    let mut conjunction = expression.split(" AND ");
    conjunction.all(|choices| {
        let choices = choices.trim().trim_start_matches('(').trim_end_matches(')');
        choices.split(" OR ").any(|licence| allowed.contains(&licence.trim()))
    })
}

fn check_licences(packages: &[Licensed], allowed: &[&str]) -> Vec<String> {
    let of = |package: &Licensed| package.expression.clone().unwrap_or_else(|| "nothing".to_owned());
    let refused = packages.iter().filter(|package| !is_allowed(&of(package), allowed));
    refused.map(|package| format!("{}: {} is not allowed by deny.toml", package.package, of(package))).collect()
}

/// A licence that no crate needs is an open door.
fn check_needed(packages: &[Licensed], allowed: &[&str]) -> Vec<String> {
    let is_needed = |licence: &&&str| {
        let others: Vec<_> = allowed.iter().copied().filter(|other| other != *licence).collect();
        !check_licences(packages, &others).is_empty()
    };
    let needless = allowed.iter().filter(|licence| !is_needed(licence));
    needless.map(|licence| format!("deny.toml: no crate needs {licence}")).collect()
}

/// What is built for this machine; crates for other systems are not even downloaded.
fn packages_of_this_build() -> Vec<Licensed> {
    let version = output(std::process::Command::new(env!("CARGO")).arg("-vV"));
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("cargo names its host");
    let metadata = output(cargo("metadata").args(["--format-version", "1", "--filter-platform", host]));
    let metadata: serde_json::Value = serde_json::from_str(&metadata).expect("cargo prints JSON");
    let built: Vec<_> = metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|node| &node["id"]).collect();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .filter(|package| built.contains(&&package["id"]))
        .map(|package| Licensed {
            package: package["name"].as_str().unwrap().to_owned(),
            expression: package["license"].as_str().map(str::to_owned),
        })
        .collect()
}

#[test]
fn every_crate_of_the_build_is_under_an_allowed_licence_and_each_allowed_one_is_needed() {
    let deny: toml::Table = read("deny.toml").parse().expect("deny.toml is TOML");
    let allowed: Vec<_> = strings(deny["licenses"].get("allow")).collect();
    let packages = packages_of_this_build();
    assert!(packages.len() > 100, "cargo lists only {} crates", packages.len());
    assert_clean(&check_licences(&packages, &allowed));
    assert_clean(&check_needed(&packages, &allowed));
}

#[test]
fn a_licence_that_is_not_allowed_is_seen() {
    let objections = |expression: Option<&str>| {
        let package = Licensed { package: "x".to_owned(), expression: expression.map(str::to_owned) };
        check_licences(&[package], &["MIT", "Apache-2.0"])
    };
    assert_objects(&objections(Some("GPL-3.0-only")), "GPL-3.0-only");
    assert_objects(&objections(Some("MIT AND OpenSSL")), "OpenSSL");
    assert_objects(&objections(Some("(MIT OR Zlib) AND Unicode-3.0")), "Unicode-3.0");
    assert_objects(&objections(Some("Apache-2.0 WITH LLVM-exception")), "LLVM");
    assert_objects(&objections(None), "nothing");
    for allowed in ["MIT", "MIT/GPL-2.0", "Zlib OR MIT", "(MIT OR Zlib) AND (Apache-2.0 OR ISC)"] {
        assert_clean(&objections(Some(allowed)));
    }
}

#[test]
fn a_licence_that_no_crate_needs_is_seen() {
    let package = Licensed { package: "x".to_owned(), expression: Some("MIT OR ISC".to_owned()) };
    let both = check_needed(std::slice::from_ref(&package), &["MIT", "ISC"]);
    assert_eq!(both.len(), 2, "one of the two would do: {both:?}");
    assert_objects(&check_needed(&[package], &["MIT", "Zlib"]), "Zlib");
}

//! What `Cargo.lock` may hold: no version with a known hole, nothing that is banned, nothing from elsewhere.

use crate::tree::{Manifest, read};
use crate::{assert_clean, assert_objects};

/// The first version of a crate that is sound enough for us.
const FLOORS: &[(&str, &str)] =
    &[("quinn-proto", "0.11.15"), ("rustls-webpki", "0.103.13"), ("aws-lc-sys", "0.39.0"), ("bytes", "1.11.1")];

/// A crate whose format is bound to one version: what it wrote, no other has been tested to read.
const EXACT: &[(&str, &str)] = &[("sled", "1.0.0-alpha.124")];

/// The index of public crates, as `Cargo.lock` names it. Split, for no file may name a registry's host.
const CRATES_INDEX: &str = concat!("registry+https://github.com/rust-lang/crates", ".io-index");

/// A package in `Cargo.lock`.
struct Locked {
    name: String,
    version: String,
    source: Option<String>,
    dependencies: Vec<String>,
}

fn parse_lock(text: &str) -> Vec<Locked> {
    let lock: toml::Table = text.parse().expect("Cargo.lock is TOML");
    let packages = lock["package"].as_array().expect("Cargo.lock lists packages");
    let text_of = |package: &toml::Value, key| package.get(key).and_then(toml::Value::as_str).map(str::to_owned);
    let parse = |package: &toml::Value| Locked {
        name: text_of(package, "name").expect("a package has a name"),
        version: text_of(package, "version").expect("a package has a version"),
        source: text_of(package, "source"),
        // `name`, or `name version` where there are several.
        dependencies: crate::tree::strings(package.get("dependencies"))
            .filter_map(|dependency| dependency.split(' ').next().map(str::to_owned))
            .collect(),
    };
    packages.iter().map(parse).collect()
}

/// Orders versions as far as floors need it: a pre-release comes before its release.
fn version_order(version: &str) -> (Vec<u64>, bool) {
    let version = version.split('+').next().unwrap_or_default();
    let (release, is_release) = version.split_once('-').map_or((version, true), |(release, _)| (release, false));
    let numbers = release.split('.').map(|number| number.parse().expect("a version's parts are numbers"));
    (numbers.collect(), is_release)
}

fn check_floors(lock: &[Locked]) -> Vec<String> {
    let mut violations = Vec::new();
    for package in lock {
        let found = format!("{} {}", package.name, package.version);
        if let Some((_, floor)) = FLOORS.iter().find(|(name, _)| *name == package.name)
            && version_order(&package.version) < version_order(floor)
        {
            violations.push(format!("{found} has a known hole; {floor} is the first without"));
        }
        if let Some((_, exact)) = EXACT.iter().find(|(name, _)| *name == package.name)
            && package.version != *exact
        {
            violations.push(format!("{found}: only {exact} was tested against cuts of power"));
        }
    }
    violations
}

/// The bans of `deny.toml`: a crate, and the crates through which it may come all the same.
fn check_bans(lock: &[Locked], deny: &toml::Table) -> Vec<String> {
    let mut violations = Vec::new();
    for ban in deny["bans"]["deny"].as_array().expect("deny.toml bans crates") {
        let banned = ban["crate"].as_str().expect("a ban names a crate");
        let wrappers: Vec<_> = crate::tree::strings(ban.get("wrappers")).collect();
        let users = lock.iter().filter(|package| package.dependencies.iter().any(|name| name == banned));
        for user in users.filter(|user| !wrappers.contains(&user.name.as_str())) {
            violations.push(format!("{} brings in `{banned}`, which deny.toml bans", user.name));
        }
    }
    violations
}

fn check_sources(lock: &[Locked], members: &[String]) -> Vec<String> {
    let is_known = |package: &Locked| match &package.source {
        Some(source) => source == CRATES_INDEX,
        None => members.contains(&package.name),
    };
    let strange = lock.iter().filter(|package| !is_known(package));
    strange
        .map(|package| format!("{} comes from {:?}, not from the crates index", package.name, package.source))
        .collect()
}

fn deny() -> toml::Table {
    read("deny.toml").parse().expect("deny.toml is TOML")
}

#[test]
fn no_locked_version_is_below_its_floor() {
    let lock = parse_lock(&read("Cargo.lock"));
    for (name, _) in EXACT {
        assert!(
            lock.iter().any(|package| package.name == *name),
            "{name} is not in Cargo.lock: remove it from the table"
        );
    }
    assert_clean(&check_floors(&lock));
}

#[test]
fn nothing_that_is_banned_comes_in() {
    assert_clean(&check_bans(&parse_lock(&read("Cargo.lock")), &deny()));
}

#[test]
fn everything_comes_from_the_crates_index_or_is_ours() {
    let members: Vec<_> = Manifest::all().into_iter().map(|manifest| manifest.package).collect();
    assert_clean(&check_sources(&parse_lock(&read("Cargo.lock")), &members));
}

#[test]
fn a_version_below_its_floor_is_seen() {
    let locked =
        |name: &str, version: &str| parse_lock(&format!("[[package]]\nname = '{name}'\nversion = '{version}'"));
    assert_objects(&check_floors(&locked("quinn-proto", "0.11.9")), "0.11.15");
    assert_objects(&check_floors(&locked("rustls-webpki", "0.103.13-alpha.1")), "0.103.13");
    assert_objects(&check_floors(&locked("bytes", "1.10.9")), "1.11.1");
    assert_objects(&check_floors(&locked("sled", "1.0.0-alpha.125")), "alpha.124");
    assert_clean(&check_floors(&locked("rustls-webpki", "0.104.0")));
    assert_clean(&check_floors(&locked("bytes", "1.11.1+build")));
}

#[test]
fn a_banned_crate_is_seen_unless_it_comes_through_its_wrapper() {
    let deny = "[bans]\ndeny = [{ crate = 'bad', wrappers = ['old'] }]".parse().unwrap();
    let lock = |user: &str| {
        parse_lock(&format!("[[package]]\nname = '{user}'\nversion = '1.0.0'\ndependencies = ['good', 'bad 2.0.0']"))
    };
    assert_objects(&check_bans(&lock("new"), &deny), "new brings in `bad`");
    assert_clean(&check_bans(&lock("old"), &deny));
}

#[test]
fn a_crate_from_elsewhere_is_seen() {
    let from = |source: &str| parse_lock(&format!("[[package]]\nname = 'x'\nversion = '1.0.0'\n{source}"));
    assert_objects(&check_sources(&from("source = 'git+https://example.org/x#1'"), &[]), "git+");
    assert_objects(&check_sources(&from(""), &["y".to_owned()]), "None");
    assert_clean(&check_sources(&from(""), &["x".to_owned()]));
}

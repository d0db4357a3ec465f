//! What is built for simulations and tests never reaches the binary that people run.

use crate::tree::{Manifest, cargo, output, strings};
use crate::{assert_clean, assert_objects};

/// Features that make a build unfit for use: bugs that can be switched on, a disk that forgets, and the root's feature
/// that asks for the former to show that the power-cut test sees them.
const NEVER_SHIPPED: &[&str] = &["seeded-bugs", "simulated-disk", "power-cut"];
/// The crates that may ask for them. Nothing that is shipped may depend on one.
const NOT_SHIPPED: &[&str] = &["polyarch-sim", "polyarch-fuzz"];

/// `polyarch-store/seeded-bugs`, `polyarch-store?/seeded-bugs` and `seeded-bugs` alike.
fn is_never_shipped(feature: &str) -> bool {
    NEVER_SHIPPED.contains(&feature.rsplit('/').next().unwrap_or_default())
}

fn check_requests(manifests: &[Manifest]) -> Vec<String> {
    let mut violations = Vec::new();
    for manifest in manifests.iter().filter(|manifest| !NOT_SHIPPED.contains(&manifest.package.as_str())) {
        for dependency in manifest.dependencies().iter().filter(|dependency| !dependency.is_dev) {
            if NOT_SHIPPED.contains(&dependency.name) {
                violations.push(format!("{}: only tests may depend on `{}`", manifest.path, dependency.name));
            }
            for feature in dependency.features().filter(|feature| is_never_shipped(feature)) {
                violations.push(format!("{}: asks `{}` for `{feature}`", manifest.path, dependency.name));
            }
        }
        for (feature, enables) in manifest.features().filter(|(feature, _)| !is_never_shipped(feature)) {
            if let Some(enabled) = enables.into_iter().find(|enabled| is_never_shipped(enabled)) {
                violations.push(format!("{}: feature `{feature}` switches on `{enabled}`", manifest.path));
            }
        }
        let workspace = manifest.table.get("workspace").and_then(|workspace| workspace.get("dependencies"));
        for (name, spec) in workspace.and_then(toml::Value::as_table).into_iter().flatten() {
            if strings(spec.get("features")).any(is_never_shipped) {
                violations.push(format!("{}: switches on a feature of `{name}` for everyone", manifest.path));
            }
        }
    }
    violations
}

/// `resolved`: one line for each crate of the binary, its name, `|`, its features with commas.
fn check_resolved(resolved: &str) -> Vec<String> {
    let mut violations = Vec::new();
    for (package, features) in resolved.lines().filter_map(|line| line.split_once('|')) {
        let name = package.split(' ').next().unwrap_or_default();
        if NOT_SHIPPED.contains(&name) {
            violations.push(format!("the binary contains `{name}`"));
        }
        let features = features.trim_end_matches(" (*)").split(',');
        violations.extend(
            features.filter(|feature| is_never_shipped(feature)).map(|f| format!("the binary's `{name}` has `{f}`")),
        );
    }
    violations.sort();
    violations.dedup();
    violations
}

#[test]
fn no_shipped_crate_asks_for_what_only_simulations_may_have() {
    assert_clean(&check_requests(&Manifest::all()));
}

#[test]
fn the_binary_as_cargo_resolves_it_has_none_of_it() {
    let resolved =
        output(cargo("tree").args(["-p", "polyarch", "-e", "normal,build", "--prefix", "none", "-f", "{p}|{f}"]));
    assert!(resolved.contains("polyarch-store"), "the store is missing from what was resolved:\n{resolved}");
    assert_clean(&check_resolved(&resolved));
}

#[test]
fn a_request_for_it_is_seen_wherever_it_stands() {
    let objections = |body: &str| check_requests(&[Manifest::parse("x/Cargo.toml", body)]);
    let request = "[dependencies]\npolyarch-store = { workspace = true, features = ['simulated-disk'] }";
    assert_objects(&objections(request), "simulated-disk");
    assert_objects(&objections("[features]\ndefault = ['seeded-bugs']"), "seeded-bugs");
    assert_objects(&objections("[features]\ndefault = ['power-cut']\npower-cut = ['x/seeded-bugs']"), "power-cut");
    assert_objects(&objections("[features]\ncli = ['polyarch-store?/seeded-bugs']"), "seeded-bugs");
    assert_objects(&objections("[build-dependencies]\npolyarch-sim.workspace = true"), "polyarch-sim");
    assert_objects(&objections("[dependencies]\npolyarch-fuzz.workspace = true"), "polyarch-fuzz");
    let everyone = "[workspace.dependencies]\nx = { path = 'x', features = ['seeded-bugs'] }";
    assert_objects(&objections(everyone), "for everyone");
    assert_clean(&objections("[features]\nseeded-bugs = ['polyarch-crdt/seeded-bugs']"));
    assert_clean(&objections("[dev-dependencies]\nx = { workspace = true, features = ['simulated-disk'] }"));
}

#[test]
fn a_binary_with_it_is_seen() {
    assert_objects(&check_resolved("polyarch-store v0.1.0 (/x)|a,simulated-disk (*)"), "simulated-disk");
    assert_objects(&check_resolved("polyarch-sim v0.1.0 (/x)|"), "polyarch-sim");
    assert_objects(&check_resolved("polyarch-fuzz v0.1.0 (/x)|"), "polyarch-fuzz");
    assert_clean(&check_resolved("polyarch-store v0.1.0 (/x)|default"));
}

//! Versions stand in one place, and every crate is under the one table of lints.

use crate::tree::Manifest;
use crate::{assert_clean, assert_objects};

fn check_versions(manifests: &[Manifest]) -> Vec<String> {
    let mut violations = Vec::new();
    for manifest in manifests {
        for dependency in manifest.dependencies().iter().filter(|dependency| !dependency.is_of_workspace()) {
            violations.push(format!(
                "{}: write `{}.workspace = true`; its version belongs in the root's [workspace.dependencies]",
                manifest.path, dependency.name
            ));
        }
        let workspace = manifest.table.get("workspace").and_then(|workspace| workspace.get("dependencies"));
        for (name, spec) in workspace.and_then(toml::Value::as_table).into_iter().flatten() {
            if spec.get("package").is_some() {
                violations
                    .push(format!("{}: `{name}` is another crate's alias; name crates as they are", manifest.path));
            }
            if spec.get("git").is_some() {
                violations.push(format!("{}: `{name}` comes from git; only the crates index", manifest.path));
            }
        }
    }
    violations
}

fn check_lints(manifests: &[Manifest]) -> Vec<String> {
    let has_lints = |manifest: &&Manifest| {
        let lints = manifest.table.get("lints").and_then(|lints| lints.get("workspace"));
        lints.and_then(toml::Value::as_bool) == Some(true)
    };
    let without = manifests.iter().filter(|manifest| !has_lints(manifest));
    without.map(|manifest| format!("{}: add `[lints]` with `workspace = true`", manifest.path)).collect()
}

#[test]
fn versions_stand_in_the_workspace_table_and_nowhere_else() {
    assert_clean(&check_versions(&Manifest::all()));
}

#[test]
fn every_crate_is_under_the_lints_of_the_workspace() {
    assert_clean(&check_lints(&Manifest::all()));
}

#[test]
fn a_version_of_ones_own_is_seen() {
    for dependency in ["x = '1'", "x = { version = '1' }", "x = { path = '../x' }", "x = { workspace = false }"] {
        let manifest = Manifest::parse("x/Cargo.toml", &format!("[dependencies]\n{dependency}\ny.workspace = true"));
        assert_objects(&check_versions(&[manifest]), "`x.workspace = true`");
    }
    let alias = Manifest::parse("Cargo.toml", "[workspace.dependencies]\nx = { package = 'y', version = '1' }");
    assert_objects(&check_versions(&[alias]), "alias");
    let git = Manifest::parse("Cargo.toml", "[workspace.dependencies]\nx = { git = 'y' }");
    assert_objects(&check_versions(&[git]), "comes from git");
}

#[test]
fn a_crate_with_lints_of_its_own_is_seen() {
    assert_objects(&check_lints(&[Manifest::parse("x/Cargo.toml", "[lints.rust]\nx = 'allow'")]), "x/Cargo.toml");
}

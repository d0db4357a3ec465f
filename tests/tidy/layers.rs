//! Which crate may name which. The arrows point downwards, dev-dependencies included, and each outside world is named
//! by one crate.

use crate::tree::Manifest;
use crate::{assert_clean, assert_objects};

/// A crate names only crates of lower layers.
const LAYERS: &[(&str, u8)] = &[
    ("polyarch-crdt", 0),
    ("polyarch-protocol", 1),
    ("polyarch-store", 2),
    ("polyarch-transport", 2),
    ("polyarch-client", 3),
    ("polyarch-node", 3),
    ("polyarch-sim", 3),
    ("polyarch-gateway", 4),
    ("polyarch-cli", 5),
    ("polyarch", 6),
    ("polyarch-fuzz", 6),
];

/// An outside world and the crates that may name it.
const WORLDS: &[(&str, &[&str])] = &[
    ("crdts", &["polyarch-crdt"]),
    ("sled", &["polyarch-store"]),
    ("quinn", &["polyarch-transport"]),
    ("quinn-proto", &["polyarch-transport"]),
    ("rustls", &["polyarch-transport"]),
    ("rcgen", &["polyarch-transport"]),
    ("socket2", &["polyarch-transport"]),
    ("x509-parser", &["polyarch-transport"]),
    // The simulator and the fuzzer are programs of their own.
    ("clap", &["polyarch-cli", "polyarch-fuzz", "polyarch-sim"]),
];

fn layer(package: &str) -> Option<u8> {
    LAYERS.iter().find(|(name, _)| *name == package).map(|(_, layer)| *layer)
}

fn check_layers(manifests: &[Manifest]) -> Vec<String> {
    let mut violations = Vec::new();
    for manifest in manifests {
        let Some(own) = layer(&manifest.package) else {
            violations
                .push(format!("{}: `{}` has no layer; give it one in the table", manifest.path, manifest.package));
            continue;
        };
        for dependency in manifest.dependencies() {
            // A dependency on oneself with other features is the way to switch them on for tests.
            if dependency.name == manifest.package && dependency.is_dev {
                continue;
            }
            match layer(dependency.name) {
                Some(other) if other >= own => violations.push(format!(
                    "{}: layer {own} names `{}` of layer {other}; only lower layers may be named",
                    manifest.path, dependency.name
                )),
                None if dependency.name.starts_with("polyarch") => {
                    violations.push(format!("{}: `{}` has no layer", manifest.path, dependency.name));
                }
                _ => {}
            }
        }
    }
    violations
}

fn check_worlds(manifests: &[Manifest]) -> Vec<String> {
    let mut violations = Vec::new();
    for manifest in manifests {
        for dependency in manifest.dependencies() {
            if let Some((world, owners)) = WORLDS.iter().find(|(world, _)| *world == dependency.name)
                && !owners.contains(&manifest.package.as_str())
            {
                violations.push(format!("{}: `{world}` is named only by {}", manifest.path, owners.join(", ")));
            }
        }
    }
    violations
}

#[test]
fn a_crate_names_only_crates_of_lower_layers() {
    assert_clean(&check_layers(&Manifest::all()));
}

#[test]
fn each_outside_world_is_named_by_one_crate() {
    assert_clean(&check_worlds(&Manifest::all()));
}

#[test]
fn an_arrow_upwards_or_sideways_is_seen() {
    let manifest = |body: &str| Manifest::parse("x/Cargo.toml", body);
    let upwards = manifest("[package]\nname='polyarch-crdt'\n[dev-dependencies]\npolyarch-protocol.workspace=true");
    assert_objects(&check_layers(&[upwards]), "polyarch-protocol");
    let sideways = manifest("[package]\nname='polyarch-store'\n[dependencies]\npolyarch-transport.workspace=true");
    assert_objects(&check_layers(&[sideways]), "polyarch-transport");
    let for_one_platform =
        manifest("[package]\nname='polyarch-node'\n[target.'cfg(unix)'.dependencies]\npolyarch-cli.workspace=true");
    assert_objects(&check_layers(&[for_one_platform]), "polyarch-cli");
    assert_objects(&check_layers(&[manifest("[package]\nname='polyarch-util'")]), "has no layer");
    let downwards = manifest("[package]\nname='polyarch-node'\n[dependencies]\npolyarch-store.workspace=true");
    assert_clean(&check_layers(&[downwards]));
}

#[test]
fn a_world_named_by_a_second_crate_is_seen() {
    let body = "[package]\nname='polyarch-node'\n[dev-dependencies]\nrcgen.workspace=true\ntokio.workspace=true";
    assert_objects(&check_worlds(&[Manifest::parse("x/Cargo.toml", body)]), "rcgen");
}

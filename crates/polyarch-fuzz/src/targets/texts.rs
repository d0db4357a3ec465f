//! Texts that people write or carry: configurations, names, the lines that commands read.

use std::fmt::{Debug, Display};
use std::path::Path;
use std::str::FromStr;

use polyarch_cli::{BatchChange, ImportRecord};
use polyarch_client::{NodeAddress, Profile};
use polyarch_crdt::Dot;
use polyarch_node::{NodeConfig, NodeIdentity};
use polyarch_protocol::{KeyspaceId, Topology};
use polyarch_store::BackupManifest;
use polyarch_store::files::simulated::SimulatedDisk;
use polyarch_store::state::MemoryOpener;
use polyarch_transport::{CertificateName, CertificateSummary, ClientName, ClusterName, Identity};

use super::logs::{MemoryStore, small_store};
use crate::script::Script;

/// An input is a byte that says which file it is, and the file. A profile is read as it was written. Whatever is
/// refused is refused in words, in one line.
pub fn configurations(data: &[u8]) {
    let mut script = Script::new(data);
    let file = script.below(6);
    let bytes = script.rest();
    let path = Path::new("dir/polyarch.toml");
    if let 4 | 5 = file {
        return mark(["checkpoint.toml", "log.toml"][file - 4], bytes);
    }
    let Ok(text) = str::from_utf8(bytes) else { return };
    match file {
        0 => match NodeConfig::parse(text, path) {
            Ok(config) => node_config(&config),
            Err(error) => in_one_line(error),
        },
        1 => match Profile::parse(text, path) {
            Ok(profile) => {
                assert_eq!(Profile::parse(&profile.to_toml(), Path::new("")).expect("it was written so"), profile);
            }
            Err(error) => in_one_line(error),
        },
        2 => match BackupManifest::parse(text) {
            Ok(manifest) => assert_eq!(manifest.format, 1),
            Err(problem) => in_one_line(problem),
        },
        _ => match NodeIdentity::parse(text) {
            Ok(identity) => assert!(identity.parsed_cluster_id().is_some()),
            Err(problem) => in_one_line(problem),
        },
    }
}

/// What was accepted can be used.
fn node_config(config: &NodeConfig) {
    let (limits, timings) = (config.replica_limits(), config.timings());
    assert!(
        limits.value_bytes_max <= limits.write_set_bytes_max
            && limits.clone().within_wire().changes_max <= limits.changes_max
    );
    assert!(timings.gossip_interval_ms > 0);
    assert!(!config.advertised().is_empty());
    let _ = (config.other_peers(), config.durability());
}

/// A mark beside an empty log: the store opens, or says what is wrong, and says the same when it is asked again.
fn mark(name: &str, bytes: &[u8]) {
    let disk = SimulatedDisk::new(1, 512);
    disk.damage(name, |content| *content = bytes.to_vec());
    let open = || {
        let opened = MemoryStore::open(disk.clone(), MemoryOpener::default(), &small_store());
        opened.map(|(_, frontier, _)| frontier).map_err(|error| error.to_string())
    };
    let first = open();
    assert_eq!(first, open());
    if let Err(problem) = first {
        in_one_line(problem);
    }
}

fn in_one_line(error: impl Display) {
    let text = error.to_string();
    assert!(!text.is_empty());
    assert!(!text.contains('\n'), "{text:?}");
}

/// An input is a byte that says what it is a name of, and the name. What parses prints as itself; of a certificate the
/// name prints and parses.
pub fn names(data: &[u8]) {
    let mut script = Script::new(data);
    let what = script.below(10);
    let bytes = script.rest();
    match what {
        8 => return certificate(CertificateSummary::from_der(bytes).ok()),
        9 => return certificate(CertificateSummary::from_pem(bytes).ok()),
        _ => {}
    }
    let Ok(text) = str::from_utf8(bytes) else { return };
    match what {
        0 => prints_as_itself::<Identity>(text),
        1 => prints_as_itself::<CertificateName>(text),
        2 => prints_as_itself::<ClusterName>(text),
        3 => prints_as_itself::<ClientName>(text),
        4 => prints_as_itself::<NodeAddress>(text),
        5 => prints_as_itself::<Dot>(text),
        6 => {
            if let Ok(id) = text.parse::<KeyspaceId>() {
                assert_eq!(id.to_string(), text);
            }
        }
        _ => {
            if let Ok(topology) = text.parse::<Topology>() {
                assert_eq!(topology.to_string().parse::<Topology>().expect("it was printed so"), topology);
            }
        }
    }
}

fn prints_as_itself<T: FromStr<Err: Display> + Display + Debug>(text: &str) {
    match text.parse::<T>() {
        Ok(name) => assert_eq!(name.to_string(), text),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn certificate(summary: Option<CertificateSummary>) {
    let Some(summary) = summary else { return };
    assert_eq!(summary.name.to_string().parse::<CertificateName>().as_ref(), Ok(&summary.name));
    assert_eq!(summary.fingerprint_sha256.len(), 64);
}

/// An input is a line of `batch` and a line of `import`. What is read has a key; a record that is written as `export`
/// does reads as the same.
pub fn command_lines(data: &[u8]) {
    match BatchChange::parse(data) {
        Ok(change) => assert!(!change.key.is_empty()),
        Err(problem) => assert!(!problem.is_empty()),
    }
    match ImportRecord::parse(data) {
        Ok(record) => exported(&record),
        Err(problem) => assert!(!problem.is_empty()),
    }
}

fn exported(record: &ImportRecord) {
    assert!(!record.key.is_empty() && !record.values.is_empty());
    let siblings: Vec<_> = record
        .values
        .iter()
        .map(|value| {
            let mut sibling = bytes_object("value", &value.value);
            sibling.extend(value.gtid.map(|gtid| ("gtid".to_owned(), gtid.to_string().into())));
            let hlc = value.hlc.map(|hlc| format!("{}.{}", hlc.millis(), hlc.counter()));
            sibling.extend(hlc.map(|hlc| ("hlc".to_owned(), hlc.into())));
            serde_json::Value::Object(sibling)
        })
        .collect();
    let mut object = bytes_object("key", &record.key);
    object.insert("siblings".to_owned(), siblings.into());
    let context = record.context.as_ref().map(|context| base64(context.as_bytes()));
    object.extend(context.map(|context| ("context".to_owned(), context.into())));
    let line = serde_json::Value::Object(object).to_string();
    assert_eq!(ImportRecord::parse(line.as_bytes()).as_ref(), Ok(record), "{line}");
}

/// As text where it is text.
fn bytes_object(name: &str, bytes: &[u8]) -> serde_json::Map<String, serde_json::Value> {
    let (name, value) = match str::from_utf8(bytes) {
        Ok(text) => (name.to_owned(), text.to_owned()),
        Err(_) => (format!("{name}_base64"), base64(bytes)),
    };
    [(name, value.into())].into_iter().collect()
}

/// Written anew from RFC 4648, so that a fault of the reader is not in the writer too.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            match place <= group.len() {
                true => text.push(char::from(DIGITS[(bits >> (18 - 6 * place)) as usize & 63])),
                false => text.push('='),
            }
        }
    }
    text
}

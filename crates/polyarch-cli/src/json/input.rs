//! The lines that `batch` and `import` read, and what `--context` means.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use polyarch_client::{Dot, Hlc, SealedContext, Supersede};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// A line of `batch`.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
enum BatchLine {
    Put {
        keyspace: String,
        key: Option<String>,
        key_base64: Option<String>,
        value: Option<String>,
        value_base64: Option<String>,
        context: Option<String>,
        #[serde(default)]
        nothing_seen: bool,
    },
    Delete {
        keyspace: String,
        key: Option<String>,
        key_base64: Option<String>,
        context: Option<String>,
    },
}

/// A change of a batch.
#[derive(Debug, PartialEq, Eq)]
pub struct BatchChange {
    /// The keyspace's name or id.
    pub keyspace: String,
    /// At least one byte.
    pub key: Vec<u8>,
    /// `None` deletes.
    pub value: Option<Vec<u8>>,
    /// What it replaces.
    pub supersede: Supersede,
}

impl BatchChange {
    /// Reads a line of `batch`.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        match serde_json::from_slice(line).map_err(|error| json_problem(&error))? {
            BatchLine::Put { keyspace, key, key_base64, value, value_base64, context, nothing_seen } => Ok(Self {
                keyspace,
                key: key_of(key, key_base64)?,
                value: Some(bytes_of("value", value, value_base64)?),
                supersede: supersede(context.as_deref(), nothing_seen)?,
            }),
            BatchLine::Delete { keyspace, key, key_base64, context } => Ok(Self {
                keyspace,
                key: key_of(key, key_base64)?,
                value: None,
                supersede: supersede(context.as_deref(), false)?,
            }),
        }
    }
}

/// A line of `import`: a value, or siblings as `export` writes them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImportLine {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    siblings: Option<Vec<ImportSibling>>,
    context: Option<String>,
    // It has no meaning at another time.
    #[serde(rename = "token")]
    _token: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImportSibling {
    value: Option<String>,
    value_base64: Option<String>,
    gtid: Option<String>,
    hlc: Option<String>,
    #[serde(rename = "server_id")]
    _server_id: Option<IgnoredAny>,
}

/// A record to import.
#[derive(Debug, PartialEq, Eq)]
pub struct ImportRecord {
    /// At least one byte.
    pub key: Bytes,
    /// At least one.
    pub values: Vec<ImportValue>,
    /// What its reader was shown.
    pub context: Option<SealedContext>,
}

/// A value to import, and what it was where it was read.
#[derive(Debug, PartialEq, Eq)]
pub struct ImportValue {
    /// The value.
    pub value: Bytes,
    /// The write set that put it there.
    pub gtid: Option<Dot>,
    /// That write set's stamp.
    pub hlc: Option<Hlc>,
}

impl ImportRecord {
    /// Reads a line of `import`.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        let line: ImportLine = serde_json::from_slice(line).map_err(|error| json_problem(&error))?;
        let key = key_of(line.key, line.key_base64)?.into();
        let context = line.context.map(|context| context_of(&context)).transpose()?;
        let values = match line.siblings {
            None => {
                let value = bytes_of("value", line.value, line.value_base64)?.into();
                vec![ImportValue { value, gtid: None, hlc: None }]
            }
            Some(_) if line.value.is_some() || line.value_base64.is_some() => {
                return Err("it has both a value and siblings".to_owned());
            }
            Some(siblings) if siblings.is_empty() => {
                return Err("it has no siblings, so there is nothing to put".to_owned());
            }
            Some(siblings) => siblings.into_iter().map(ImportValue::of).collect::<Result<_, _>>()?,
        };
        Ok(Self { key, values, context })
    }
}

impl ImportValue {
    fn of(sibling: ImportSibling) -> Result<Self, String> {
        let gtid = sibling.gtid.map(|text| text.parse().map_err(|error| format!("gtid: {error}")));
        Ok(Self {
            value: bytes_of("value", sibling.value, sibling.value_base64)?.into(),
            gtid: gtid.transpose()?,
            hlc: sibling.hlc.as_deref().map(hlc_of).transpose()?,
        })
    }
}

fn hlc_of(text: &str) -> Result<Hlc, String> {
    let problem = || format!("hlc: `{text}` is no stamp, which looks like 1764950400000.3");
    let (millis, counter) = text.split_once('.').ok_or_else(problem)?;
    let millis: u64 = millis.parse().map_err(|_| problem())?;
    let counter: u16 = counter.parse().map_err(|_| problem())?;
    match millis >> 48 {
        0 => Ok(Hlc::new(millis, counter)),
        _ => Err(problem()),
    }
}

fn bytes_of(field: &str, text: Option<String>, base64: Option<String>) -> Result<Vec<u8>, String> {
    match (text, base64) {
        (Some(text), None) => Ok(text.into_bytes()),
        (None, Some(base64)) => BASE64.decode(base64).map_err(|error| format!("{field}_base64: {error}")),
        (None, None) => Err(format!("it has no `{field}`")),
        (Some(_), Some(_)) => Err(format!("it has both `{field}` and `{field}_base64`")),
    }
}

fn key_of(text: Option<String>, base64: Option<String>) -> Result<Vec<u8>, String> {
    match bytes_of("key", text, base64)? {
        key if key.is_empty() => Err("its key is empty; a key has at least one byte".to_owned()),
        key => Ok(key),
    }
}

/// The least that a context has, whatever it names: its version, the id of its key, and a MAC.
const CONTEXT_BYTES_MIN: usize = 21;

/// What a write replaces: what a context names, nothing, or, if nothing is said, all that the node holds.
pub(crate) fn supersede(context: Option<&str>, nothing_seen: bool) -> Result<Supersede, String> {
    match (context, nothing_seen) {
        (None, false) => Ok(Supersede::Held),
        (None, true) => Ok(Supersede::Nothing),
        (Some(context), false) => context_of(context).map(Supersede::Shown),
        (Some(_), true) => Err("it has both a context and `nothing_seen`".to_owned()),
    }
}

fn context_of(text: &str) -> Result<SealedContext, String> {
    match BASE64.decode(text) {
        Ok(bytes) if bytes.len() >= CONTEXT_BYTES_MIN => Ok(SealedContext::from_bytes(bytes)),
        _ => Err(no_context(text)),
    }
}

/// What programs print for nothing is taken for an attempt to pass on the context of a key that is not there: neither
/// "replace all" nor "replace nothing" may be guessed from it.
fn no_context(text: &str) -> String {
    match text {
        "" | "null" | "None" | "nil" | "undefined" => format!(
            "`{text}` is no context: a key that is not there has none, and who puts it has seen nothing (--nothing-seen, or \
             \"nothing_seen\": true in a batch). Leave the context out to replace all that the node holds"
        ),
        _ => "this is no context as `polyarch get --json` prints it under \"context\"".to_owned(),
    }
}

/// serde_json counts lines and columns within a line of ours.
fn json_problem(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((problem, _)) if error.column() > 0 => format!("column {}: {problem}", error.column()),
        Some((problem, _)) => problem.to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_line_says_what_is_wrong_with_it() {
        for (line, expected) in [
            (r#"{"key":"k"}"#, "it has no `value`"),
            (r#"{"value":"v"}"#, "it has no `key`"),
            (r#"{"key":"k","key_base64":"aw==","value":"v"}"#, "it has both `key` and `key_base64`"),
            (r#"{"key_base64":"k","value":"v"}"#, "key_base64: "),
            (r#"{"key":"","value":"v"}"#, "its key is empty"),
            (r#"{"key":"k","siblings":[]}"#, "no siblings"),
            (r#"{"key":"k","value":"v","siblings":[{"value":"v"}]}"#, "both a value and siblings"),
            (r#"{"key":"k","valeu":"v"}"#, "unknown field `valeu`"),
            (r#"{"key":"k","value":7}"#, "column "),
            (r#"{"key":"k","value":"v","context":"Y3R4"}"#, "this is no context"),
            (r#"{"key":"k","siblings":[{"value":"v","gtid":"3"}]}"#, "gtid: "),
            (r#"{"key":"k","siblings":[{"value":"v","hlc":"281474976710656.0"}]}"#, "is no stamp"),
            (r#"{"key":"k","siblings":[{"value":"v","hlc":"1764950400000"}]}"#, "is no stamp"),
            ("k v", "column 1: expected value"),
        ] {
            let error = ImportRecord::parse(line.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn a_batch_line_is_a_put_or_a_delete() {
        let put = BatchChange::parse(br#"{"op":"put","keyspace":"s","key":"k","value_base64":"/w=="}"#).unwrap();
        let expected = BatchChange {
            keyspace: "s".to_owned(),
            key: b"k".to_vec(),
            value: Some(vec![0xff]),
            supersede: Supersede::Held,
        };
        assert_eq!(put, expected);
        let context = [1; CONTEXT_BYTES_MIN];
        let delete = format!(r#"{{"op":"delete","keyspace":"s","key":"k","context":"{}"}}"#, BASE64.encode(context));
        let delete = BatchChange::parse(delete.as_bytes()).unwrap();
        let shown = Supersede::Shown(SealedContext::from_bytes(context.to_vec()));
        assert_eq!(delete, BatchChange { value: None, supersede: shown, ..expected });
        for (line, expected) in [
            (r#"{"op":"delete","keyspace":"s","key":"k","value":"v"}"#, "unknown field `value`"),
            (r#"{"op":"get","keyspace":"s","key":"k"}"#, "unknown variant `get`"),
            (r#"{"op":"put","key":"k","value":"v"}"#, "missing field `keyspace`"),
            (r#"{"op":"delete","keyspace":"s","key":""}"#, "its key is empty"),
            (r#"{"op":"put","keyspace":"s","key":"k","value":"v","context":"null"}"#, "`null` is no context"),
            (r#"{"op":"put","keyspace":"s","key":"k","value":"v","context":"Y3R4","nothing_seen":true}"#, "both"),
        ] {
            let error = BatchChange::parse(line.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }

    #[test]
    fn the_shortest_context_is_one() {
        let key = polyarch_crdt::ClusterKey { id: 1, secret: [7; 32] };
        let sealed = polyarch_crdt::CausalContext::empty().seal(&key, &[b"k"]);
        let text = BASE64.encode(sealed.as_bytes());
        assert_eq!(supersede(Some(&text), false), Ok(Supersede::Shown(sealed)));
    }

    #[test]
    fn what_is_printed_for_nothing_is_no_context() {
        for text in ["", "null", "None"] {
            let error = supersede(Some(text), false).unwrap_err();
            assert!(error.contains("--nothing-seen"), "{error}");
        }
        for text in ["Y3R4", "???", "bnVsbA=="] {
            let error = supersede(Some(text), false).unwrap_err();
            assert!(error.contains("as `polyarch get --json` prints it"), "{error}");
        }
    }
}

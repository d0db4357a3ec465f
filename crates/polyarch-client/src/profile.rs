use std::env;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use polyarch_transport::{Credentials, CredentialsError};
use serde::Deserialize;

use crate::address::{AddressError, NodeAddress};

/// The environment variable that holds the path of a profile.
pub const PROFILE_ENV: &str = "POLYARCH_PROFILE";

/// Names of the keys of a profile file, for the nearest to a misspelt one.
const KEYS: [&str; 5] = ["nodes", "ca", "cert", "key", "timeout_ms"];

/// A profile file is a few lines; more bytes than this are another file.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Most nodes that a client knows. The others are never lost: each node serves all of the data.
const NODES_MAX: usize = 64;

/// Longest time a call may take, in milliseconds: one hour.
const TIMEOUT_MS_MAX: u64 = 3_600_000;

/// A client's settings: which nodes, as whom, and how long it waits.
///
/// As a file (TOML; relative paths are meant from the file's directory):
///
/// ```toml
/// nodes = ["127.0.0.1:7401", "127.0.0.1:7402"]
/// ca = "ca.pem"
/// cert = "client-ada.pem"
/// key = "client-ada.key"
/// timeout_ms = 5000
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The nodes to talk to, 1 to 64. One is used at a time.
    pub nodes: Vec<NodeAddress>,
    /// The certificate of the cluster's authority, a PEM file.
    pub ca: PathBuf,
    /// The client's certificate, a PEM file. Its name decides what the client may do.
    pub cert: PathBuf,
    /// The certificate's private key, a PEM file that only its owner can read.
    pub key: PathBuf,
    /// How long a call may take in all, retries included. Milliseconds, 1 to 3,600,000, default 5,000.
    pub timeout_ms: u64,
}

/// As the file has it. Unknown keys were found before.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProfileFile {
    nodes: Vec<String>,
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
    #[serde(default = "default_timeout_ms")]
    timeout_ms: u64,
}

const fn default_timeout_ms() -> u64 {
    5_000
}

impl Profile {
    /// A profile with the default timeout. Paths are meant from the working directory.
    pub fn new(
        nodes: impl IntoIterator<Item = NodeAddress>,
        ca: impl Into<PathBuf>,
        cert: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        Self {
            nodes: nodes.into_iter().collect(),
            ca: ca.into(),
            cert: cert.into(),
            key: key.into(),
            timeout_ms: default_timeout_ms(),
        }
    }

    /// Reads a profile file.
    ///
    /// # Errors
    /// [`ProfileError`] names the file, what is wrong and what to do.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ProfileError> {
        let path = path.as_ref();
        let text = read_bounded(path).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => ProfileError::Missing { path: path.to_owned() },
            _ => ProfileError::Unreadable { path: path.to_owned(), cause },
        })?;
        Self::parse(&text, path)
    }

    /// Reads the profile file whose path is in the environment variable [`PROFILE_ENV`].
    ///
    /// # Errors
    /// [`ProfileError::NotSet`] without the variable; else as [`Profile::load`].
    pub fn from_env() -> Result<Self, ProfileError> {
        match env::var_os(PROFILE_ENV) {
            Some(path) if !path.is_empty() => Self::load(Path::new(&path)),
            _ => Err(ProfileError::NotSet),
        }
    }

    /// Reads the text of a profile; `path` is where it came from, for errors and relative paths.
    ///
    /// # Errors
    /// As [`Profile::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ProfileError> {
        let syntax = |error: toml::de::Error| ProfileError::Syntax {
            path: path.to_owned(),
            detail: one_line(error.message()),
            line: line_of(text, error.span()),
        };
        let table: toml::Table = toml::from_str(text).map_err(syntax)?;
        if let Some(key) = table.keys().find(|key| !KEYS.contains(&key.as_str())) {
            return Err(ProfileError::unknown_key(path, key));
        }
        let file: ProfileFile = toml::from_str(text).map_err(syntax)?;
        let directory = path.parent().unwrap_or(Path::new(""));
        let nodes: Result<_, _> = file.nodes.iter().map(|node| node.parse()).collect();
        let profile = Self {
            nodes: nodes.map_err(|cause| ProfileError::Address { path: path.to_owned(), cause })?,
            ca: directory.join(file.ca),
            cert: directory.join(file.cert),
            key: directory.join(file.key),
            timeout_ms: file.timeout_ms,
        };
        profile.check(path)?;
        Ok(profile)
    }

    /// The profile as the text of a file. Paths are written as they are here.
    pub fn to_toml(&self) -> String {
        let mut table = toml::Table::new();
        let nodes: Vec<toml::Value> = self.nodes.iter().map(|node| node.as_str().into()).collect();
        table.insert("nodes".to_owned(), nodes.into());
        for (name, path) in [("ca", &self.ca), ("cert", &self.cert), ("key", &self.key)] {
            table.insert(name.to_owned(), path.to_string_lossy().into_owned().into());
        }
        let timeout_ms = i64::try_from(self.timeout_ms).unwrap_or(i64::MAX);
        table.insert("timeout_ms".to_owned(), timeout_ms.into());
        table.to_string()
    }

    /// Another time for each call.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).clamp(1, TIMEOUT_MS_MAX);
        self
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    pub(crate) fn load_credentials(&self) -> Result<Credentials, CredentialsError> {
        Credentials::load(&self.ca, &self.cert, &self.key)
    }

    /// What both doors, file and code, have to hold to.
    pub(crate) fn check(&self, path: &Path) -> Result<(), ProfileError> {
        if !(1..=NODES_MAX).contains(&self.nodes.len()) {
            return Err(ProfileError::Nodes { path: path.to_owned(), len: self.nodes.len(), max: NODES_MAX });
        }
        if !(1..=TIMEOUT_MS_MAX).contains(&self.timeout_ms) {
            return Err(ProfileError::Timeout {
                path: path.to_owned(),
                timeout_ms: self.timeout_ms,
                max: TIMEOUT_MS_MAX,
            });
        }
        Ok(())
    }
}

/// Why a profile cannot be used. No node was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// No profile was named.
    #[error("no profile is given; set {PROFILE_ENV} to the path of a profile file")]
    NotSet,
    /// The file does not exist.
    #[error("{}: there is no such profile; correct the path, or write one with `nodes`, `ca`, `cert` and `key`", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("{}: the profile cannot be read: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The file is not TOML, or a key is missing or of another type.
    #[error("{}:{line}: {detail}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
        /// Where, from 1 on.
        line: usize,
    },
    /// A key that profiles do not have.
    #[error("{}: unknown key `{key}`; did you mean `{nearest}`?", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The key of profiles that is most like it.
        nearest: &'static str,
    },
    /// A node's address is none.
    #[error("{}: nodes: {cause}", path.display())]
    Address {
        /// The file.
        path: PathBuf,
        /// Which, and how one looks.
        #[source]
        cause: AddressError,
    },
    /// No nodes, or too many.
    #[error("{}: nodes: {len} are named; name 1 to {max}", path.display())]
    Nodes {
        /// The file.
        path: PathBuf,
        /// How many are named.
        len: usize,
        /// How many may be.
        max: usize,
    },
    /// No time for an answer, or more than anybody waits.
    #[error("{}: timeout_ms: {timeout_ms} is not within 1 and {max}", path.display())]
    Timeout {
        /// The file.
        path: PathBuf,
        /// As given.
        timeout_ms: u64,
        /// The limit.
        max: u64,
    },
}

impl ProfileError {
    fn unknown_key(path: &Path, key: &str) -> Self {
        let shown: String = key.chars().take(80).collect();
        let likeness = |name: &&str| strsim::jaro_winkler(name, &shown);
        let nearest = KEYS.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        Self::UnknownKey { path: path.to_owned(), nearest: nearest.expect("there are keys"), key: shown }
    }
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let detail = format!("it has more than {FILE_BYTES_MAX} bytes, which no profile has");
        return Err(io::Error::new(io::ErrorKind::InvalidData, detail));
    }
    Ok(text)
}

fn line_of(text: &str, span: Option<std::ops::Range<usize>>) -> usize {
    let before = span.and_then(|span| text.as_bytes().get(..span.start)).unwrap_or_default();
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

fn one_line(message: &str) -> String {
    message.lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "nodes = [\"127.0.0.1:7401\", \"node-2.example:7401\"]\nca = \"ca.pem\"\ncert = \"/c.pem\"\nkey = \"k/c.key\"\n";

    fn parse(text: &str) -> Result<Profile, ProfileError> {
        Profile::parse(text, Path::new("/etc/polyarch/client.toml"))
    }

    #[test]
    fn paths_are_meant_from_the_files_directory_and_the_timeout_has_a_default() {
        let profile = parse(TEXT).unwrap();
        assert_eq!(profile.ca, Path::new("/etc/polyarch/ca.pem"));
        assert_eq!(profile.cert, Path::new("/c.pem"));
        assert_eq!(profile.key, Path::new("/etc/polyarch/k/c.key"));
        assert_eq!(profile.timeout_ms, 5_000);
        assert_eq!(profile.nodes[1].as_str(), "node-2.example:7401");
    }

    #[test]
    fn a_profile_is_read_as_it_was_written() {
        let profile = Profile { timeout_ms: 70, ..parse(TEXT).unwrap() };
        assert_eq!(parse(&profile.to_toml()).unwrap(), profile);
    }

    #[test]
    fn an_error_names_the_file_and_what_to_do() {
        for (text, expected) in [
            (format!("{TEXT}timeout = 1"), "unknown key `timeout`; did you mean `timeout_ms`?"),
            (format!("{TEXT}node = 1"), "did you mean `nodes`?"),
            (TEXT.replace("ca =", "c ="), "did you mean `ca`?"),
            (TEXT.replace("ca = \"ca.pem\"\n", ""), "missing field `ca`"),
            (TEXT.replace("127.0.0.1:7401", "127.0.0.1"), "nodes: `127.0.0.1` is not a node's address"),
            (TEXT.replace("\"127.0.0.1:7401\", \"node-2.example:7401\"", ""), "name 1 to 64"),
            (format!("{TEXT}timeout_ms = 0"), "timeout_ms: 0 is not within"),
            (format!("{TEXT}timeout_ms = \"soon\""), "client.toml:5: invalid type"),
            (format!("{TEXT}]"), "client.toml:5: "),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.starts_with("/etc/polyarch/client.toml:"), "{error}");
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_or_not_a_profile_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("client.toml");
        assert!(matches!(Profile::load(&path), Err(ProfileError::Missing { path: named }) if named == path));
        std::fs::write(&path, vec![b' '; usize::try_from(FILE_BYTES_MAX).unwrap() + 1]).unwrap();
        assert!(matches!(Profile::load(&path), Err(ProfileError::Unreadable { .. })));
        std::fs::write(&path, TEXT).unwrap();
        assert_eq!(Profile::load(&path).unwrap().ca, directory.path().join("ca.pem"));
    }

    proptest! {
        #[test]
        fn any_text_is_a_profile_or_an_error(text in ".{0,200}") {
            let _ = parse(&text);
        }

        #[test]
        fn any_change_of_a_profile_is_a_profile_or_an_error(
            at in any::<prop::sample::Index>(), cut in 0usize..20, insert in ".{0,20}"
        ) {
            let chars: Vec<char> = TEXT.chars().collect();
            let at = at.index(chars.len());
            let rest = chars.iter().skip(at + cut);
            let text: String = chars[..at].iter().copied().chain(insert.chars()).chain(rest.copied()).collect();
            if let Ok(profile) = parse(&text) {
                prop_assert!(!profile.nodes.is_empty());
                prop_assert_eq!(parse(&profile.to_toml()).unwrap(), profile);
            }
        }
    }
}

//! Who speaks: the one name that a certificate of a cluster carries.
//!
//! An identity is written as a URI, because a URI is the only kind of certificate name that no host name, address or
//! mailbox can be mistaken for:
//!
//! ```text
//! polyarch://CLUSTER/node/SERVER_ID      polyarch://CLUSTER/client/NAME
//! ```
//!
//! There is exactly one spelling of each identity. Two spellings of one name would let one of them pass a check that
//! was written for the other, so parsing refuses whatever printing would not produce: leading zeros, signs, upper case,
//! escapes, trailing slashes.

use std::fmt;
use std::str::FromStr;

const SCHEME: &str = "polyarch://";
const NAME_BYTES_MAX: usize = 63;

/// The name under which a process is known: a node of a cluster, or a client of it.
///
/// ```
/// use polyarch_transport::Identity;
///
/// let identity: Identity = "polyarch://orders/node/3".parse()?;
/// assert_eq!(identity.server_id(), Some(3));
/// assert_eq!(identity.to_string(), "polyarch://orders/node/3");
/// assert!("polyarch://orders/node/03".parse::<Identity>().is_err());
/// # Ok::<(), polyarch_transport::IdentityParseError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// A server that holds data, and the only kind that may speak as a peer.
    Node {
        /// The cluster that it belongs to.
        cluster: ClusterName,
        /// Its number in the cluster: 1 or greater, chosen by the operator.
        server_id: u32,
    },
    /// A program or a person that uses the cluster.
    Client {
        /// The cluster that it may use.
        cluster: ClusterName,
        /// Its name, from which its roles are derived.
        name: ClientName,
    },
}

impl Identity {
    /// The cluster that the identity belongs to.
    pub fn cluster(&self) -> &ClusterName {
        match self {
            Self::Node { cluster, .. } | Self::Client { cluster, .. } => cluster,
        }
    }

    /// The number of the node, or `None` for a client.
    pub fn server_id(&self) -> Option<u32> {
        match self {
            Self::Node { server_id, .. } => Some(*server_id),
            Self::Client { .. } => None,
        }
    }

    /// The name of the client, or `None` for a node.
    pub fn client_name(&self) -> Option<&ClientName> {
        match self {
            Self::Node { .. } => None,
            Self::Client { name, .. } => Some(name),
        }
    }

    /// Whether this is a node.
    pub fn is_node(&self) -> bool {
        self.server_id().is_some()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { cluster, server_id } => write!(f, "{SCHEME}{cluster}/node/{server_id}"),
            Self::Client { cluster, name } => write!(f, "{SCHEME}{cluster}/client/{name}"),
        }
    }
}

impl FromStr for Identity {
    type Err = IdentityParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix(SCHEME).ok_or(IdentityParseError::Shape)?;
        let mut parts = rest.split('/');
        let (Some(cluster), Some(kind), Some(name), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(IdentityParseError::Shape);
        };
        let cluster = cluster.parse()?;
        match kind {
            "node" => Ok(Self::Node { cluster, server_id: parse_server_id(name)? }),
            "client" => Ok(Self::Client { cluster, name: name.parse()? }),
            _ => Err(IdentityParseError::Shape),
        }
    }
}

/// The name of a cluster: 1 to 63 characters of `a-z`, `0-9` and `-`, the first a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(String);

impl ClusterName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ClusterName {
    type Err = IdentityParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_name(text, b"-") { Ok(Self(text.to_owned())) } else { Err(IdentityParseError::ClusterName) }
    }
}

/// The name of a client: 1 to 63 characters of `a-z`, `0-9`, `.`, `_` and `-`, the first a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientName(String);

impl ClientName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClientName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ClientName {
    type Err = IdentityParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if is_name(text, b"._-") { Ok(Self(text.to_owned())) } else { Err(IdentityParseError::ClientName) }
    }
}

/// Why a text is no identity, or no part of one.
///
/// The text itself is left out: it may come from a hostile certificate, and errors end up in logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityParseError {
    /// The text has another form. Write one of the two.
    #[error("not of the form polyarch://CLUSTER/node/SERVER_ID or polyarch://CLUSTER/client/NAME")]
    Shape,
    /// The cluster's name is empty, too long, or has other characters.
    #[error("a cluster name is 1 to 63 characters of a-z, 0-9 and '-', beginning with a letter or digit")]
    ClusterName,
    /// The client's name is empty, too long, or has other characters.
    #[error("a client name is 1 to 63 characters of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit")]
    ClientName,
    /// The number is zero, too great, or not in its plain decimal form.
    #[error("a server id is a decimal number from 1 to 4294967295, without sign or leading zeros")]
    ServerId,
}

fn is_name(text: &str, punctuation: &[u8]) -> bool {
    let is_alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    text.len() <= NAME_BYTES_MAX
        && text.bytes().next().is_some_and(is_alphanumeric)
        && text.bytes().all(|b| is_alphanumeric(b) || punctuation.contains(&b))
}

/// `u32::from_str` also takes `+7` and `007`; the printed form is the only one accepted here.
fn parse_server_id(text: &str) -> Result<u32, IdentityParseError> {
    let server_id: u32 = text.parse().map_err(|_| IdentityParseError::ServerId)?;
    if server_id == 0 || server_id.to_string() != text {
        return Err(IdentityParseError::ServerId);
    }
    Ok(server_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_kinds_are_printed_as_their_uri() {
        for text in
            ["polyarch://orders/node/1", "polyarch://a-1/node/4294967295", "polyarch://0/client/web.front_end-2"]
        {
            assert_eq!(text.parse::<Identity>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn only_the_canonical_spelling_is_an_identity() {
        use IdentityParseError as E;
        let long = "a".repeat(64);
        let cases = [
            ("", E::Shape),
            ("polyarch:/c/node/1", E::Shape),
            ("POLYARCH://c/node/1", E::Shape),
            ("polyarch://c", E::Shape),
            ("polyarch://c/node", E::Shape),
            ("polyarch://c/node/1/", E::Shape),
            ("polyarch://c/node/1/x", E::Shape),
            ("polyarch://c/admin/1", E::Shape),
            ("polyarch://c/ca", E::Shape),
            (" polyarch://c/node/1", E::Shape),
            ("polyarch:///node/1", E::ClusterName),
            ("polyarch://-c/node/1", E::ClusterName),
            ("polyarch://C/node/1", E::ClusterName),
            ("polyarch://c.d/node/1", E::ClusterName),
            ("polyarch://user@c/node/1", E::ClusterName),
            ("polyarch://c:1/node/1", E::ClusterName),
            ("polyarch://c/node/", E::ServerId),
            ("polyarch://c/node/0", E::ServerId),
            ("polyarch://c/node/01", E::ServerId),
            ("polyarch://c/node/+1", E::ServerId),
            ("polyarch://c/node/-1", E::ServerId),
            ("polyarch://c/node/1 ", E::ServerId),
            ("polyarch://c/node/4294967296", E::ServerId),
            ("polyarch://c/node/1?x=y", E::ServerId),
            ("polyarch://c/client/", E::ClientName),
            ("polyarch://c/client/.hidden", E::ClientName),
            ("polyarch://c/client/a%20b", E::ClientName),
            ("polyarch://c/client/é", E::ClientName),
            ("polyarch://c/client/a\0", E::ClientName),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Identity>(), Err(error), "{text:?}");
        }
        assert_eq!(long.parse::<ClusterName>(), Err(E::ClusterName));
        assert_eq!(long.parse::<ClientName>(), Err(E::ClientName));
        assert!(long[1..].parse::<ClusterName>().is_ok());
    }

    proptest! {
        #[test]
        fn every_identity_survives_printing_and_parsing(
            cluster in "[a-z0-9][a-z0-9-]{0,62}", name in "[a-z0-9][a-z0-9._-]{0,62}", server_id in 1..=u32::MAX
        ) {
            let cluster: ClusterName = cluster.parse().unwrap();
            let node = Identity::Node { cluster: cluster.clone(), server_id };
            let client = Identity::Client { cluster, name: name.parse().unwrap() };
            prop_assert_eq!(node.to_string().parse::<Identity>(), Ok(node));
            prop_assert_eq!(client.to_string().parse::<Identity>(), Ok(client));
        }

        #[test]
        fn whatever_parses_is_printed_unchanged(text in "(polyarch://)?[a-z0-9A-Z/+._-]{0,12}/?(node|client)?/?\\PC{0,12}") {
            if let Ok(identity) = text.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), text);
            }
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC*") {
            let _ = text.parse::<Identity>();
            let _ = text.parse::<ClusterName>();
            let _ = text.parse::<ClientName>();
        }
    }
}

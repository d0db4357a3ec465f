//! Every object that `--json` prints, and the lines that `batch` and `import` read.

use polyarch_node::NodeIdentity;
use serde::Serialize;

/// `init`, `join`.
#[derive(Debug, Serialize)]
pub(crate) struct IdentityObject<'a> {
    cluster: &'a str,
    cluster_id: &'a str,
    server_id: u32,
}

impl<'a> From<&'a NodeIdentity> for IdentityObject<'a> {
    fn from(identity: &'a NodeIdentity) -> Self {
        Self { cluster: &identity.cluster, cluster_id: &identity.cluster_id, server_id: identity.server_id }
    }
}

/// `certs show`; moments as in RFC 3339.
#[derive(Debug, Serialize)]
pub(crate) struct CertificateObject {
    pub(crate) name: String,
    pub(crate) not_before: String,
    pub(crate) not_after: String,
    pub(crate) fingerprint_sha256: String,
}

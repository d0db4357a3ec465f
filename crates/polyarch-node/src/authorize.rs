//! The one place that says who may do what.

use std::fmt;

use polyarch_protocol::client::{Refusal, Request};

use crate::config::Roles;

/// What a request does, as far as permission is concerned. Each includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// Reads records or asks how the node is.
    Read,
    /// Changes records.
    Write,
    /// Changes the cluster.
    Administer,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Administer => "administer",
        })
    }
}

impl Verb {
    /// What a request does.
    pub fn of(request: &Request) -> Self {
        match request {
            Request::Get { .. }
            | Request::Scan(_)
            | Request::ListKeyspaces
            | Request::Status
            | Request::Condition
            | Request::Digest
            | Request::ScanBuckets(_)
            | Request::Events { .. } => Self::Read,
            Request::Write(_) => Self::Write,
            Request::CreateKeyspace { .. }
            | Request::CutLink { .. }
            | Request::HealLink { .. }
            | Request::SetTopology(_)
            | Request::ChangeMember { .. }
            | Request::RetryOrigin { .. }
            // It reads much of the log.
            | Request::ChainHash { .. } => Self::Administer,
        }
    }
}

impl Roles {
    /// The most a client of this name may do.
    pub fn of(&self, client_name: &str) -> Option<Verb> {
        let listed = |names: &[String]| names.iter().any(|name| name == client_name || name == "*");
        match () {
            () if listed(&self.admin) => Some(Verb::Administer),
            () if listed(&self.write) => Some(Verb::Write),
            () if listed(&self.read) => Some(Verb::Read),
            () => None,
        }
    }

    /// Whether a client may do `request`.
    ///
    /// # Errors
    /// [`Refusal::Forbidden`] when it may not.
    pub fn authorize(&self, client_name: &str, request: &Request) -> Result<(), Refusal> {
        let verb = Verb::of(request);
        match self.of(client_name) {
            Some(role) if verb <= role => Ok(()),
            _ => Err(Refusal::Forbidden { name: client_name.to_owned(), verb: verb.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_includes_those_below_it_and_no_more() {
        let roles = Roles { admin: vec!["ops".into()], write: vec!["app".into()], read: vec!["*".into()] };
        let create = Request::CreateKeyspace { name: "k".into(), kind: polyarch_protocol::catalog::KeyspaceKind::Lww };
        let write = Request::Write(Default::default());
        let allowed =
            |name: &str| [&create, &write, &Request::Status].map(|request| roles.authorize(name, request).is_ok());
        assert_eq!(allowed("ops"), [true, true, true]);
        assert_eq!(allowed("app"), [false, true, true]);
        assert_eq!(allowed("anyone"), [false, false, true]);
        let retry = Request::RetryOrigin { origin: None };
        assert_eq!([&retry, &Request::Condition].map(|request| roles.authorize("app", request).is_ok()), [false, true]);
        assert!(Roles::default().authorize("app", &Request::Status).is_err(), "who is not listed may nothing");
    }
}

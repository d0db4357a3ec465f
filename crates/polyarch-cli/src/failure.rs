//! The one place where an error becomes an exit status and a line on stderr.

use std::fmt::Display;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use polyarch_node::{ConfigError, RepairDataError, RestoreError, StartError};
use polyarch_store::log::LogError;
use polyarch_store::{
    BackupDirectoryError, DumpError, LockError, OpenError, RepairError, SnapshotError, SurveyError, VerifyError,
};
use polyarch_transport::CredentialsError;
use polyarch_transport::certs::IssueError;

use crate::signals::StopSignal;
use crate::terminal;

/// Why a command ends otherwise than by doing what it was told.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Whoever read our output has seen enough. Not an error.
    BrokenPipe,
    /// Everything else.
    Said { status: Status, message: String, hint: Option<String> },
}

/// How a command ended; the number is the process's exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    Done = 0,
    NotFound = 1,
    Usage = 2,
    Refused = 3,
    Unreachable = 4,
    // What shells say of a process that the signal ended: 128 and its number.
    HungUp = 129,
    Interrupted = 130,
    Terminated = 143,
}

impl Failure {
    /// A key that was asked for is not there.
    pub(crate) fn not_found(message: impl Display) -> Self {
        Self::new(Status::NotFound, message)
    }

    /// What was compared is not the same.
    pub(crate) fn different(message: impl Display) -> Self {
        // One status for all that is a clear answer, and not the one that was hoped for.
        Self::new(Status::NotFound, message)
    }

    /// What the user gave is of no use: arguments, input, configuration; or this machine does not take part.
    pub(crate) fn usage(message: impl Display) -> Self {
        Self::new(Status::Usage, message)
    }

    /// A node, or its data, does not let it be done.
    pub(crate) fn refused(message: impl Display) -> Self {
        Self::new(Status::Refused, message)
    }

    /// There was no answer.
    pub(crate) fn unreachable(message: impl Display) -> Self {
        Self::new(Status::Unreachable, message)
    }

    /// A file of the user's cannot be read or written.
    pub(crate) fn file(path: &Path, error: &io::Error) -> Self {
        Self::usage(format_args!("{}: {error}", path.display()))
    }

    /// The machine refuses what every process needs.
    pub(crate) fn system(what: &str, error: &io::Error) -> Self {
        Self::usage(format_args!("cannot {what}: {error}"))
    }

    /// It was told to end before it was done.
    pub(crate) fn stopped(signal: StopSignal, message: impl Display) -> Self {
        let status = match signal {
            StopSignal::HangUp => Status::HungUp,
            StopSignal::Interrupt => Status::Interrupted,
            StopSignal::Terminate => Status::Terminated,
        };
        Self::new(status, message)
    }

    /// Says besides what to do.
    pub(crate) fn hint(self, hint: impl Display) -> Self {
        match self {
            Self::BrokenPipe => self,
            Self::Said { status, message, .. } => Self::Said { status, message, hint: Some(hint.to_string()) },
        }
    }

    /// The same, unless it says already what to do.
    pub(crate) fn or_hint(self, hint: impl Display) -> Self {
        match self {
            Self::Said { hint: Some(_), .. } => self,
            other => other.hint(hint),
        }
    }

    /// Says before the message how far things got.
    pub(crate) fn after(self, progress: impl Display) -> Self {
        match self {
            Self::BrokenPipe => self,
            Self::Said { status, message, hint } => {
                Self::Said { status, message: format!("{progress}: {message}"), hint }
            }
        }
    }

    fn status(&self) -> Status {
        match self {
            Self::BrokenPipe => Status::Done,
            Self::Said { status, .. } => *status,
        }
    }

    /// Tells the user, and gives the process's exit status.
    pub(crate) fn report(&self) -> ExitCode {
        if let Self::Said { message, hint, .. } = self {
            terminal::complain(message, hint.as_deref());
        }
        ExitCode::from(self.status() as u8)
    }

    fn new(status: Status, message: impl Display) -> Self {
        Self::Said { status, message: one_line(&message.to_string()), hint: None }
    }
}

impl From<polyarch_client::Error> for Failure {
    fn from(error: polyarch_client::Error) -> Self {
        use polyarch_client::{Error, Obstacle, Refusal};
        match &error {
            // Only the client's half of the table in the crate's documentation: what became of a write decides.
            _ if error.is_outcome_unknown() => Self::unreachable(&error),
            Error::Refused(Refusal::NotJoined) => {
                Self::refused(&error).hint("`polyarch status` shows the node's links to other members")
            }
            Error::Refused(_) | Error::SnapshotGivenUp { .. } => Self::refused(&error),
            Error::Unreachable { .. } => match error.obstacle() {
                Some(Obstacle::NotTrusted) => Self::usage(&error).hint(
                    "`ca` of the profile must be the authority of these nodes; `polyarch certs show FILE` says whose a certificate is",
                ),
                Some(Obstacle::Refused) => Self::refused(&error)
                    .hint("the node's log says why; compare the clocks, and `polyarch certs show FILE` on both sides"),
                _ => Self::unreachable(&error)
                    .hint("is a node running at the profile's addresses? `polyarch serve` starts one"),
            },
            Error::Profile(polyarch_client::ProfileError::NotSet) => Self::usage(&error)
                .hint("name one with --profile FILE; `polyarch certs dev` writes one for a cluster on this machine"),
            _ if error.is_setup() => Self::usage(&error),
            _ => Self::unreachable(&error),
        }
    }
}

impl From<polyarch_client::ProfileError> for Failure {
    fn from(error: polyarch_client::ProfileError) -> Self {
        polyarch_client::Error::from(error).into()
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match &error {
            StartError::Credentials(CredentialsError::Missing { .. }) => {
                Self::usage(&error).hint("`polyarch certs` makes authorities and certificates")
            }
            StartError::Credentials(_)
            | StartError::NotANode { .. }
            | StartError::NotFounded { .. }
            | StartError::RestoreUnfinished { .. }
            | StartError::IdentityMissing { .. }
            | StartError::WrongIdentity { .. }
            | StartError::NotVacant { .. }
            | StartError::Identity { .. }
            | StartError::NoPeers => Self::usage(&error),
            StartError::NoMemberTrusted { .. } => Self::usage(&error)
                .hint("all nodes need the same `ca`; `polyarch certs show FILE` says whose a certificate is"),
            StartError::Bind(_) => Self::usage(&error)
                .hint("`listen` in the configuration must be an address of this machine that no other process has"),
            StartError::NoMemberAnswers { .. } => {
                Self::unreachable(&error).hint("start a member with `polyarch serve`, then join again")
            }
            StartError::Open(OpenError::Locked(_) | OpenError::Directory { .. } | OpenError::RepairUnfinished(_)) => {
                Self::refused(&error)
            }
            StartError::Open(open) if open.is_full() => Self::refused(&error)
                .hint("make room on the disk of `data_dir`, then do it again; what was acknowledged is there"),
            StartError::Open(_) => Self::refused(&error).hint(
                "`polyarch verify` looks at a data directory without changing it; `polyarch repair` keeps what is \
                 whole of it and gets the rest from the other members",
            ),
            _ => Self::refused(&error),
        }
    }
}

impl From<CredentialsError> for Failure {
    fn from(error: CredentialsError) -> Self {
        Self::usage(error)
    }
}

impl From<IssueError> for Failure {
    fn from(error: IssueError) -> Self {
        match &error {
            IssueError::Exists { .. } => Self::usage(&error).hint("--overwrite replaces it"),
            IssueError::Authority(CredentialsError::Missing { .. }) => Self::usage(&error)
                .hint("`polyarch certs ca --cluster NAME` makes an authority; --dir says where it is"),
            _ => Self::usage(&error),
        }
    }
}

impl From<VerifyError> for Failure {
    fn from(error: VerifyError) -> Self {
        match &error {
            VerifyError::Directory { .. } => Self::usage(&error).hint("give the `data_dir` of a node's configuration"),
            VerifyError::Locked(LockError::InUse(_)) => Self::refused(&error),
            _ => Self::usage(&error),
        }
    }
}

impl From<BackupDirectoryError> for Failure {
    fn from(error: BackupDirectoryError) -> Self {
        match &error {
            BackupDirectoryError::Locked(LockError::InUse(_)) => Self::refused(&error),
            _ => Self::usage(&error),
        }
    }
}

impl From<SnapshotError> for Failure {
    fn from(error: SnapshotError) -> Self {
        match &error {
            SnapshotError::Io { .. } | SnapshotError::Version(_) => Self::usage(&error),
            _ => Self::refused(&error),
        }
    }
}

impl From<SurveyError> for Failure {
    fn from(error: SurveyError) -> Self {
        match error {
            SurveyError::Snapshot(error) => error.into(),
            error => Self::refused(error).hint("remove the directory and make the backup again"),
        }
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Self {
        match error {
            RestoreError::Start(error) => error.into(),
            RestoreError::Verify(error) => error.into(),
            RestoreError::Snapshot(error) => error.into(),
            RestoreError::Open(error) => StartError::Open(error).into(),
            RestoreError::OtherCluster { .. } | RestoreError::Io { .. } => Self::usage(error),
            RestoreError::OtherAuthority { .. } => {
                Self::usage(error).hint("if the authority was replaced, --other-ca restores it all the same")
            }
            RestoreError::Backup { .. } => {
                Self::refused(error).hint("`polyarch verify` of the backup says more; use another one")
            }
            error => {
                Self::refused(error).hint("the same command does it anew; until then the data directory is refused")
            }
        }
    }
}

impl From<RepairDataError> for Failure {
    fn from(error: RepairDataError) -> Self {
        match error {
            RepairDataError::Start(error) => error.into(),
            RepairDataError::Verify(error) => error.into(),
            RepairDataError::Open(error) => StartError::Open(error).into(),
            RepairDataError::Repair(RepairError::Nothing(_) | RepairError::Io { .. }) => Self::usage(error),
            error => Self::refused(error),
        }
    }
}

impl From<DumpError> for Failure {
    fn from(error: DumpError) -> Self {
        match error {
            DumpError::Directory(error) => error.into(),
            DumpError::Log(LogError::Io { .. }) => Self::usage(error),
            other => Self::refused(other),
        }
    }
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use polyarch_client::{Error, Obstacle, ProfileError, Refusal, Tried};

    use super::*;

    fn address() -> polyarch_client::NodeAddress {
        "127.0.0.1:7401".parse().unwrap()
    }

    #[test]
    fn each_kind_of_client_error_has_its_exit_status() {
        let unreachable = |obstacle| {
            let tried = vec![Tried { node: address(), reason: "so".to_owned(), obstacle }];
            Error::Unreachable { tried }
        };
        let cases = [
            (Error::Refused(Refusal::KeyEmpty), Status::Refused),
            (Error::Refused(Refusal::UnknownKeyspace("k".to_owned())), Status::Refused),
            (Error::Refused(Refusal::StorageFailed("disk".to_owned())), Status::Unreachable),
            (unreachable(Obstacle::NoAnswer), Status::Unreachable),
            (unreachable(Obstacle::NotTrusted), Status::Usage),
            (unreachable(Obstacle::Refused), Status::Refused),
            (Error::TimedOut { node: address(), after: std::time::Duration::from_secs(5) }, Status::Unreachable),
            (Error::OutcomeUnknown { node: address(), cause: "lost".to_owned() }, Status::Unreachable),
            (Error::Protocol { node: address(), cause: "noise".to_owned() }, Status::Unreachable),
            (Error::Profile(ProfileError::NotSet), Status::Usage),
        ];
        for (error, expected) in cases {
            let text = error.to_string();
            assert_eq!(Failure::from(error).status(), expected, "{text}");
        }
    }

    #[test]
    fn a_message_is_one_line_whatever_the_cause_said() {
        let failure = Failure::usage("TOML error\n  |\n1 | x\n\n");
        assert!(matches!(&failure, Failure::Said { message, .. } if message == "TOML error | 1 | x"), "{failure:?}");
    }

    #[test]
    fn a_signal_has_the_exit_status_that_shells_give_it() {
        use StopSignal::{HangUp, Interrupt, Terminate};
        let status = |signal| Failure::stopped(signal, "ended").status() as u8;
        assert_eq!([HangUp, Interrupt, Terminate].map(status), [129, 130, 143]);
    }

    #[test]
    fn a_broken_pipe_is_no_error() {
        assert_eq!(Failure::BrokenPipe.status(), Status::Done);
    }
}

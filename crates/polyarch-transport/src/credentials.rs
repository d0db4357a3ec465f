//! What a process shows to prove who it is, and what it accepts as proof from others.
//!
//! Everything that can be wrong with the three files is found when they are loaded, and said with the file's name and
//! what to do: the same mistake found in a handshake would be a line in the log of the *other* machine.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;

use crate::certificate::{self, CertificateError, CertificateName, CertificateNameError, CertificateSummary};
use crate::identity::{ClusterName, Identity};
use crate::tls::{self, PeerRefusal};

/// A certificate with its private key, and the one authority that is trusted. Cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    shared: Arc<Shared>,
}

struct Shared {
    identity: Identity,
    authority_sha256: String,
    not_after: SystemTime,
    roots: Arc<RootCertStore>,
    certified_key: Arc<CertifiedKey>,
}

impl Credentials {
    /// Loads and checks the authority's certificate, one's own certificate and its private key, all PEM files.
    ///
    /// # Errors
    ///
    /// [`CredentialsError`] says which file is wrong and what to do about it.
    pub fn load(
        authority: impl AsRef<Path>,
        certificate: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Result<Self, CredentialsError> {
        Self::load_at(authority.as_ref(), certificate.as_ref(), key.as_ref(), SystemTime::now())
    }

    fn load_at(
        authority_path: &Path,
        certificate_path: &Path,
        key_path: &Path,
        now: SystemTime,
    ) -> Result<Self, CredentialsError> {
        let (cluster, authority) = load_authority(authority_path, now)?;
        let (identity, not_after, certificate) = load_member(certificate_path, now)?;
        if identity.cluster() != &cluster {
            return Err(CredentialsError::OtherCluster {
                authority_path: authority_path.to_owned(),
                authority: cluster,
                certificate_path: certificate_path.to_owned(),
                certificate: identity.cluster().clone(),
            });
        }

        let authority_sha256 = certificate::fingerprint_sha256(&authority);
        let mut roots = RootCertStore::empty();
        roots
            .add(authority)
            .map_err(|_| CredentialsError::certificate(authority_path, CertificateNameError::Malformed.into()))?;
        let roots = Arc::new(roots);
        tls::check_issued(&roots, &certificate, &identity, unix_time(now)).map_err(|cause| {
            CredentialsError::NotIssued {
                certificate: certificate_path.to_owned(),
                authority: authority_path.to_owned(),
                cause,
            }
        })?;

        let pem = read_key(key_path)?;
        let certified_key = PrivateKeyDer::from_pem_slice(&pem)
            .ok()
            .and_then(|key| tls::provider().key_provider.load_private_key(key).ok())
            .map(|key| CertifiedKey::new(vec![certificate], key))
            .ok_or_else(|| CredentialsError::NotAKey { path: key_path.to_owned() })?;
        certified_key.keys_match().map_err(|_| CredentialsError::KeyMismatch {
            key: key_path.to_owned(),
            certificate: certificate_path.to_owned(),
        })?;
        let certified_key = Arc::new(certified_key);
        Ok(Self { shared: Arc::new(Shared { identity, authority_sha256, not_after, roots, certified_key }) })
    }

    /// Who these credentials prove one to be.
    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    /// SHA-256 over the DER form of the authority's certificate, as 64 lower-case hexadecimal digits: two clusters of one
    /// name have two authorities.
    pub fn authority_sha256(&self) -> &str {
        &self.shared.authority_sha256
    }

    /// The last moment at which others accept them. From then on no new connection succeeds; open ones stay.
    pub fn not_after(&self) -> SystemTime {
        self.shared.not_after
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        Arc::clone(&self.shared.roots)
    }

    pub(crate) fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.shared.certified_key)
    }
}

/// Never prints the key.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("identity", &self.shared.identity)
            .field("not_after", &self.shared.not_after)
            .finish_non_exhaustive()
    }
}

/// Reads the certificate in a PEM file and says whose it is and how long it is valid.
///
/// Nothing is verified: neither who issued it nor whether it is valid now.
///
/// # Errors
///
/// [`CredentialsError::Missing`], [`CredentialsError::Unreadable`], or [`CredentialsError::Certificate`] when the file
/// does not hold exactly one certificate with exactly one name of ours.
pub fn describe(path: impl AsRef<Path>) -> Result<CertificateSummary, CredentialsError> {
    Ok(read_certificate(path.as_ref())?.0)
}

/// Why credentials cannot be used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// A file does not exist. Make it with the `certs` commands, or give its right path.
    #[error("{} does not exist; make it, or give its right path", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file exists and cannot be read. Check its owner and mode.
    #[error("{} cannot be read: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A certificate file holds no certificate of ours.
    #[error("{}: {cause}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: CertificateError,
    },
    /// A certificate is valid no more. Issue a new one.
    #[error("{} expired {} ago; issue a new one", path.display(), days_and_hours(*.ago))]
    Expired {
        /// The file.
        path: PathBuf,
        /// How long ago.
        ago: Duration,
    },
    /// A certificate is not valid yet. Check this machine's clock, and that of the machine that issued it.
    #[error("{} is valid only in {}; check the clock", path.display(), days_and_hours(*.starts_in))]
    NotYetValid {
        /// The file.
        path: PathBuf,
        /// How long from now.
        starts_in: Duration,
    },
    /// Authority and certificate belong to different clusters. Give files of one cluster.
    #[error(
        "{} is for cluster {certificate}, but {} is the authority of cluster {authority}",
        certificate_path.display(), authority_path.display()
    )]
    OtherCluster {
        /// The authority's file.
        authority_path: PathBuf,
        /// The authority's cluster.
        authority: ClusterName,
        /// The certificate's file.
        certificate_path: PathBuf,
        /// The certificate's cluster.
        certificate: ClusterName,
    },
    /// The certificate was not issued by this authority, or not for this use. Issue it anew.
    #[error("{} is not accepted under {}: {cause}", certificate.display(), authority.display())]
    NotIssued {
        /// The certificate's file.
        certificate: PathBuf,
        /// The authority's file.
        authority: PathBuf,
        /// What verification said.
        cause: PeerRefusal,
    },
    /// Others than its owner may read or write a private key. Whoever could read it until now may have copied it.
    #[error("{} is open to group or others (mode {mode:03o}); run: chmod 600 {}", path.display(), path.display())]
    KeyExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file holds no private key in PEM form of a kind that is known.
    #[error("{} holds no usable private key", path.display())]
    NotAKey {
        /// The file.
        path: PathBuf,
    },
    /// A private key belongs to another certificate. Give the two files that were made together.
    #[error("{} is not the key of {}", key.display(), certificate.display())]
    KeyMismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        certificate: PathBuf,
    },
}

impl CredentialsError {
    pub(crate) fn certificate(path: &Path, cause: CertificateError) -> Self {
        match cause {
            CertificateError::Io(cause) => Self::io(path, cause),
            cause => Self::Certificate { path: path.to_owned(), cause },
        }
    }

    fn io(path: &Path, cause: io::Error) -> Self {
        match cause.kind() {
            io::ErrorKind::NotFound => Self::Missing { path: path.to_owned() },
            _ => Self::Unreadable { path: path.to_owned(), cause },
        }
    }
}

/// The authority's cluster and certificate; it is valid at `now`.
///
/// The verifier takes a trusted root as it is, whatever its dates say. So they are checked here.
pub(crate) fn load_authority(
    path: &Path,
    now: SystemTime,
) -> Result<(ClusterName, CertificateDer<'static>), CredentialsError> {
    let (summary, certificate) = load_certificate(path, now)?;
    match summary.name {
        CertificateName::Authority(cluster) => Ok((cluster, certificate)),
        CertificateName::Member(_) => {
            Err(CredentialsError::certificate(path, CertificateNameError::IsNoAuthority.into()))
        }
    }
}

/// The bytes of a private key that nobody but its owner can read.
pub(crate) fn read_key(path: &Path) -> Result<Vec<u8>, CredentialsError> {
    let file = File::open(path).map_err(|cause| CredentialsError::io(path, cause))?;
    // Of the open file, not of the path: it cannot be exchanged in between.
    let metadata = file.metadata().map_err(|cause| CredentialsError::io(path, cause))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(CredentialsError::KeyExposed { path: path.to_owned(), mode });
    }
    certificate::read_bounded(&file).map_err(|cause| CredentialsError::certificate(path, cause))
}

fn load_member(
    path: &Path,
    now: SystemTime,
) -> Result<(Identity, SystemTime, CertificateDer<'static>), CredentialsError> {
    let (summary, certificate) = load_certificate(path, now)?;
    match summary.name {
        CertificateName::Member(identity) => Ok((identity, summary.not_after, certificate)),
        CertificateName::Authority(_) => {
            Err(CredentialsError::certificate(path, CertificateNameError::IsAuthority.into()))
        }
    }
}

fn load_certificate(
    path: &Path,
    now: SystemTime,
) -> Result<(CertificateSummary, CertificateDer<'static>), CredentialsError> {
    let (summary, certificate) = read_certificate(path)?;
    if let Ok(ago) = now.duration_since(summary.not_after)
        && !ago.is_zero()
    {
        return Err(CredentialsError::Expired { path: path.to_owned(), ago });
    }
    if let Ok(starts_in) = summary.not_before.duration_since(now)
        && !starts_in.is_zero()
    {
        return Err(CredentialsError::NotYetValid { path: path.to_owned(), starts_in });
    }
    Ok((summary, certificate))
}

fn read_certificate(path: &Path) -> Result<(CertificateSummary, CertificateDer<'static>), CredentialsError> {
    let refused = |cause| CredentialsError::certificate(path, cause);
    let file = File::open(path).map_err(|cause| CredentialsError::io(path, cause))?;
    let pem = certificate::read_bounded(&file).map_err(refused)?;
    let certificate = certificate::one_certificate(&pem).map_err(refused)?;
    let summary = CertificateSummary::from_der(&certificate).map_err(|cause| refused(cause.into()))?;
    Ok((summary, certificate))
}

fn unix_time(now: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn days_and_hours(duration: Duration) -> String {
    let hours = duration.as_secs() / 3600;
    match (hours / 24, hours % 24) {
        (0, 0) => "less than an hour".to_owned(),
        (0, hours) => format!("{hours} h"),
        (days, hours) => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;
    use crate::certs::{self, CertificateFiles, CertificateOptions};

    fn authority(cluster: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let files =
            certs::create_ca(directory.path(), &cluster.parse().unwrap(), &CertificateOptions::default()).unwrap();
        (directory, files.certificate)
    }

    fn issue(directory: &tempfile::TempDir, identity: &str) -> CertificateFiles {
        certs::issue(directory.path(), &identity.parse().unwrap(), &CertificateOptions::default()).unwrap()
    }

    #[test]
    fn what_was_issued_can_be_loaded_and_says_who_it_is() {
        let (directory, ca) = authority("c");
        for identity in ["polyarch://c/node/4", "polyarch://c/client/ada"] {
            let files = issue(&directory, identity);
            let credentials = Credentials::load(&ca, &files.certificate, &files.key).unwrap();
            assert_eq!(credentials.identity().to_string(), identity);
            assert!(!format!("{credentials:?}").contains("PRIVATE"));
        }
    }

    #[test]
    fn each_missing_file_is_named() {
        let (directory, ca) = authority("c");
        let files = issue(&directory, "polyarch://c/node/4");
        let nowhere = directory.path().join("nowhere");
        for [ca, certificate, key] in [
            [&nowhere, &files.certificate, &files.key],
            [&ca, &nowhere, &files.key],
            [&ca, &files.certificate, &nowhere],
        ] {
            let error = Credentials::load(ca, certificate, key).unwrap_err();
            assert!(matches!(&error, CredentialsError::Missing { path } if path == &nowhere), "{error}");
        }
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let (directory, ca) = authority("c");
        let files = issue(&directory, "polyarch://c/node/4");
        for mode in [0o640, 0o604, 0o620] {
            fs::set_permissions(&files.key, Permissions::from_mode(mode)).unwrap();
            let error = Credentials::load(&ca, &files.certificate, &files.key).unwrap_err();
            assert!(matches!(error, CredentialsError::KeyExposed { mode: seen, .. } if seen == mode), "{error}");
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (directory, ca) = authority("c");
        let (one, two) = (issue(&directory, "polyarch://c/node/1"), issue(&directory, "polyarch://c/node/2"));
        let error = Credentials::load(&ca, &one.certificate, &two.key).unwrap_err();
        assert!(matches!(error, CredentialsError::KeyMismatch { .. }), "{error}");
        let error = Credentials::load(&ca, &one.certificate, &{
            let path = directory.path().join("empty.key");
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            path
        })
        .unwrap_err();
        assert!(matches!(error, CredentialsError::NotAKey { .. }), "{error}");
    }

    #[test]
    fn a_certificate_of_another_authority_of_the_same_name_is_refused() {
        let (_ours, ca) = authority("c");
        let (theirs, _) = authority("c");
        let files = issue(&theirs, "polyarch://c/node/1");
        let error = Credentials::load(&ca, &files.certificate, &files.key).unwrap_err();
        assert!(matches!(error, CredentialsError::NotIssued { cause: PeerRefusal::OtherAuthority, .. }), "{error:?}");
    }

    #[test]
    fn files_of_two_clusters_or_in_the_wrong_order_are_refused() {
        let (directory, ca) = authority("c");
        let (other, _) = authority("d");
        let (ours, theirs) = (issue(&directory, "polyarch://c/node/1"), issue(&other, "polyarch://d/node/1"));
        let error = Credentials::load(&ca, &theirs.certificate, &theirs.key).unwrap_err();
        assert!(matches!(error, CredentialsError::OtherCluster { .. }), "{error}");
        for (authority, certificate) in [(&ours.certificate, &ours.certificate), (&ca, &ca)] {
            let error = Credentials::load(authority, certificate, &ours.key).unwrap_err();
            assert!(
                matches!(&error, CredentialsError::Certificate { cause: CertificateError::Name(_), .. }),
                "{error}"
            );
        }
        let error = Credentials::load(&ca, &ours.key, &ours.key).unwrap_err();
        assert!(
            matches!(&error, CredentialsError::Certificate { cause: CertificateError::NotOneCertificate, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_certificate_counts_only_between_its_dates() {
        let (directory, ca) = authority("c");
        let files = issue(&directory, "polyarch://c/node/1");
        let day = Duration::from_secs(24 * 60 * 60);
        let load = |now| Credentials::load_at(&ca, &files.certificate, &files.key, now);
        assert!(load(SystemTime::now() + day * 800).is_ok());
        let error = load(SystemTime::now() + day * 900).unwrap_err();
        assert!(matches!(&error, CredentialsError::Expired { path, .. } if path == &files.certificate), "{error}");
        let error = load(SystemTime::now() + day * 4000).unwrap_err();
        assert!(matches!(&error, CredentialsError::Expired { path, .. } if path == &ca), "{error}");
        let error = load(SystemTime::now() - day).unwrap_err();
        assert!(matches!(error, CredentialsError::NotYetValid { .. }), "{error}");
    }
}

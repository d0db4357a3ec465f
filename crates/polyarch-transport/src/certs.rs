//! Making certificates: the authority of a cluster, its nodes and its clients.
//!
//! The layout of a directory is fixed, so that every command and every document can name the files:
//!
//! ```text
//! ca.pem  ca.key                      the authority; ca.key is needed to issue and nowhere else
//! node-<SERVER_ID>.pem  .key          one node
//! client-<NAME>.pem  .key             one client
//! ```
//!
//! Keys are ECDSA P-256, created with mode 0600. Nothing is overwritten unless asked for, and a file appears whole or
//! not at all: it is written beside its place, synced, and then linked or renamed into it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;

use crate::certificate::{self, CertificateName, CertificateSummary};
use crate::credentials::{self, CredentialsError};
use crate::identity::{ClusterName, Identity};

/// How long an authority is valid unless told otherwise, in days: ten years.
pub const AUTHORITY_VALIDITY_DAYS: u32 = 3650;

/// How long a node's or client's certificate is valid unless told otherwise, in days.
pub const MEMBER_VALIDITY_DAYS: u32 = 825;

/// So that a machine whose clock is a little behind accepts a certificate made a moment ago.
const BACKDATED: Duration = Duration::from_secs(60 * 60);

/// Beyond it lie years that neither X.509 nor the date type can hold.
const YEAR_9999: Duration = Duration::from_secs(253_370_764_800);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How to make a certificate.
#[derive(Clone, Debug)]
pub struct CertificateOptions {
    /// Validity from [`now`](Self::now) on, in days. Default: none, which means [`AUTHORITY_VALIDITY_DAYS`] or
    /// [`MEMBER_VALIDITY_DAYS`]. A member's certificate never outlives the authority's: the default is cut, and what was
    /// asked for by number is refused if a day or more would have to be.
    pub validity_days: Option<u32>,
    /// Whether existing files are replaced. Default: `false`. **Danger:** a replaced `ca.key` is lost, and with it the
    /// possibility to issue certificates that the running nodes accept.
    pub overwrite: bool,
    /// The moment from which validity counts; certificates are backdated from it by an hour. Default: the clock.
    pub now: SystemTime,
}

impl Default for CertificateOptions {
    fn default() -> Self {
        Self { validity_days: None, overwrite: false, now: SystemTime::now() }
    }
}

/// The two files that were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, readable by anyone: `*.pem`.
    pub certificate: PathBuf,
    /// The private key, readable by its owner only: `*.key`.
    pub key: PathBuf,
}

impl CertificateFiles {
    /// The files of the authority in a directory.
    pub fn of_authority(directory: impl AsRef<Path>) -> Self {
        Self::named(directory.as_ref(), "ca")
    }

    /// The files of a node or client in a directory.
    pub fn of(directory: impl AsRef<Path>, identity: &Identity) -> Self {
        match identity {
            Identity::Node { server_id, .. } => Self::named(directory.as_ref(), &format!("node-{server_id}")),
            Identity::Client { name, .. } => Self::named(directory.as_ref(), &format!("client-{name}")),
        }
    }

    fn named(directory: &Path, stem: &str) -> Self {
        // Not `with_extension`: a client's name may hold dots.
        Self { certificate: directory.join(format!("{stem}.pem")), key: directory.join(format!("{stem}.key")) }
    }
}

/// Makes the authority of a cluster: `ca.pem` and `ca.key`. The directory is created (mode 0700) if it is missing.
///
/// # Errors
///
/// [`IssueError::Exists`] when there is an authority already; everything else is about the disk. No existing file was
/// changed, unless [`overwrite`](CertificateOptions::overwrite) was set.
pub fn create_ca(
    directory: impl AsRef<Path>,
    cluster: &ClusterName,
    options: &CertificateOptions,
) -> Result<CertificateFiles, IssueError> {
    let directory = directory.as_ref();
    create_directory(directory)?;
    let files = CertificateFiles::of_authority(directory);
    check_free(&files, options)?;

    let mut params = params_for(&CertificateName::Authority(cluster.clone()), "polyarch CA")?;
    // Path length 0: the authority issues members, never further authorities.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, options, AUTHORITY_VALIDITY_DAYS, None)?;

    let key = new_key()?;
    let certificate = params.self_signed(&key).map_err(|cause| IssueError::Signing(cause.to_string()))?;
    write_pair(&files, &certificate.pem(), &key.serialize_pem(), options)?;
    Ok(files)
}

/// Issues the certificate of a node or a client, signed by the authority whose `ca.pem` and `ca.key` are in the
/// directory.
///
/// # Errors
///
/// [`IssueError::Authority`] when the authority cannot be loaded, [`IssueError::OtherCluster`] when it belongs to
/// another cluster than the identity, [`IssueError::Exists`] when the identity has a certificate already,
/// [`IssueError::OutlivesAuthority`] when it is asked to be valid for longer. No existing file was changed, unless
/// [`overwrite`](CertificateOptions::overwrite) was set.
pub fn issue(
    directory: impl AsRef<Path>,
    identity: &Identity,
    options: &CertificateOptions,
) -> Result<CertificateFiles, IssueError> {
    let directory = directory.as_ref();
    let authority = Authority::load(directory, options.now)?;
    if identity.cluster() != &authority.cluster {
        return Err(IssueError::OtherCluster { authority: authority.cluster, identity: identity.cluster().clone() });
    }
    let files = CertificateFiles::of(directory, identity);
    check_free(&files, options)?;

    let common_name = match identity {
        Identity::Node { server_id, .. } => format!("node {server_id}"),
        Identity::Client { name, .. } => name.to_string(),
    };
    let mut params = params_for(&CertificateName::Member(identity.clone()), &common_name)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match identity {
        // A node accepts connections and opens them.
        Identity::Node { .. } => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        Identity::Client { .. } => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    set_validity(&mut params, options, MEMBER_VALIDITY_DAYS, Some(authority.not_after))?;

    let key = new_key()?;
    let issuer = Issuer::from_ca_cert_der(&authority.certificate, &authority.key)
        .map_err(|cause| IssueError::Signing(cause.to_string()))?;
    let certificate = params.signed_by(&key, &issuer).map_err(|cause| IssueError::Signing(cause.to_string()))?;
    write_pair(&files, &certificate.pem(), &key.serialize_pem(), options)?;
    Ok(files)
}

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// A file is there already and was left as it is. Use it, choose another directory, or ask for it to be replaced.
    #[error("{} exists already and was left as it is", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The authority in the directory is missing or unusable. Make one first, or give its directory.
    #[error("the authority cannot be used: {0}")]
    Authority(#[source] CredentialsError),
    /// The authority belongs to another cluster. Give the directory of the right one.
    #[error("the authority is that of cluster {authority}, the certificate is for cluster {identity}")]
    OtherCluster {
        /// The authority's cluster.
        authority: ClusterName,
        /// The cluster of the identity that was asked for.
        identity: ClusterName,
    },
    /// The period of validity is zero days, or ends beyond what a certificate can express (the year 9999).
    #[error("a validity of {days} days cannot be expressed; it may be from 1 to {max} days")]
    Validity {
        /// What was asked for, in days.
        days: u32,
        /// The most that there can be.
        max: u32,
    },
    /// The period of validity that was asked for ends after the authority's. Ask for less, or renew the authority.
    #[error("a validity of {days} days outlives the authority, which ends before; it may be from 1 to {max} days")]
    OutlivesAuthority {
        /// What was asked for, in days.
        days: u32,
        /// What is left of the authority, a part of a day counted as one.
        max: u32,
    },
    /// A file or the directory could not be written. Half-written files were removed.
    #[error("{} could not be written: {cause}", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// The certificate could not be put together or signed.
    #[error("the certificate could not be signed: {0}")]
    Signing(String),
}

/// An authority that is about to sign.
struct Authority {
    cluster: ClusterName,
    certificate: CertificateDer<'static>,
    not_after: SystemTime,
    key: KeyPair,
}

impl Authority {
    fn load(directory: &Path, now: SystemTime) -> Result<Self, IssueError> {
        let files = CertificateFiles::of_authority(directory);
        let (cluster, certificate) =
            credentials::load_authority(&files.certificate, now).map_err(IssueError::Authority)?;
        let summary = CertificateSummary::from_der(&certificate)
            .map_err(|cause| IssueError::Authority(CredentialsError::certificate(&files.certificate, cause.into())))?;
        let pem = credentials::read_key(&files.key).map_err(IssueError::Authority)?;
        let key = std::str::from_utf8(&pem)
            .ok()
            .and_then(|pem| KeyPair::from_pem(pem).ok())
            .ok_or_else(|| IssueError::Authority(CredentialsError::NotAKey { path: files.key.clone() }))?;
        let public_key = certificate::public_key_of(&certificate)
            .map_err(|cause| IssueError::Authority(CredentialsError::certificate(&files.certificate, cause.into())))?;
        if key.subject_public_key_info() != public_key {
            return Err(IssueError::Authority(CredentialsError::KeyMismatch {
                key: files.key,
                certificate: files.certificate,
            }));
        }
        Ok(Self { cluster, certificate, not_after: summary.not_after, key })
    }
}

fn new_key() -> Result<KeyPair, IssueError> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(|cause| IssueError::Signing(cause.to_string()))
}

fn params_for(name: &CertificateName, common_name: &str) -> Result<CertificateParams, IssueError> {
    let mut params = CertificateParams::default();
    let uri = name.to_string().try_into().map_err(|cause: rcgen::Error| IssueError::Signing(cause.to_string()))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    // For the eyes of people only: nothing here reads the distinguished name. X.509 bounds each part at 64 characters.
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, name.cluster().as_str());
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

fn set_validity(
    params: &mut CertificateParams,
    options: &CertificateOptions,
    default_days: u32,
    not_after_max: Option<SystemTime>,
) -> Result<(), IssueError> {
    let days = options.validity_days.unwrap_or(default_days);
    let max = days_between(options.now, UNIX_EPOCH + YEAR_9999, |time, day| time / day);
    let refused = IssueError::Validity { days, max };
    let (Some(not_before), Some(not_after)) =
        (options.now.checked_sub(BACKDATED), options.now.checked_add(DAY.saturating_mul(days)))
    else {
        return Err(refused);
    };
    let not_after = not_after_max.map_or(not_after, |max| not_after.min(max));
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let (Ok(before), Ok(after)) = (not_before.duration_since(UNIX_EPOCH), not_after.duration_since(UNIX_EPOCH)) else {
        return Err(refused);
    };
    if days == 0 || after > YEAR_9999 {
        return Err(refused);
    }
    if let (Some(end), Some(days)) = (not_after_max, options.validity_days) {
        // What is cut off is less than a day: members are often made a moment after their authority, for as long.
        let max = days_between(options.now, end, u128::div_ceil);
        if days > max {
            return Err(IssueError::OutlivesAuthority { days, max });
        }
    }
    params.not_before = epoch + before;
    params.not_after = epoch + after;
    Ok(())
}

/// None when `to` is not after `from`.
fn days_between(from: SystemTime, to: SystemTime, divide: fn(u128, u128) -> u128) -> u32 {
    let between = to.duration_since(from).unwrap_or_default();
    u32::try_from(divide(between.as_nanos(), DAY.as_nanos())).unwrap_or(u32::MAX)
}

fn create_directory(directory: &Path) -> Result<(), IssueError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|cause| IssueError::Write { path: directory.to_owned(), cause })
}

fn check_free(files: &CertificateFiles, options: &CertificateOptions) -> Result<(), IssueError> {
    if options.overwrite {
        return Ok(());
    }
    for path in [&files.key, &files.certificate] {
        // A dangling link counts as a file too.
        if fs::symlink_metadata(path).is_ok() {
            return Err(IssueError::Exists { path: path.clone() });
        }
    }
    Ok(())
}

/// The key first: a key without certificate is useless, a certificate without key looks finished.
fn write_pair(
    files: &CertificateFiles,
    certificate: &str,
    key: &str,
    options: &CertificateOptions,
) -> Result<(), IssueError> {
    write_file(&files.key, key, 0o600, options.overwrite)?;
    write_file(&files.certificate, certificate, 0o644, options.overwrite).inspect_err(|_| {
        if !options.overwrite {
            let _ = fs::remove_file(&files.key);
        }
    })
}

fn write_file(path: &Path, content: &str, mode: u32, overwrite: bool) -> Result<(), IssueError> {
    let write_error = |cause| IssueError::Write { path: path.to_owned(), cause };
    let temporary = temporary_beside(path);
    let placed = write_synced(&temporary, content, mode).and_then(|()| {
        if overwrite {
            return fs::rename(&temporary, path);
        }
        // A link, unlike a rename, never replaces a file that appeared meanwhile.
        fs::hard_link(&temporary, path)?;
        fs::remove_file(&temporary)
    });
    if let Err(cause) = placed {
        let _ = fs::remove_file(&temporary);
        return Err(match cause.kind() {
            io::ErrorKind::AlreadyExists if !overwrite => IssueError::Exists { path: path.to_owned() },
            _ => write_error(cause),
        });
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(write_error)
}

fn write_synced(path: &Path, content: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(content.as_bytes())?;
    file.sync_all()
}

fn temporary_beside(path: &Path) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::credentials::describe;

    fn cluster(name: &str) -> ClusterName {
        name.parse().unwrap()
    }

    fn identity(text: &str) -> Identity {
        text.parse().unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn keys_are_readable_by_their_owner_only_and_nothing_else_is_left_behind() {
        let directory = tempfile::tempdir().unwrap();
        let ca = create_ca(directory.path(), &cluster("c"), &CertificateOptions::default()).unwrap();
        let node = issue(directory.path(), &identity("polyarch://c/node/7"), &CertificateOptions::default()).unwrap();
        let client =
            issue(directory.path(), &identity("polyarch://c/client/a.b"), &CertificateOptions::default()).unwrap();
        for files in [&ca, &node, &client] {
            assert_eq!(mode(&files.key), 0o600);
            assert_eq!(mode(&files.certificate) & 0o022, 0);
        }
        let mut names: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        let expected = ["ca.key", "ca.pem", "client-a.b.key", "client-a.b.pem", "node-7.key", "node-7.pem"];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_summary_says_whose_it_is_and_how_long() {
        let directory = tempfile::tempdir().unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let options = CertificateOptions { now, ..Default::default() };
        let ca = create_ca(directory.path(), &cluster("c"), &options).unwrap();
        let node = issue(directory.path(), &identity("polyarch://c/node/7"), &options).unwrap();

        let summary = describe(&ca.certificate).unwrap();
        assert_eq!(summary.name.to_string(), "polyarch://c/ca");
        assert_eq!(summary.not_after, now + DAY * AUTHORITY_VALIDITY_DAYS);
        let summary = describe(&node.certificate).unwrap();
        assert_eq!(summary.name, CertificateName::Member(identity("polyarch://c/node/7")));
        assert_eq!((summary.not_before, summary.not_after), (now - BACKDATED, now + DAY * MEMBER_VALIDITY_DAYS));
        assert_eq!(summary.fingerprint_sha256.len(), 64);
        assert_ne!(summary.fingerprint_sha256, describe(&ca.certificate).unwrap().fingerprint_sha256);
    }

    #[test]
    fn a_member_never_outlives_its_authority() {
        let directory = tempfile::tempdir().unwrap();
        let options = CertificateOptions { validity_days: Some(10), ..Default::default() };
        let ca = create_ca(directory.path(), &cluster("c"), &options).unwrap();
        let node = issue(directory.path(), &identity("polyarch://c/node/1"), &CertificateOptions::default()).unwrap();
        let not_after = |files: &CertificateFiles| describe(&files.certificate).unwrap().not_after;
        assert_eq!(not_after(&node), not_after(&ca));
    }

    #[test]
    fn nothing_is_overwritten_unless_asked() {
        let directory = tempfile::tempdir().unwrap();
        let options = CertificateOptions::default();
        let node = identity("polyarch://c/node/1");
        let ca = create_ca(directory.path(), &cluster("c"), &options).unwrap();
        let files = issue(directory.path(), &node, &options).unwrap();
        let before = [&ca.key, &ca.certificate, &files.key, &files.certificate].map(|path| fs::read(path).unwrap());

        assert!(matches!(create_ca(directory.path(), &cluster("c"), &options), Err(IssueError::Exists { .. })));
        assert!(matches!(issue(directory.path(), &node, &options), Err(IssueError::Exists { .. })));
        // One file of the pair is enough to refuse.
        fs::remove_file(&files.certificate).unwrap();
        assert!(matches!(issue(directory.path(), &node, &options), Err(IssueError::Exists { .. })));
        let after = [&ca.key, &ca.certificate, &files.key].map(|path| fs::read(path).unwrap());
        assert_eq!(before[..3], after);

        let options = CertificateOptions { overwrite: true, ..options };
        issue(directory.path(), &node, &options).unwrap();
        assert_ne!(fs::read(&files.key).unwrap(), before[2]);
        assert_eq!(mode(&files.key), 0o600);
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.key");
        fs::write(&path, "theirs").unwrap();
        assert!(matches!(write_file(&path, "ours", 0o600, false), Err(IssueError::Exists { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "theirs");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_authority_issues_for_its_own_cluster_only() {
        let directory = tempfile::tempdir().unwrap();
        let options = CertificateOptions::default();
        create_ca(directory.path(), &cluster("c"), &options).unwrap();
        let refused = issue(directory.path(), &identity("polyarch://d/node/1"), &options);
        assert!(matches!(refused, Err(IssueError::OtherCluster { .. })), "{refused:?}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn without_an_authority_or_with_another_key_nothing_is_issued() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = CertificateOptions::default();
        let node = identity("polyarch://c/node/1");
        let refused = issue(one.path(), &node, &options);
        assert!(matches!(refused, Err(IssueError::Authority(CredentialsError::Missing { .. }))), "{refused:?}");

        let ca = create_ca(one.path(), &cluster("c"), &options).unwrap();
        let other = create_ca(two.path(), &cluster("c"), &options).unwrap();
        fs::copy(&other.key, &ca.key).unwrap();
        let refused = issue(one.path(), &node, &options);
        assert!(matches!(refused, Err(IssueError::Authority(CredentialsError::KeyMismatch { .. }))), "{refused:?}");
    }

    #[test]
    fn a_validity_that_cannot_be_expressed_is_refused_with_the_most_that_can() {
        let directory = tempfile::tempdir().unwrap();
        let options = |days| CertificateOptions { validity_days: Some(days), ..Default::default() };
        let mut most = 0;
        for days in [0, u32::MAX] {
            let refused = create_ca(directory.path(), &cluster("c"), &options(days)).unwrap_err();
            let IssueError::Validity { max, .. } = refused else { panic!("{refused}") };
            most = max;
        }
        create_ca(directory.path(), &cluster("c"), &options(most)).unwrap();
    }

    #[test]
    fn a_member_that_is_to_outlive_its_authority_is_refused_with_what_is_left_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let options = |days, later| CertificateOptions { validity_days: Some(days), now: now + later, overwrite: true };
        create_ca(directory.path(), &cluster("c"), &options(10, Duration::ZERO)).unwrap();
        let node = identity("polyarch://c/node/1");
        for (days, later, expected) in [
            (10, Duration::ZERO, None),
            (10, Duration::from_secs(60), None),
            (11, Duration::ZERO, Some(10)),
            (100_000, DAY * 4, Some(6)),
        ] {
            let issued = issue(directory.path(), &node, &options(days, later));
            let refused = match &issued {
                Err(IssueError::OutlivesAuthority { max, .. }) => Some(*max),
                _ => None,
            };
            assert_eq!((refused, issued.is_err()), (expected, expected.is_some()), "{days}, {later:?}: {issued:?}");
        }
    }
}

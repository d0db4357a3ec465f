//! From a backup to a data directory: what a node that lost its disk, or a whole cluster, begins from.
//!
//! `restoring.toml` is written before anything else, and is `identity.toml` as it will be: to give it
//! that name is the last step. So a directory that a crash left half restored is known as one, by the
//! next `restore`, which does it anew, and by `serve`, which refuses it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use polyarch_protocol::peer::ClusterId;
use polyarch_store::files::{Directory, Files};
use polyarch_store::{
    AdoptError, BackupManifest, BackupReport, DirectoryLock, DiskStore, JoinError, JoinProgress, LockError, OpenError,
    SnapshotError, SnapshotReceiver, VerifyError, verify_backup,
};

use crate::config::NodeConfig;
use crate::founding::{IDENTITY_FILE, NodeIdentity, check_vacant, create_directory, credentials, identity};
use crate::node::{StartError, store_config};

/// `identity.toml` of a directory that is not restored yet.
pub(crate) const RESTORING_FILE: &str = "restoring.toml";

/// What [`restore`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Whose the directory is now.
    pub identity: NodeIdentity,
    /// What it was made of.
    pub manifest: BackupManifest,
}

/// Why nothing was restored. The backup is as it was in every case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The configuration, the certificate or the data directory is of no use.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The backup cannot be read, or is none.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The backup is not well. The data directory is as it was.
    #[error("{} is not well, and nothing was restored: {problems}", backup.display())]
    Backup {
        /// Its directory.
        backup: PathBuf,
        /// What is wrong with it.
        problems: String,
    },
    /// The backup is another cluster's. The data directory is as it was.
    #[error("{} is a backup of cluster {found}, but the certificate is of cluster {wanted}", backup.display())]
    OtherCluster {
        /// Its directory.
        backup: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose certificate it is.
        wanted: String,
    },
    /// The backup is of a cluster of the same name with another authority. The data directory is as it was.
    #[error(
        "{} is a backup of a cluster {cluster} whose authority has the fingerprint {found}, but `ca` of the configuration has {wanted}: \
         it is another cluster of that name, or its authority was replaced since", backup.display()
    )]
    OtherAuthority {
        /// Its directory.
        backup: PathBuf,
        /// The cluster's name.
        cluster: String,
        /// The fingerprint in the backup.
        found: String,
        /// That of the configuration.
        wanted: String,
    },
    /// The data directory cannot be written. It is not restored.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has the data directory.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// The store in the data directory does not open. It is not restored.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The backup's file cannot be read any more. The data directory is not restored.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// It was told to stop, or the data could not be written. The data directory is not restored.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The data were written, and not made current. The data directory is not restored.
    #[error(transparent)]
    Adopt(#[from] AdoptError),
}

impl RestoreError {
    /// Whether it was told to stop.
    pub fn is_stopped(&self) -> bool {
        matches!(self, Self::Join(JoinError::Stopped))
    }
}

/// What is restored.
#[derive(Debug, Clone)]
pub struct RestoreSource {
    /// The directory of a backup.
    pub backup: PathBuf,
    /// Whether it may have been made while the cluster had another authority than in the configuration.
    pub of_any_authority: bool,
}

/// Makes the empty or missing data directory of `config` that of its node, with all that the backup in
/// `source` holds: for the server id of the certificate, whatever node the backup was made of. The backup
/// is verified first. Asks `goes_on` every few thousand records. Takes as long as to read the backup a
/// few times and write it once; memory as for a join.
///
/// A directory in which an earlier restore did not end is emptied first.
///
/// # Errors
/// See [`RestoreError`]. A directory that is not restored is refused by a start, and by everything else
/// but another `restore`.
pub fn restore(
    config: &NodeConfig,
    source: &RestoreSource,
    mut goes_on: impl FnMut(&JoinProgress) -> bool,
) -> Result<Restored, RestoreError> {
    let (credentials, cluster, server_id) = credentials(config)?;
    let directory = &config.data_dir;
    let is_begun = restore_is_unfinished(directory)?;
    if !is_begun {
        check_vacant(directory)?;
    }
    let (manifest, cluster_id) = verified(&source.backup, &cluster)?;
    if !source.of_any_authority {
        check_authority(&source.backup, &manifest, credentials.authority_sha256())?;
    }
    let identity = identity(cluster, cluster_id, server_id);
    match is_begun {
        true => clear(directory)?,
        false => create_directory(directory)?,
    }
    identity.write_as(RESTORING_FILE, directory)?;
    build(config, &source.backup, &mut goes_on)?;
    commit(directory)?;
    Ok(Restored { identity, manifest })
}

/// Whether a restore into this directory was begun and did not end.
///
/// # Errors
/// When `identity.toml` is there and cannot be understood.
pub fn restore_is_unfinished(directory: &Path) -> Result<bool, StartError> {
    let is_there = |name: &str| directory.join(name).exists();
    // The second is that of a crash within writing the first.
    let is_begun = is_there(RESTORING_FILE) || is_there(&format!("{RESTORING_FILE}.tmp"));
    Ok(is_begun && NodeIdentity::read(directory)?.is_none())
}

/// Checks the backup, and whose it is.
fn verified(backup: &Path, cluster: &str) -> Result<(BackupManifest, ClusterId), RestoreError> {
    let BackupReport { manifest, survey, problems, .. } = verify_backup(backup)?;
    match (manifest, survey) {
        (Some(manifest), Some(_)) if problems.is_empty() && manifest.cluster != cluster => {
            Err(RestoreError::OtherCluster {
                backup: backup.to_owned(),
                found: manifest.cluster,
                wanted: cluster.to_owned(),
            })
        }
        (Some(manifest), Some(survey)) if problems.is_empty() => Ok((manifest, survey.begin.cluster_id)),
        _ => {
            let problems = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            Err(RestoreError::Backup { backup: backup.to_owned(), problems })
        }
    }
}

/// A cluster's name is no more than a word, and its id is a random number that no certificate has.
fn check_authority(backup: &Path, manifest: &BackupManifest, wanted: &str) -> Result<(), RestoreError> {
    match &manifest.authority {
        Some(found) if found != wanted => Err(RestoreError::OtherAuthority {
            backup: backup.to_owned(),
            cluster: manifest.cluster.clone(),
            found: found.clone(),
            wanted: wanted.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Removes what an earlier restore left, but for the file that says so, and the lock.
fn clear(directory: &Path) -> Result<(), RestoreError> {
    let _lock = DirectoryLock::acquire(directory)?;
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| RestoreError::Io { path, source }
    };
    for entry in fs::read_dir(directory).map_err(io(directory))? {
        let entry = entry.map_err(io(directory))?;
        let path = entry.path();
        if entry.file_name() == RESTORING_FILE || entry.file_name() == "LOCK" {
            continue;
        }
        let removed = match entry.file_type().map_err(io(&path))?.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        removed.map_err(io(&path))?;
    }
    Ok(())
}

/// An empty store becomes what the backup is, by the way that a snapshot of a peer's comes into a store.
fn build(
    config: &NodeConfig,
    backup: &Path,
    goes_on: &mut dyn FnMut(&JoinProgress) -> bool,
) -> Result<(), RestoreError> {
    let io = |source| RestoreError::Io { path: backup.to_owned(), source };
    let files = Directory::existing(backup).map_err(io)?;
    let no_longer = || RestoreError::Backup { backup: backup.to_owned(), problems: "it has changed".to_owned() };
    let snapshot = SnapshotReceiver::read_backup(files)?.ok_or_else(no_longer)?;
    let (mut store, frontier, _) = DiskStore::open_directory(&config.data_dir, &store_config(config))?;
    store.sync().map_err(OpenError::Log)?;
    let job = store.begin_join(snapshot, &frontier).map_err(|_| no_longer())?;
    let joined = job.run(goes_on)?;
    let _restored = store.adopt(joined, &frontier)?;
    store.publish_staged();
    if let Some(Err(error)) = store.take_retired().map(polyarch_store::RetiredState::remove) {
        tracing::warn!(%error, "the empty state cannot be removed; the first start does");
    }
    Ok(())
}

/// The step behind which the directory is restored.
fn commit(directory: &Path) -> Result<(), RestoreError> {
    let io = |source| RestoreError::Io { path: directory.join(IDENTITY_FILE), source };
    let files = Directory::existing(directory).map_err(io)?;
    files.rename(RESTORING_FILE, IDENTITY_FILE).map_err(io)?;
    files.sync_directory().map_err(io)
}

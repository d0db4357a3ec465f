//! Offline work on a damaged data directory, for the node that it belongs to.

use std::io;

use polyarch_crdt::Dot;
use polyarch_protocol::{LogPosition, LogReadError, WriteSet, WriteSetError};
use polyarch_store::log::LogError;
use polyarch_store::{
    DiskStore, LeftOut, OpenError, Parting, RepairError, RepairReport, Salvage, VerifyConfig, VerifyError,
    VerifyReport, verify,
};

use crate::config::NodeConfig;
use crate::founding::identified;
use crate::node::{StartError, store_config};

/// Bytes of write sets that are read at once.
const BYTES_AT_ONCE: usize = 1 << 20;

/// Why a data directory was not repaired, or what waits in it was not taken out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairDataError {
    /// The configuration, the certificate and the data directory do not fit together.
    #[error(transparent)]
    Start(#[from] StartError),
    /// It could not be verified.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// See there.
    #[error(transparent)]
    Repair(#[from] RepairError),
    /// The data do not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What waits cannot be read.
    #[error("cannot read the write sets that wait: {0}")]
    Salvage(#[from] LogError),
    /// What waits cannot be read.
    #[error("cannot read the write sets that wait: {0}")]
    SalvageRead(#[from] LogReadError),
    /// Nobody has looked yet whether others have what they follow on.
    #[error(
        "{0} waits and may be applied at once; serve the node, and abandon what still waits when an alarm has said that no \
         linked member has what it follows on"
    )]
    Due(Dot),
    /// What waits is of a newer version.
    #[error("a write set that waits cannot be read, and none was taken out: {0}")]
    WriteSet(#[from] WriteSetError),
    /// The caller did not take it. It still waits.
    #[error("cannot write what waits: {0}")]
    LeftOut(io::Error),
    /// It was taken, and cannot be removed. It still waits.
    #[error("cannot remove what waits: {0}")]
    Remove(io::Error),
}

/// Verifies the data directory of a node, and that it is the node's.
///
/// # Errors
/// When it could not be verified, or is not the node's; whatever else is wrong with it is in the report.
pub fn survey(config: &NodeConfig) -> Result<VerifyReport, RepairDataError> {
    identified(config)?;
    Ok(verify(&config.data_dir, &VerifyConfig::default())?)
}

/// Repairs the data directory of a node, or takes one side of a fork in it: see [`polyarch_store::repair()`].
///
/// # Errors
/// See [`RepairDataError`].
pub fn repair(
    config: &NodeConfig,
    parting: Option<Parting<'_>>,
    goes_on: impl FnMut(u64) -> bool,
) -> Result<RepairReport, RepairDataError> {
    identified(config)?;
    Ok(polyarch_store::repair(&config.data_dir, &store_config(config), parting, goes_on)?)
}

/// Ends a repair of a node's data directory that was cut short when all was made; `None` when there is none.
///
/// # Errors
/// See [`RepairDataError`].
pub fn resume_repair(config: &NodeConfig) -> Result<Option<RepairReport>, RepairDataError> {
    identified(config)?;
    Ok(polyarch_store::resume_repair(&config.data_dir, &store_config(config))?)
}

/// Gives away the write sets that a repair left waiting and that are not applied, and removes them: nobody
/// has what they follow on. `None` when nothing waits; else how many were given.
///
/// # Errors
/// See [`RepairDataError`].
pub fn abandon_salvage(config: &NodeConfig, left_out: &mut dyn LeftOut) -> Result<Option<u64>, RepairDataError> {
    identified(config)?;
    let (_store, frontier, _) = DiskStore::open_directory(&config.data_dir, &store_config(config))?;
    let Some(salvage) = Salvage::open(&config.data_dir)? else { return Ok(None) };
    let (mut at, mut given) = (LogPosition::default(), 0);
    loop {
        let (write_sets, next) = salvage.read(at, BYTES_AT_ONCE)?;
        if write_sets.is_empty() {
            break;
        }
        at = next;
        for bytes in write_sets {
            let write_set = WriteSet::decode(&bytes)?;
            let applied = frontier.heads.applied();
            let is_next = write_set.dot.seq == applied.seq(write_set.dot.origin) + 1;
            if is_next && applied.includes_all(write_set.dependencies.applied()) {
                return Err(RepairDataError::Due(write_set.dot));
            }
            if !applied.includes(write_set.dot) {
                left_out.take(&write_set).map_err(RepairDataError::LeftOut)?;
                given += 1;
            }
        }
    }
    left_out.sync().map_err(RepairDataError::LeftOut)?;
    salvage.remove().map_err(RepairDataError::Remove)?;
    Ok(Some(given))
}

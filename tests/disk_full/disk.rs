use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::namespace::{mount_tmpfs, unmount};
use crate::support::Cluster;

/// Bytes of ballast written at once, until there is no room for them either.
const PIECES: [usize; 3] = [64 << 10, 4 << 10, 1];

/// A small disk of a node's own, with what else takes its room. When it is dropped nothing new finds it, and whoever is
/// still there keeps it.
pub(crate) struct SmallDisk {
    mounted_at: PathBuf,
    ballast: PathBuf,
}

impl SmallDisk {
    /// Puts the data directory of a node that is not founded yet on an empty disk of so many MiB.
    pub(crate) fn under(cluster: &mut Cluster, server_id: u32, mib: u64) -> Self {
        let mounted_at = cluster.directory().join(format!("disk-{server_id}"));
        let data = cluster.node(server_id).data_dir();
        fs::create_dir(&mounted_at).expect("a mount point");
        mount_tmpfs(mib, &mounted_at);
        fs::create_dir(mounted_at.join("data")).expect("there is room");
        fs::create_dir_all(data.parent().expect("it lies in the cluster's directory")).expect("there is room");
        symlink(mounted_at.join("data"), data).expect("the data directory is not there yet");
        Self { ballast: mounted_at.join("ballast"), mounted_at }
    }

    /// Takes so much of its room.
    pub(crate) fn take(&self, mib: usize) {
        let mut ballast = self.open();
        (0..mib).for_each(|_| ballast.write_all(&vec![b'b'; 1 << 20]).expect("there is room"));
    }

    /// Takes all the room that there is, and gives back so many bytes of it.
    pub(crate) fn take_all_but(&self, bytes: u64) {
        let mut ballast = self.open();
        for piece in PIECES {
            let piece = vec![b'b'; piece];
            loop {
                match ballast.write(&piece) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("the ballast: {error}"),
                }
            }
        }
        let taken = ballast.metadata().expect("it is open").len();
        ballast.set_len(taken.saturating_sub(bytes)).expect("a file can be cut");
    }

    /// Gives back all that was taken.
    pub(crate) fn give_back(&self) {
        fs::remove_file(&self.ballast).expect("there is ballast");
    }

    fn open(&self) -> File {
        File::options().create(true).append(true).open(&self.ballast).expect("the ballast can be opened")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.mounted_at);
    }
}

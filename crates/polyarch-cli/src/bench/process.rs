//! What the system says of a process: CPU time and memory from `/proc`, disk from its directory.
//!
//! Each function gives `None` where the system does not say, so that a figure is missing and not wrong.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// What Linux counts CPU time in towards programs, whatever its own clock does.
const TICKS_PER_SECOND: u64 = 100;

/// User and system time of a process so far, threads that have ended included.
pub(super) fn cpu(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    ticks(&stat).map(|ticks| Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
}

/// Resident memory of a process.
pub(super) fn rss_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// What a directory and all in it take on the disk. Files that go meanwhile are left out.
pub(super) fn disk_bytes(directory: &Path) -> Option<u64> {
    let entries = fs::read_dir(directory).ok()?;
    let sizes = entries.flatten().filter_map(|entry| {
        let metadata = entry.metadata().ok()?;
        match metadata.is_dir() {
            true => disk_bytes(&entry.path()),
            false => Some(metadata.blocks() * 512),
        }
    });
    Some(sizes.sum())
}

/// The kind of file system that a directory is on, as `ext4` or `tmpfs`.
pub(super) fn file_system(directory: &Path) -> Option<String> {
    let directory = fs::canonicalize(directory).ok()?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    kind_at(&mounts, &directory)
}

/// The mount that is nearest above the directory, and the last of several at one place.
fn kind_at(mounts: &str, directory: &Path) -> Option<String> {
    let mut nearest: Option<(usize, &str)> = None;
    for mount in mounts.lines() {
        let mut words = mount.split(' ').skip(1);
        let (Some(at), Some(kind)) = (words.next(), words.next()) else { continue };
        let is_nearer = nearest.is_none_or(|(len, _)| at.len() >= len);
        if is_nearer && directory.starts_with(at) {
            nearest = Some((at.len(), kind));
        }
    }
    nearest.map(|(_, kind)| kind.to_owned())
}

/// Fields 14 and 15. The second field is the program's name, which may hold blanks and parentheses.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194304 100 0 0 0 25 17 0 0 20 0 1 0 100 0 0";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("7 (a) S 1"), None);
    }

    #[test]
    fn a_process_that_is_gone_has_no_figures() {
        assert!(cpu(std::process::id()).is_some());
        assert!(rss_bytes(std::process::id()).is_some_and(|bytes| bytes > 0));
        assert_eq!(cpu(u32::MAX), None);
        assert_eq!(disk_bytes(Path::new("/nowhere/at/all")), None);
    }

    #[test]
    fn the_file_system_is_that_of_the_nearest_mount() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp/disk xfs rw 0 0\n";
        let kind = |path| kind_at(mounts, Path::new(path)).unwrap();
        assert_eq!(
            [kind("/home"), kind("/tmp/x"), kind("/tmp/disk/y"), kind("/tmpx")],
            ["ext4", "tmpfs", "xfs", "ext4"]
        );
    }
}

//! Disks whose power can be cut.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An ext4 file system in a file, mounted while this lives. Needs root, loop devices and e2fsprogs.
pub(crate) struct Disk {
    image: PathBuf,
    mounted_at: PathBuf,
}

impl Disk {
    /// Makes a disk of so many MiB, `DIRECTORY/NAME.img`, and mounts it at `DIRECTORY/NAME`.
    pub(crate) fn make(directory: &Path, name: &str, mib: u64) -> Self {
        let disk = Self { image: directory.join(format!("{name}.img")), mounted_at: directory.join(name) };
        let file = File::create(&disk.image).expect("a file for the image");
        file.set_len(mib << 20).expect("a sparse file");
        fs::create_dir(&disk.mounted_at).expect("a mount point");
        run("mkfs.ext4", &["-q", "-F", "-m", "0", text(&disk.image)], &[0]);
        disk.mount();
        disk
    }

    fn mount(&self) {
        run("mount", &["-o", "loop", text(&self.image), text(&self.mounted_at)], &[0]);
    }

    /// From this moment on nothing reaches the disk any more.
    #[expect(unsafe_code, reason = "the only way to call an ioctl")]
    pub(crate) fn cut_power(&self) {
        /// `_IOR('X', 125, __u32)`, and "do not flush the journal".
        const FS_IOC_SHUTDOWN: libc::c_ulong = 0x8004_587d;
        const NO_LOG_FLUSH: u32 = 2;
        let root = File::open(&self.mounted_at).expect("the mount point can be opened");
        // SAFETY: the descriptor is open, and the request reads one u32.
        let result = unsafe { libc::ioctl(root.as_raw_fd(), FS_IOC_SHUTDOWN, &NO_LOG_FLUSH) };
        assert_eq!(result, 0, "cutting the power: {}", std::io::Error::last_os_error());
    }

    /// What happens when the machine starts again.
    pub(crate) fn power_on(&self) {
        run("umount", &[text(&self.mounted_at)], &[0]);
        // 1: errors were corrected, as the journal's replay is.
        run("e2fsck", &["-f", "-y", text(&self.image)], &[0, 1]);
        self.mount();
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.mounted_at
    }

    /// Takes the room that there is with a file, but for so many bytes.
    pub(crate) fn take_all_but(&self, bytes: u64) {
        let said = Command::new("stat").args(["-f", "-c", "%a %S", text(&self.mounted_at)]).output();
        let said = String::from_utf8(said.expect("every Linux has stat").stdout).expect("it is text");
        let numbers: Vec<u64> = said.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        let free: u64 = numbers.iter().product();
        if let Some(taken) = free.checked_sub(bytes).filter(|taken| *taken > 0) {
            // 1: what writes meanwhile was faster, and the room is taken all the same.
            run("fallocate", &["-l", &taken.to_string(), text(&self.ballast())], &[0, 1]);
        }
    }

    /// Gives back what was taken, for good: a power cut does not bring it back.
    pub(crate) fn give_back(&self) {
        let _ = fs::remove_file(self.ballast());
        let root = File::open(&self.mounted_at).expect("the mount point can be opened");
        root.sync_all().expect("the disk works");
    }

    fn ballast(&self) -> PathBuf {
        self.mounted_at.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.mounted_at).output();
    }
}

fn run(program: &str, arguments: &[&str], expected: &[i32]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let code = output.status.code().unwrap_or(-1);
    assert!(expected.contains(&code), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}

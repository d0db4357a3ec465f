//! A process that may mount file systems, for tests that anybody may run.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// Set in the process that may mount. A test that finds it runs its story.
const INSIDE: &str = "POLYARCH_MAY_MOUNT";
/// Leaves these tests out, for a system in which nothing may be mounted.
const SKIP: &str = "POLYARCH_SKIP_MOUNTS";

/// A namespace of users too, in which anybody may mount; where the kernel forbids that, root needs none.
const WAYS: [&[&str]; 2] = [&["--user", "--map-root-user", "--mount"], &["--mount"]];

/// Runs this test once more, as a process of its own in a mount namespace of its own, and `story` there. What it mounts
/// goes with it, however it ends.
pub(crate) fn run_apart(test: &str, story: impl AsyncFnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        return runtime.expect("a runtime can be made").block_on(story());
    }
    if std::env::var_os(SKIP).is_some() {
        eprintln!("NOT RUN, as {SKIP} says: {test}");
        return;
    }
    let way = WAYS.into_iter().find(|way| may_mount(way)).unwrap_or_else(|| {
        panic!(
            "this system lets nobody but root make namespaces, or nobody at all: `unshare -rm` and `mount` are needed. \
             Allow them (kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns), run this test \
             as root, or set {SKIP}=1 to leave it out"
        )
    });
    let executable = std::env::current_exe().expect("a process knows its program");
    let mut again = Command::new("unshare");
    again.args(way).arg(executable).args(["--exact", test, "--nocapture"]).env(INSIDE, "1");
    let output = again.output().expect("it was there a moment ago");
    // By way of the macros, so that it is shown with the rest of the test.
    println!("{}", String::from_utf8_lossy(&output.stdout));
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "see what it says above");
}

fn may_mount(way: &[&str]) -> bool {
    let directory = TempDir::with_prefix("polyarch-test-").expect("a temporary directory can be made");
    let mut command = Command::new("unshare");
    command.args(way).args(["mount", "-t", "tmpfs", "tmpfs"]).arg(directory.path());
    command.output().is_ok_and(|output| output.status.success())
}

/// Mounts an empty file system of so many MiB.
pub(crate) fn mount_tmpfs(mib: u64, at: &Path) {
    let output = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"]).arg(at).output();
    let output = output.expect("every Linux has mount");
    assert!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr));
}

/// Takes a file system away, once nobody uses it any more. It would go with the namespace; but what it is mounted on
/// could not be removed before.
pub(crate) fn unmount(at: &Path) {
    let _ = Command::new("umount").arg("--lazy").arg(at).output();
}

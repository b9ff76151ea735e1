//! The guest's mounts: the kernel's file systems, the root disk, and the move from one root to
//! the other.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::Path;

use rustix::mount::{MountFlags, mount, mount_move};

use super::{BootError, Options, failed};

const NEW_ROOT: &str = "/root-disk";

/// Mounts what the kernel itself provides: needed before anything else can be found.
pub(super) fn kernel_file_systems() -> Result<(), BootError> {
    let none = MountFlags::empty();
    let safe = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    mount_at("proc", "/proc", "proc", safe, "")?;
    mount_at("sysfs", "/sys", "sysfs", safe, "")?;
    // The kernel may have mounted it itself (CONFIG_DEVTMPFS_MOUNT does not cover an
    // initramfs, but nothing forbids an earlier stage that did).
    match mount_at(
        "devtmpfs",
        "/dev",
        "devtmpfs",
        none | MountFlags::NOSUID,
        "mode=0755",
    ) {
        Err(BootError::System { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
            Ok(())
        }
        other => other,
    }
}

/// Mounts the root disk and makes it the root, the kernel's file systems moved along and the
/// initramfs emptied.
pub(super) fn switch_root(options: &Options) -> Result<(), BootError> {
    let flags = if options.read_only {
        MountFlags::RDONLY
    } else {
        MountFlags::empty()
    };
    mount_at(
        &options.root,
        NEW_ROOT,
        &options.root_type,
        flags,
        &options.root_flags,
    )?;
    for directory in ["/dev", "/proc", "/sys"] {
        let target = format!("{NEW_ROOT}{directory}");
        // Missing on a bare root file system; on a read-only one the move says what is wrong.
        let _ = fs::create_dir(&target);
        mount_move(directory, &target)
            .map_err(|e| failed(format!("move {directory} to the root disk"))(e.into()))?;
    }
    // Memory that nothing could reach after the move.
    let _ = fs::remove_file("/init");
    let step = |what: &'static str| move |e: rustix::io::Errno| failed(what)(e.into());
    rustix::process::chdir(NEW_ROOT).map_err(step("enter the root disk"))?;
    mount_move(".", "/").map_err(step("make the root disk the root"))?;
    rustix::process::chroot(".").map_err(step("change to the root disk"))?;
    rustix::process::chdir("/").map_err(step("enter the new root"))
}

/// What an init would mount before it runs services. None is vital: what fails is reported.
pub(super) fn run_file_systems() {
    let none = MountFlags::empty();
    let safe = MountFlags::NOSUID | MountFlags::NODEV;
    let quiet = safe | MountFlags::NOEXEC;
    for (source, target, kind, flags, data) in [
        ("tmpfs", "/run", "tmpfs", safe, "mode=0755"),
        (
            "devpts",
            "/dev/pts",
            "devpts",
            MountFlags::NOSUID | MountFlags::NOEXEC,
            "gid=5,mode=620,ptmxmode=000",
        ),
        ("tmpfs", "/dev/shm", "tmpfs", safe, "mode=1777"),
        ("cgroup2", "/sys/fs/cgroup", "cgroup2", quiet, ""),
    ] {
        if let Err(e) = mount_at(source, target, kind, flags | none, data) {
            eprintln!("favo-agent: {e}");
        }
    }
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        let _ = std::os::unix::fs::symlink(target, link);
    }
}

fn mount_at(
    source: &str,
    target: &str,
    kind: &str,
    flags: MountFlags,
    data: &str,
) -> Result<(), BootError> {
    let what = || format!("mount {source} on {target} ({kind})");
    if !Path::new(target).is_dir() {
        fs::create_dir(target).map_err(failed(format!("create {target}")))?;
    }
    let data = CString::new(data)
        .map_err(|_| failed(what())(io::Error::from(io::ErrorKind::InvalidInput)))?;
    mount(source, target, kind, flags, data.as_c_str()).map_err(|e| failed(what())(e.into()))
}

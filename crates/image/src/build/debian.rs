//! `debian:12` and its kin: mmdebstrap makes the root file system, unchanged packages and all.

use std::fs;

use favo_types::ByteCount;

use super::{BuildOptions, Built, apt};
use crate::error::IoContext;
use crate::rootfs::RootFs;
use crate::tool::{self, Tool};
use crate::{ImageError, Progress, Provenance, Store};

const DISK_SIZE: ByteCount = ByteCount::gib(4);

/// Beside what every Debian has: an init, devices, a network, something to look around with.
const PACKAGES: [&str; 14] = [
    "systemd-sysv",
    "systemd-resolved",
    "udev",
    "dbus",
    "kmod",
    "procps",
    "e2fsprogs",
    "iproute2",
    "iputils-ping",
    "netbase",
    "ca-certificates",
    "less",
    "nano",
    "debian-archive-keyring",
];

/// What to build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Recipe {
    suite: &'static str,
    kernel: &'static str,
}

impl Recipe {
    pub fn for_tag(tag: &str) -> Option<Self> {
        let (suite, kernel) = match tag {
            "12" | "bookworm" => ("bookworm", "linux-image-cloud-amd64"),
            "12-6.12" => ("bookworm", "linux-image-6.12-cloud-amd64"),
            "13" | "trixie" => ("trixie", "linux-image-cloud-amd64"),
            _ => return None,
        };
        Some(Self { suite, kernel })
    }
}

pub(super) fn build(
    store: &Store,
    recipe: &Recipe,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<Built, ImageError> {
    let mut needed = tool::disk_tools();
    needed.extend([("mmdebstrap", "mmdebstrap"), ("apt-get", "apt")]);
    if !rustix::process::geteuid().is_root() && !has_subordinate_ids() {
        // mmdebstrap's way without them.
        needed.push(("fakechroot", "fakechroot"));
    }
    tool::require("building a Debian image", &needed)?;
    let scratch = store.scratch()?;
    let sources = apt::debian_sources(recipe.suite, options.mirror.as_deref())?;
    let sources = apt::to_deb822(&sources);
    let tar = scratch.path().join("root.tar");
    progress.stage("starting mmdebstrap", None);
    mmdebstrap(recipe, &sources, &scratch, &tar, progress)?;

    progress.stage("reading the root file system", None);
    let root = RootFs::scan(&tar, progress)?;
    let kernel = root.kernel()?.ok_or_else(|| ImageError::Content {
        what: format!("package {}", recipe.kernel),
        reason: "it has installed no kernel with modules".into(),
    })?;
    let provenance = Provenance {
        apt_sources: Some(sources),
        packages: root.packages()?,
        ..Provenance::new("")
    };
    progress.stage("making the disk", None);
    let size = options.disk_size.unwrap_or(DISK_SIZE);
    let disk = root.make_disk(size, &scratch, progress)?;
    Ok(Built {
        scratch,
        kernel,
        disk,
        provenance,
    })
}

/// Whether this user may map other user ids (subuid(5)), which lets mmdebstrap work in a user
/// namespace.
fn has_subordinate_ids() -> bool {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let user = std::env::var("USER").unwrap_or_default();
    let listed = fs::read_to_string("/etc/subuid").is_ok_and(|text| {
        text.lines()
            .filter_map(|line| line.split(':').next())
            .any(|owner| owner == uid || (!user.is_empty() && owner == user))
    });
    listed && tool::require("", &[("newuidmap", "uidmap")]).is_ok()
}

fn mmdebstrap(
    recipe: &Recipe,
    sources: &str,
    scratch: &crate::scratch::Scratch,
    tar: &std::path::Path,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let path = scratch.path().join("debian.sources");
    fs::write(&path, sources).during("write", &path)?;
    let mut include = PACKAGES.to_vec();
    include.push(recipe.kernel);
    let mut command = Tool::isolated("mmdebstrap")
        .args(["--variant=minbase", "--architectures=amd64", "--format=tar"])
        .arg(format!("--include={}", include.join(",")))
        // A build that a crash cuts off is thrown away: no need to flush each file.
        .arg("--dpkgopt=force-unsafe-io")
        // The guest boots with favo's initramfs: none is made in it.
        .env("INITRD", "No");
    for option in apt::network_options()? {
        command = command.arg(format!("--aptopt={option}"));
    }
    for hook in hooks() {
        command = command.arg(format!("--customize-hook={hook}"));
    }
    if rustix::process::geteuid().is_root() {
        // Its own leftovers, should it be killed, go with ours. Not for a user: mmdebstrap
        // then works under other user ids, which cannot enter our directory.
        command = command.env("TMPDIR", scratch.path());
    }
    command
        .arg(recipe.suite)
        .arg(tar)
        .arg(path)
        .run(progress, |line| match stage_of(line) {
            Some(stage) => progress.stage(stage, None),
            None => progress.note(line),
        })?;
    Ok(())
}

/// What mmdebstrap's line means to whoever waits; `None`: it is a detail.
fn stage_of(line: &str) -> Option<&'static str> {
    let text = line.strip_prefix("I: ")?;
    [
        ("running apt-get update", "reading package lists"),
        ("downloading packages", "downloading packages"),
        ("extracting archives", "unpacking packages"),
        ("installing essential", "installing essential packages"),
        ("installing remaining", "installing packages"),
        ("cleaning package lists", "cleaning up"),
        ("creating tarball", "packing the root file system"),
    ]
    .into_iter()
    .find_map(|(begin, stage)| text.starts_with(begin).then_some(stage))
}

/// What makes a root file system a guest: shell commands that find its root in `$1`.
fn hooks() -> Vec<String> {
    let file = |path: &str, text: &str| {
        format!("mkdir -p \"$1/$(dirname {path})\" && printf '%s\\n' '{text}' > \"$1/{path}\"")
    };
    vec![
        // The building host's proxies, and what is right for a build only.
        "rm -f \"$1/etc/apt/apt.conf.d/99mmdebstrap\" \"$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap\""
            .into(),
        file("etc/hostname", "debian"),
        file(
            "etc/hosts",
            "127.0.0.1 localhost debian\n::1 localhost ip6-localhost",
        ),
        file("etc/fstab", "LABEL=root / ext4 errors=remount-ro 0 1"),
        // systemd-resolved's. Without systemd the agent makes what the link leads to.
        "ln -sf ../run/systemd/resolve/stub-resolv.conf \"$1/etc/resolv.conf\"".into(),
        // Empty: each guest makes its own, and that is no first boot with its questions.
        ": > \"$1/etc/machine-id\"; rm -f \"$1/var/lib/dbus/machine-id\"".into(),
        file(
            "etc/systemd/network/80-dhcp.network",
            "[Match]\nName=en* eth*\n[Network]\nDHCP=yes\nIPv6AcceptRA=yes\n[DHCPv4]\nUseMTU=yes\n\
             UseDomains=yes",
        ),
        "chroot \"$1\" systemctl enable systemd-networkd.service".into(),
        // Whoever has the serial console owns the machine.
        file(
            "etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf",
            "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear \
             --keep-baud 115200,57600,38400,9600 - $TERM",
        ),
    ]
}

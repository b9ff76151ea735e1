//! `minimal`: busybox on an ext4 disk, with Debian's stock kernel.
//!
//! A disk and not just an initramfs, so that it goes the way every image goes: the same boot,
//! the same copy-on-write disk, the same export.

use std::fs::{self, File};
use std::path::Path;

use favo_types::ByteCount;

use super::apt::{self, PrivateApt};
use super::{BuildOptions, Built};
use crate::error::IoContext;
use crate::rootfs::{RootFs, decompress_to};
use crate::tool::{self, Tool};
use crate::{ImageError, NoProgress, Package, Progress, Provenance, Store};

const DISK_SIZE: ByteCount = ByteCount::mib(256);
const SUITE: &str = "bookworm";
const KERNEL: &str = "linux-image-cloud-amd64";
const BUSYBOX: &str = "busybox-static";

const DIRECTORIES: [&str; 16] = [
    "bin",
    "sbin",
    "usr",
    "usr/bin",
    "usr/sbin",
    "etc",
    "dev",
    "proc",
    "sys",
    "run",
    "root",
    "mnt",
    "var",
    "home",
    "etc/init.d",
    "etc/udhcpc",
];

const FILES: [(&str, u32, &str); 7] = [
    ("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/group", 0o644, "root:x:0:\ntty:x:5:\n"),
    ("etc/hostname", 0o644, "minimal\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost minimal\n"),
    (
        "etc/inittab",
        0o644,
        "::sysinit:/etc/init.d/rcS\n::respawn:-/bin/sh\n::shutdown:/bin/umount -a -r\n",
    ),
    (
        "etc/init.d/rcS",
        0o755,
        "#!/bin/sh\nmount -a -t proc,sysfs,devtmpfs 2>/dev/null\nmkdir -p /dev/pts\n\
         mount -t devpts devpts /dev/pts\nmount -t tmpfs tmpfs /run\nhostname -F /etc/hostname\n\
         ip link set lo up\nfor card in /sys/class/net/eth*; do\n\
         \x20   [ -e \"$card\" ] || continue\n    ip link set \"${card##*/}\" up\n\
         \x20   udhcpc -b -i \"${card##*/}\" -s /etc/udhcpc/default.script -O mtu\ndone\n",
    ),
    // What busybox' DHCP client calls; udhcpc says what happened by its first argument.
    ("etc/udhcpc/default.script", 0o755, UDHCPC_SCRIPT),
];

const UDHCPC_SCRIPT: &str = r#"#!/bin/sh
case "$1" in
deconfig)
    ip addr flush dev "$interface"
    ip link set "$interface" up
    ;;
bound | renew)
    [ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
    ip addr replace "$ip/$mask" dev "$interface"
    [ -z "$router" ] || ip route replace default via "${router%% *}" dev "$interface"
    {
        [ -z "$domain" ] || echo "search $domain"
        for server in $dns; do echo "nameserver $server"; done
    } > /etc/resolv.conf
    ;;
esac
"#;

pub(super) fn build(
    store: &Store,
    options: &BuildOptions,
    progress: &dyn Progress,
) -> Result<Built, ImageError> {
    let mut needed = tool::disk_tools();
    needed.push(("apt-get", "apt"));
    tool::require("building the minimal image", &needed)?;
    let scratch = store.scratch()?;
    let work = |name: &str| scratch.path().join(name);
    let sources = apt::debian_sources(SUITE, options.mirror.as_deref())?;

    progress.stage("reading package lists", None);
    let apt = PrivateApt::new(work("apt"), &sources, progress)?;
    progress.stage("downloading packages", None);
    let kernel = apt.dependencies(KERNEL, "linux-image-")?;
    let kernel = kernel.first().ok_or_else(|| ImageError::Content {
        what: format!("package {KERNEL}"),
        reason: "it depends on no kernel".into(),
    })?;
    let files = apt.download(&[kernel, BUSYBOX], progress)?;
    let [kernel_deb, busybox_deb] = files.as_slice() else {
        return Err(ImageError::Content {
            what: "apt-get download".into(),
            reason: "it did not download what it was asked for".into(),
        });
    };

    progress.stage("unpacking the kernel", None);
    unpack_deb(kernel_deb, &work("kernel.tar"), progress)?;
    let kernel_files = RootFs::scan(&work("kernel.tar"), &NoProgress)?;
    let found = kernel_files.kernel()?.ok_or_else(|| ImageError::Content {
        what: format!("package {kernel}"),
        reason: "there is no kernel with modules in it".into(),
    })?;
    unpack_deb(busybox_deb, &work("busybox.tar"), progress)?;
    let busybox = extract(&work("busybox.tar"), &["bin/busybox", "usr/bin/busybox"])?;
    write_root(&busybox, &work("busybox"), &work("root.tar"))?;

    progress.stage("making the disk", None);
    let size = options.disk_size.unwrap_or(DISK_SIZE);
    let disk = RootFs::scan(&work("root.tar"), progress)?.make_disk(size, &scratch, progress)?;
    let provenance = Provenance {
        apt_sources: Some(apt::to_deb822(&sources)),
        packages: files.iter().filter_map(|file| package_of(file)).collect(),
        ..Provenance::new("")
    };
    Ok(Built {
        scratch,
        kernel: found,
        disk,
        provenance,
    })
}

/// The files of a package as a plain tar archive.
fn unpack_deb(deb: &Path, to: &Path, progress: &dyn Progress) -> Result<(), ImageError> {
    let content = |reason: String| ImageError::Content {
        what: deb.display().to_string(),
        reason,
    };
    let mut archive = ar::Archive::new(File::open(deb).during("open", deb)?);
    while let Some(entry) = archive.next_entry() {
        let entry = entry.map_err(|e| content(format!("not a Debian package: {e}")))?;
        if entry.header().identifier().starts_with(b"data.tar") {
            return decompress_to(entry, deb, to, progress);
        }
    }
    Err(content("there are no files in it".into()))
}

/// One file of an archive, under the first of `names` that is there.
fn extract(tar: &Path, names: &[&str]) -> Result<Vec<u8>, ImageError> {
    let mut archive = tar::Archive::new(File::open(tar).during("open", tar)?);
    for entry in archive.entries().during("read", tar)? {
        let mut entry = entry.during("read", tar)?;
        let path = entry.path().during("read", tar)?.into_owned();
        let path = path.strip_prefix(".").unwrap_or(&path);
        if entry.header().entry_type().is_file() && names.iter().any(|n| path == Path::new(n)) {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).during("read", tar)?;
            return Ok(bytes);
        }
    }
    Err(ImageError::Content {
        what: tar.display().to_string(),
        reason: format!("{} is not in it", names[0]),
    })
}

/// Writes the root file system as an archive: busybox, a link for each of its programs, and
/// the few files a system has.
fn write_root(busybox: &[u8], program: &Path, tar: &Path) -> Result<(), ImageError> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(program, busybox)
        .and_then(|()| fs::set_permissions(program, fs::Permissions::from_mode(0o755)))
        .during("write", program)?;
    let name = program.to_string_lossy();
    let applets = Tool::new(&name)
        .arg("--list-full")
        .run(&NoProgress, |_| {})?;
    let mut out = tar::Builder::new(File::create(tar).during("create", tar)?);
    let mut write = || -> std::io::Result<()> {
        for directory in DIRECTORIES {
            append(&mut out, directory, tar::EntryType::Directory, 0o755, b"")?;
        }
        append(&mut out, "tmp", tar::EntryType::Directory, 0o1777, b"")?;
        append(
            &mut out,
            "bin/busybox",
            tar::EntryType::Regular,
            0o755,
            busybox,
        )?;
        for (path, mode, text) in FILES {
            append(
                &mut out,
                path,
                tar::EntryType::Regular,
                mode,
                text.as_bytes(),
            )?;
        }
        for applet in applets.lines().filter(|a| !a.ends_with("busybox")) {
            let mut header = header(tar::EntryType::Symlink, 0o777, 0);
            out.append_link(&mut header, applet, "/bin/busybox")?;
        }
        out.finish()
    };
    write().during("write", tar)
}

fn append(
    out: &mut tar::Builder<File>,
    path: &str,
    kind: tar::EntryType,
    mode: u32,
    bytes: &[u8],
) -> std::io::Result<()> {
    out.append_data(&mut header(kind, mode, bytes.len()), path, bytes)
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header
}

/// A package's name, version and architecture from the name apt gives its file, in which a
/// version's colon is written %3a.
fn package_of(file: &Path) -> Option<Package> {
    let mut parts = file.file_stem()?.to_str()?.splitn(3, '_');
    Some(Package {
        name: parts.next()?.into(),
        version: parts.next()?.replace("%3a", ":"),
        architecture: parts.next()?.into(),
    })
}

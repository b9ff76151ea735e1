//! What the kernel is booted with: two cpio archives, one after the other.
//!
//! The image's modules come first; they were packed once, when the image was made. The agent
//! follows: it belongs to this favo, not to the image, so an image never carries an old one.
//! Linux unpacks concatenated archives in order
//! ([initramfs buffer format](https://docs.kernel.org/driver-api/early-userspace/buffer-format.html)).

use std::io;

use cpio::newc::{Builder, ModeFileType, trailer};

use favo_agent::boot::{MODULES_DIRECTORY, MODULES_ORDER};
pub use favo_agent::boot::{Mode as AgentMode, Options as AgentOptions};

use crate::modules::Module;
use crate::{ImageError, Manifest, OpenImage};

/// The agent, a static program for x86-64 Linux.
pub static AGENT: &[u8] = include_bytes!(env!("FAVO_AGENT"));

/// Archives begin at multiples of this.
const ALIGNMENT: usize = 4;

/// The initramfs to boot an image with: its modules and the agent. An image that has an initrd
/// of its own is booted with that instead; see [`OpenImage::read`].
pub fn compose(image: &OpenImage) -> Result<Vec<u8>, ImageError> {
    let kernel = image.image.manifest.kernel.as_ref();
    let mut archive = match kernel.and_then(|kernel| kernel.modules) {
        Some(modules) => image.read(modules)?,
        None => Vec::new(),
    };
    archive.resize(archive.len().next_multiple_of(ALIGNMENT), 0);
    archive.extend(agent_archive().map_err(in_memory)?);
    Ok(archive)
}

/// The command line to boot an image with: its own and the agent's part. `options.root` and its
/// type are taken from the image where it knows its root.
pub fn command_line(manifest: &Manifest, options: &AgentOptions) -> String {
    let mut options = options.clone();
    if let Some(root) = &manifest.disk.root {
        let partition = root.partition.map(|n| n.to_string()).unwrap_or_default();
        options.root = format!("/dev/vda{partition}");
        options.root_type.clone_from(&root.file_system);
    }
    format!("{} {options}", manifest.command_line)
        .trim_start()
        .into()
}

fn agent_archive() -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut inode = 0;
    directory("dev", &mut out, &mut inode)?;
    // The kernel opens it for /init before devtmpfs is there.
    entry("dev/console", ModeFileType::Char, 0o600, &mut inode)
        .rdev_major(5)
        .rdev_minor(1)
        .write(&mut out, 0)
        .finish()?;
    file("init", 0o755, AGENT, &mut out, &mut inode)?;
    trailer(&mut out)?;
    Ok(out)
}

/// The archive of an image's modules, with the list the agent loads them by.
pub(crate) fn modules_archive(modules: &[Module]) -> Result<Vec<u8>, ImageError> {
    let write = || -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut inode = 0;
        let root = MODULES_DIRECTORY.trim_start_matches('/');
        directory(root, &mut out, &mut inode)?;
        let mut order = String::new();
        for module in modules {
            order.push_str(&module.file_name);
            order.push('\n');
            let path = format!("{root}/{}", module.file_name);
            file(&path, 0o644, &module.bytes, &mut out, &mut inode)?;
        }
        let path = format!("{root}/{MODULES_ORDER}");
        file(&path, 0o644, order.as_bytes(), &mut out, &mut inode)?;
        trailer(&mut out)?;
        Ok(out)
    };
    write().map_err(in_memory)
}

fn directory(path: &str, out: &mut Vec<u8>, inode: &mut u32) -> io::Result<()> {
    entry(path, ModeFileType::Directory, 0o755, inode)
        .nlink(2)
        .write(out, 0)
        .finish()?;
    Ok(())
}

fn file(path: &str, mode: u32, bytes: &[u8], out: &mut Vec<u8>, inode: &mut u32) -> io::Result<()> {
    let size = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut writer = entry(path, ModeFileType::Regular, mode, inode).write(out, size);
    io::Write::write_all(&mut writer, bytes)?;
    writer.finish()?;
    Ok(())
}

fn entry(path: &str, kind: ModeFileType, mode: u32, inode: &mut u32) -> Builder {
    *inode += 1;
    Builder::new(path)
        .ino(*inode)
        .mode(mode)
        .set_mode_file_type(kind)
}

fn in_memory(source: io::Error) -> ImageError {
    ImageError::Io {
        action: "write",
        path: "initramfs".into(),
        source,
    }
}

#[cfg(test)]
#[path = "initramfs_test.rs"]
mod test;

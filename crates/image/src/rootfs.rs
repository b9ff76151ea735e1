//! From a tar archive of a root file system to a disk, a kernel and its modules.
//!
//! A tar archive, not a directory: only in an archive can a user who is not root keep owners
//! and device nodes. The archive is read once to see what is in it ([`RootFs::scan`]); the
//! disk is made by `mke2fs -d` from the unpacked tree, under fakeroot when not root.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use favo_types::ByteCount;

use crate::error::IoContext;
use crate::modules::{self, ModuleFiles};
use crate::scratch::Scratch;
use crate::tool::Tool;
use crate::{ImageError, Package, Progress, initramfs};

/// A file inside the archive.
#[derive(Debug, Clone, Copy)]
struct Place {
    offset: u64,
    size: u64,
}

/// What there is in an archive of a root file system.
#[derive(Debug)]
pub(crate) struct RootFs {
    path: PathBuf,
    file: File,
    /// Kernels by release.
    kernels: BTreeMap<String, Place>,
    /// Modules by release and name.
    modules: BTreeMap<(String, String), (String, Place)>,
    /// The modules.builtin files by release.
    built_in: BTreeMap<String, Place>,
    dpkg_status: Option<Place>,
    /// The bytes all files need.
    content: u64,
    entries: u64,
}

/// A kernel found in a root file system.
#[derive(Debug)]
pub(crate) struct FoundKernel {
    pub release: String,
    pub image: Vec<u8>,
    /// The archive for the initramfs.
    pub modules: Vec<u8>,
}

/// Above any kernel, module or package database: what is read into memory is bounded.
const MEMORY_LIMIT: u64 = 512 << 20;

impl RootFs {
    /// Reads through an archive that is not compressed.
    pub fn scan(path: &Path, progress: &dyn Progress) -> Result<Self, ImageError> {
        let not_tar = |e: std::io::Error| ImageError::NotAnImage {
            path: path.into(),
            reason: format!("not a whole tar archive: {e}"),
        };
        let file = File::open(path).during("open", path)?;
        let size = file.metadata().during("read", path)?.len();
        let mut this = Self {
            path: path.into(),
            file: file.try_clone().during("open", path)?,
            kernels: BTreeMap::new(),
            modules: BTreeMap::new(),
            built_in: BTreeMap::new(),
            dpkg_status: None,
            content: 0,
            entries: 0,
        };
        let mut archive = tar::Archive::new(file);
        for entry in archive.entries_with_seek().map_err(not_tar)? {
            let entry = entry.map_err(not_tar)?;
            let place = Place {
                offset: entry.raw_file_position(),
                size: entry.size(),
            };
            if place
                .offset
                .checked_add(place.size)
                .is_none_or(|end| end > size)
            {
                return Err(not_tar(std::io::ErrorKind::UnexpectedEof.into()));
            }
            progress.done(ByteCount(place.offset));
            if progress.is_cancelled() {
                return Err(ImageError::Cancelled);
            }
            let name = entry.path().map_err(not_tar)?;
            let name = name.to_string_lossy();
            this.entries += 1;
            if entry.header().entry_type().is_file() {
                this.content += place.size.next_multiple_of(4096);
                this.note(name.trim_start_matches("./").trim_start_matches('/'), place);
            }
        }
        if this.entries == 0 {
            return Err(not_tar(std::io::Error::other("it holds nothing")));
        }
        Ok(this)
    }

    fn note(&mut self, name: &str, place: Place) {
        if let Some(release) = name.strip_prefix("boot/vmlinuz-") {
            self.kernels.insert(release.into(), place);
        }
        if name == "var/lib/dpkg/status" {
            self.dpkg_status = Some(place);
        }
        let modules = name
            .strip_prefix("usr/lib/modules/")
            .or_else(|| name.strip_prefix("lib/modules/"));
        if let Some((release, rest)) = modules.and_then(|rest| rest.split_once('/')) {
            let file_name = rest.rsplit('/').next().unwrap_or(rest);
            if rest == "modules.builtin" {
                self.built_in.insert(release.into(), place);
            } else if let Some(module) = modules::name_of_file(file_name) {
                let key = (release.to_string(), module);
                self.modules.insert(key, (file_name.into(), place));
            }
        }
    }

    /// The newest kernel that has its modules with it.
    pub fn kernel(&self) -> Result<Option<FoundKernel>, ImageError> {
        let newest = self
            .kernels
            .keys()
            .filter(|release| self.built_in.contains_key(*release))
            .max_by_key(|release| version_key(release));
        let Some(release) = newest else {
            return Ok(None);
        };
        let mut files = ReleaseModules {
            root: self,
            release,
            built_in: self.text(self.built_in[release])?,
        };
        let modules = modules::needed(&mut files)?;
        Ok(Some(FoundKernel {
            release: release.clone(),
            image: self.bytes(self.kernels[release])?,
            modules: initramfs::modules_archive(&modules)?,
        }))
    }

    /// The bytes its files take.
    pub fn content(&self) -> u64 {
        self.content
    }

    /// The Debian packages installed in it.
    pub fn packages(&self) -> Result<Vec<Package>, ImageError> {
        Ok(match self.dpkg_status {
            Some(place) => installed_packages(&self.text(place)?),
            None => Vec::new(),
        })
    }

    /// Makes the disk: an ext4 file system over all of `size`, and returns its file.
    pub fn make_disk(
        &self,
        size: ByteCount,
        scratch: &Scratch,
        progress: &dyn Progress,
    ) -> Result<PathBuf, ImageError> {
        // Inodes, the journal and the tables take some; mke2fs has the last word.
        if self.content > size.bytes() {
            return Err(ImageError::TooSmall { size: size.bytes() });
        }
        let disk = scratch.path().join("disk");
        let tree = scratch.path().join("tree");
        std::fs::create_dir(&tree).during("create", &tree)?;
        File::create_new(&disk)
            .and_then(|file| file.set_len(size.bytes()))
            .during("create", &disk)?;
        let script = "umask 0; \
             tar --numeric-owner --same-owner --same-permissions \
                 --xattrs --xattrs-include=security.capability \
                 --warning=no-timestamp -xf \"$1\" -C \"$2\"; \
             mke2fs -q -F -t ext4 -m 0 -L root -d \"$2\" \"$3\"";
        let is_root = rustix::process::geteuid().is_root();
        let tool = if is_root {
            Tool::new("sh")
        } else {
            Tool::new("fakeroot").args(["--", "sh"])
        };
        let result = tool
            .args(["-ec", script, "sh"])
            .args([self.path.as_path(), &tree, &disk])
            .run(progress, |line| progress.note(line));
        if let Err(ImageError::Tool { output, .. }) = &result
            && (output.contains("Could not allocate") || output.contains("not enough space"))
        {
            return Err(ImageError::TooSmall { size: size.bytes() });
        }
        result?;
        std::fs::remove_dir_all(&tree).during("remove", &tree)?;
        Ok(disk)
    }

    fn bytes(&self, place: Place) -> Result<Vec<u8>, ImageError> {
        if place.size > MEMORY_LIMIT {
            return Err(ImageError::Content {
                what: self.path.display().to_string(),
                reason: format!(
                    "a file of {} bytes where a kernel's was expected",
                    place.size
                ),
            });
        }
        let mut bytes = vec![0; place.size as usize];
        self.file
            .read_exact_at(&mut bytes, place.offset)
            .during("read", &self.path)?;
        Ok(bytes)
    }

    fn text(&self, place: Place) -> Result<String, ImageError> {
        Ok(String::from_utf8_lossy(&self.bytes(place)?).into_owned())
    }
}

struct ReleaseModules<'a> {
    root: &'a RootFs,
    release: &'a str,
    built_in: String,
}

impl ModuleFiles for ReleaseModules<'_> {
    fn read(&mut self, name: &str) -> Result<Option<(String, Vec<u8>)>, ImageError> {
        let key = (self.release.to_string(), name.to_string());
        match self.root.modules.get(&key) {
            Some((file_name, place)) => Ok(Some((file_name.clone(), self.root.bytes(*place)?))),
            None => Ok(None),
        }
    }

    fn is_built_in(&self, name: &str) -> bool {
        self.built_in
            .lines()
            .filter_map(|line| modules::name_of_file(line.rsplit('/').next()?))
            .any(|module| module == name)
    }
}

/// Orders releases as people do: runs of digits by value.
fn version_key(release: &str) -> Vec<(u64, String)> {
    let mut key = Vec::new();
    let mut rest = release;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, tail) = rest.split_at(digits);
        let end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        key.push((number.parse().unwrap_or(0), tail[..end].into()));
        rest = &tail[end..];
    }
    key
}

/// Reads dpkg's status file: stanzas of `Field: value`.
fn installed_packages(status: &str) -> Vec<Package> {
    let package = |stanza: &str| {
        let field = |name: &str| {
            stanza
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .map(str::to_string)
        };
        field("Status").filter(|status| status.ends_with(" installed"))?;
        Some(Package {
            name: field("Package")?,
            version: field("Version")?,
            architecture: field("Architecture")?,
        })
    };
    status.split("\n\n").filter_map(package).collect()
}

/// Copies `from` to the new file `to`, decompressed if it is compressed.
pub(crate) fn decompress_to(
    from: impl Read,
    from_path: &Path,
    to: &Path,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let mut from = std::io::BufReader::with_capacity(1 << 16, from);
    let magic = std::io::BufRead::fill_buf(&mut from)
        .during("read", from_path)?
        .to_vec();
    let mut from: Box<dyn Read> = match magic.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(from)),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => {
            Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(from))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            Box::new(zstd::stream::read::Decoder::with_buffer(from).during("read", from_path)?)
        }
        _ => Box::new(from),
    };
    let mut out = File::create_new(to).during("create", to)?;
    let mut buffer = vec![0; 1 << 16];
    let mut done = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => {
                return Err(ImageError::NotAnImage {
                    path: from_path.into(),
                    reason: format!("cannot be decompressed: {e}"),
                });
            }
        };
        out.write_all(&buffer[..count]).during("write", to)?;
        done += count as u64;
        progress.done(ByteCount(done));
        if progress.is_cancelled() {
            return Err(ImageError::Cancelled);
        }
    }
}

#[cfg(test)]
#[path = "rootfs_test.rs"]
mod test;

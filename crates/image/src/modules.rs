//! Which kernel modules a guest needs before its root disk is mounted, and in which order.
//!
//! Dependencies are read from the modules themselves (their `.modinfo` section): a kernel
//! package that was only unpacked has no modules.dep yet.

use std::collections::BTreeSet;
use std::io::Read;

use object::{Object, ObjectSection};

use crate::ImageError;

/// What favo's guests use, most needed first: the transport, the root disk, the way to the
/// host, the rest of the platform's devices. What a kernel has built in, or has not at all, is
/// left out.
const WANTED: [&str; 11] = [
    "virtio_pci",
    "virtio_blk",
    "ext4",
    "vmw_vsock_virtio_transport",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "virtio_net",
    "pvpanic_mmio",
    "pvpanic_pci",
    "overlay",
];

/// Without these, built in or as modules, no root disk.
const REQUIRED: [&str; 3] = ["virtio_pci", "virtio_blk", "ext4"];

/// A kernel's modules, wherever they are.
pub(crate) trait ModuleFiles {
    /// The file of the module of this name (with underscores), as it is, and its file name.
    fn read(&mut self, name: &str) -> Result<Option<(String, Vec<u8>)>, ImageError>;
    /// Whether the module is part of the kernel itself.
    fn is_built_in(&self, name: &str) -> bool;
}

/// A module, not compressed.
#[derive(Debug)]
pub(crate) struct Module {
    pub file_name: String,
    pub bytes: Vec<u8>,
}

/// All modules to load, each after those it depends on.
pub(crate) fn needed(files: &mut dyn ModuleFiles) -> Result<Vec<Module>, ImageError> {
    let mut resolver = Resolver {
        files,
        seen: BTreeSet::new(),
        order: Vec::new(),
    };
    for name in WANTED {
        let found = resolver.add(name, 0)?;
        if !found && REQUIRED.contains(&name) {
            return Err(ImageError::Content {
                what: "kernel modules".into(),
                reason: format!("{name} is neither there nor built into the kernel"),
            });
        }
    }
    Ok(resolver.order)
}

struct Resolver<'a> {
    files: &'a mut dyn ModuleFiles,
    seen: BTreeSet<String>,
    order: Vec<Module>,
}

impl Resolver<'_> {
    /// Adds a module after its dependencies. False: the kernel has no such module.
    fn add(&mut self, name: &str, depth: usize) -> Result<bool, ImageError> {
        let name = normal(name);
        if self.seen.contains(&name) {
            return Ok(true);
        }
        let Some((file_name, bytes)) = self.files.read(&name)? else {
            return Ok(self.files.is_built_in(&name));
        };
        let error = |reason: String| ImageError::Content {
            what: format!("kernel module {file_name}"),
            reason,
        };
        // A cycle cannot recurse (seen); a chain this long is not a kernel's.
        if depth > 32 {
            return Err(error("its dependencies have no end".into()));
        }
        self.seen.insert(name);
        let bytes = decompress(&file_name, bytes).map_err(|e| error(e.to_string()))?;
        let info = ModuleInfo::parse(&bytes).map_err(|e| error(e.to_string()))?;
        for dependency in &info.depends {
            if !self.add(dependency, depth + 1)? {
                return Err(error(format!("it needs {dependency}, which is not there")));
            }
        }
        for dependency in &info.soft_before {
            // Soft means: better with it.
            self.add(dependency, depth + 1)?;
        }
        let plain = file_name.split(".ko").next().unwrap_or(&file_name);
        self.order.push(Module {
            file_name: format!("{plain}.ko"),
            bytes,
        });
        Ok(true)
    }
}

/// Module names count `-` and `_` as the same; file names use either.
pub(crate) fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// The name of the module in a file, if it is one: `virtio-rng.ko.xz` holds `virtio_rng`.
pub(crate) fn name_of_file(file_name: &str) -> Option<String> {
    let (stem, extension) = file_name.split_once(".ko")?;
    ["", ".xz", ".zst", ".gz"]
        .contains(&extension)
        .then(|| normal(stem))
}

fn decompress(file_name: &str, bytes: Vec<u8>) -> std::io::Result<Vec<u8>> {
    /// Far above any module.
    const LIMIT: u64 = 256 << 20;
    let mut plain = Vec::new();
    match file_name.rsplit_once('.').map(|(_, extension)| extension) {
        Some("xz") => liblzma::read::XzDecoder::new(&*bytes)
            .take(LIMIT)
            .read_to_end(&mut plain)?,
        Some("zst") => zstd::stream::read::Decoder::new(&*bytes)?
            .take(LIMIT)
            .read_to_end(&mut plain)?,
        Some("gz") => flate2::read::GzDecoder::new(&*bytes)
            .take(LIMIT)
            .read_to_end(&mut plain)?,
        _ => return Ok(bytes),
    };
    Ok(plain)
}

/// What a module says about the others it needs.
#[derive(Debug, Default, PartialEq, Eq)]
struct ModuleInfo {
    depends: Vec<String>,
    soft_before: Vec<String>,
}

impl ModuleInfo {
    fn parse(module: &[u8]) -> Result<Self, object::Error> {
        let elf = object::File::parse(module)?;
        let mut info = Self::default();
        let Some(section) = elf.section_by_name(".modinfo") else {
            return Ok(info);
        };
        let text = String::from_utf8_lossy(section.data()?).into_owned();
        for field in text.split('\0') {
            match field.split_once('=') {
                Some(("depends", names)) => info
                    .depends
                    .extend(names.split(',').filter(|name| !name.is_empty()).map(normal)),
                Some(("softdep", list)) => info.soft_before.extend(soft_before(list)),
                _ => {}
            }
        }
        Ok(info)
    }
}

/// The names after `pre:` in a softdep line (`pre: a b post: c`).
fn soft_before(list: &str) -> Vec<String> {
    let mut before = false;
    let mut names = Vec::new();
    for word in list.split_ascii_whitespace() {
        match word {
            "pre:" => before = true,
            "post:" => before = false,
            name if before => names.push(normal(name)),
            _ => {}
        }
    }
    names
}

#[cfg(test)]
#[path = "modules_test.rs"]
mod test;

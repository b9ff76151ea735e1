//! Images from files: raw disks, qcow2, tar archives of a root file system.
//!
//! All become a raw disk in the store. A tar archive with a kernel and its modules in it
//! becomes an image like those built from packages; without, and for whole disks, a kernel and
//! an initrd can be given beside it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use favo_types::ByteCount;

use crate::build::{COMMAND_LINE, Parts, store_image};
use crate::error::IoContext;
use crate::manifest::{Kind, Root};
use crate::rootfs::{FoundKernel, RootFs, decompress_to};
use crate::scratch::Scratch;
use crate::{ImageError, ImageName, Progress, Provenance, Store, StoredImage, qcow2, sparse, tool};

/// The format of a file to import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportFormat {
    /// A disk, byte for byte.
    Raw,
    /// A qcow2 disk without a backing file.
    Qcow2,
    /// A tar archive of a root file system, maybe compressed with gzip, xz or zstd.
    Tar,
}

/// How to import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// The file.
    pub file: PathBuf,
    /// What to call the image.
    pub name: ImageName,
    /// Its format; `None`: as its content says.
    pub format: Option<ImportFormat>,
    /// A kernel to boot it with.
    pub kernel: Option<PathBuf>,
    /// The initrd for that kernel.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub command_line: Option<String>,
    /// For a tar archive the size of the disk; by default 4 GiB or twice the content.
    pub disk_size: Option<ByteCount>,
    /// Replace an image of this name.
    pub replace: bool,
}

impl ImportOptions {
    /// Imports `file` as `name`, all else by default.
    pub fn new(file: impl Into<PathBuf>, name: ImageName) -> Self {
        Self {
            file: file.into(),
            name,
            format: None,
            kernel: None,
            initrd: None,
            command_line: None,
            disk_size: None,
            replace: false,
        }
    }
}

const TAR_DISK: ByteCount = ByteCount::gib(4);

/// A disk's unit: a file of another length is none.
const SECTOR: u64 = 512;

/// Imports a file as an image.
pub fn import(
    store: &Store,
    options: &ImportOptions,
    progress: &dyn Progress,
) -> Result<StoredImage, ImageError> {
    store.check_free(&options.name, options.replace)?;
    let metadata = fs::metadata(&options.file).during("read", &options.file)?;
    if !metadata.is_file() {
        return Err(ImageError::NotAnImage {
            path: options.file.clone(),
            reason: "not a regular file".into(),
        });
    }
    let format = match options.format {
        Some(format) => format,
        None => recognise(&options.file)?,
    };
    let attached = attached_kernel(options)?;
    let scratch = store.scratch()?;
    let provenance = Provenance {
        file: Some(options.file.display().to_string()),
        ..Provenance::new("import")
    };
    let mut parts = match format {
        ImportFormat::Tar => from_tar(options, &scratch, provenance, progress)?,
        ImportFormat::Raw | ImportFormat::Qcow2 => {
            from_disk(options, format, &scratch, provenance, progress)?
        }
    };
    if let Some((kernel, initrd)) = attached {
        parts.kernel = Some(kernel);
        parts.initrd = initrd;
    }
    if let Some(command_line) = &options.command_line {
        parts.command_line.clone_from(command_line);
    }
    store_image(
        store,
        &scratch,
        &options.name,
        parts,
        options.replace,
        progress,
    )
}

fn from_tar(
    options: &ImportOptions,
    scratch: &Scratch,
    provenance: Provenance,
    progress: &dyn Progress,
) -> Result<Parts, ImageError> {
    tool::require("importing a tar archive", &tool::disk_tools())?;
    let tar = scratch.path().join("root.tar");
    progress.stage("unpacking the archive", None);
    let file = File::open(&options.file).during("open", &options.file)?;
    decompress_to(file, &options.file, &tar, progress)?;
    let root = RootFs::scan(&tar, progress).map_err(|e| match e {
        // The user knows the file, not our copy of it.
        ImageError::NotAnImage { reason, .. } => ImageError::NotAnImage {
            path: options.file.clone(),
            reason,
        },
        other => other,
    })?;
    let kernel = root.kernel()?;
    let packages = root.packages()?;
    progress.stage("making the disk", None);
    let needed = ByteCount(root.content().saturating_mul(2)).checked_align_up(ByteCount::mib(1));
    let size = options
        .disk_size
        .unwrap_or(TAR_DISK.max(needed.unwrap_or(TAR_DISK)));
    let disk = root.make_disk(size, scratch, progress)?;
    Ok(Parts {
        kind: Kind::Linux,
        kernel,
        initrd: None,
        disk,
        root: Some(Root {
            partition: None,
            file_system: "ext4".into(),
        }),
        command_line: COMMAND_LINE.into(),
        provenance: Provenance {
            packages,
            ..provenance
        },
    })
}

fn from_disk(
    options: &ImportOptions,
    format: ImportFormat,
    scratch: &Scratch,
    provenance: Provenance,
    progress: &dyn Progress,
) -> Result<Parts, ImageError> {
    let disk = scratch.path().join("disk");
    if format == ImportFormat::Qcow2 {
        qcow2::to_raw(&options.file, &disk, progress)?;
    } else {
        let from = File::open(&options.file).during("open", &options.file)?;
        let size = from.metadata().during("read", &options.file)?.len();
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(ImageError::NotAnImage {
                path: options.file.clone(),
                reason: format!("a raw disk has whole sectors of {SECTOR} bytes, this has {size}"),
            });
        }
        progress.stage("copying the disk", Some(ByteCount(size)));
        let to = File::create_new(&disk).during("create", &disk)?;
        sparse::copy(&from, &options.file, &to, &disk, progress)?;
    }
    let is_ext4 = has_ext4(&disk)?;
    Ok(Parts {
        kind: if is_ext4 { Kind::Linux } else { Kind::Disk },
        kernel: None,
        initrd: None,
        disk,
        root: is_ext4.then(|| Root {
            partition: None,
            file_system: "ext4".into(),
        }),
        command_line: COMMAND_LINE.into(),
        provenance,
    })
}

/// What a file is, by what is in it.
fn recognise(path: &Path) -> Result<ImportFormat, ImageError> {
    let magic: [u8; 6] = bytes_at(path, 0)?;
    if magic.starts_with(&qcow2::MAGIC) {
        return Ok(ImportFormat::Qcow2);
    }
    let compressed: [&[u8]; 3] = [&[0x1f, 0x8b], b"\xfd7zXZ", &[0x28, 0xb5, 0x2f, 0xfd]];
    if compressed.iter().any(|m| magic.starts_with(m)) {
        return Ok(ImportFormat::Tar);
    }
    // POSIX ustar and GNU tar alike.
    if bytes_at::<5>(path, 257)? == *b"ustar" {
        return Ok(ImportFormat::Tar);
    }
    // A boot sector, or a file system over the whole disk.
    if bytes_at::<2>(path, 510)? == [0x55, 0xaa] || has_ext4(path)? {
        return Ok(ImportFormat::Raw);
    }
    Err(ImageError::NotAnImage {
        path: path.into(),
        reason: "neither a disk with a partition table or an ext4 file system, nor qcow2, nor a \
                 tar archive"
            .into(),
    })
}

/// The ext4 superblock is at byte 1024, its magic at 0x38 in it.
fn has_ext4(path: &Path) -> Result<bool, ImageError> {
    Ok(bytes_at::<2>(path, 1024 + 0x38)? == [0x53, 0xef])
}

/// Some bytes of a file; zeroes beyond its end.
fn bytes_at<const N: usize>(path: &Path, offset: u64) -> Result<[u8; N], ImageError> {
    let mut bytes = [0; N];
    let result = File::open(path).and_then(|file| file.read_exact_at(&mut bytes, offset));
    match result {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok([0; N]),
        result => result.during("read", path).map(|()| bytes),
    }
}

type Attached = (FoundKernel, Option<Vec<u8>>);

fn attached_kernel(options: &ImportOptions) -> Result<Option<Attached>, ImageError> {
    let Some(path) = &options.kernel else {
        return match &options.initrd {
            Some(initrd) => Err(ImageError::NotAnImage {
                path: initrd.clone(),
                reason: "an initrd is of no use without its kernel".into(),
            }),
            None => Ok(None),
        };
    };
    // The boot protocol's signature "HdrS" is at byte 0x202 of a bzImage.
    let is_bzimage = bytes_at::<4>(path, 0x202)? == *b"HdrS";
    if !is_bzimage && bytes_at::<4>(path, 0)? != *b"\x7fELF" {
        return Err(ImageError::NotAnImage {
            path: path.clone(),
            reason: "not a Linux kernel (a bzImage or an ELF vmlinux)".into(),
        });
    }
    let kernel = FoundKernel {
        release: String::new(),
        image: fs::read(path).during("read", path)?,
        modules: Vec::new(),
    };
    let initrd = match &options.initrd {
        Some(initrd) => Some(fs::read(initrd).during("read", initrd)?),
        None => None,
    };
    Ok(Some((kernel, initrd)))
}

#[cfg(test)]
#[path = "import_test.rs"]
mod test;

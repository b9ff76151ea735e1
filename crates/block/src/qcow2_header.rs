//! What is checked of a qcow2 header before the format driver sees it: which
//! files it names, and what would be wrong to ignore (QEMU's
//! `docs/interop/qcow2.txt`, "Header" and "Header extensions").

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::BlockError;

/// Bytes of a header of version 2.
const SHORT: usize = 72;
/// The extension that names the format of the backing file.
const BACKING_FORMAT: u32 = 0xE279_2ACA;
/// The longest name of a backing file.
const LONGEST_NAME: u32 = 1023;
/// Extensions looked at, at most.
const MOST_EXTENSIONS: usize = 64;

/// Incompatible features, by their bits.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
/// Bytes of a refcount table, at most (QEMU's limit).
const LARGEST_TABLE: u64 = 8 << 20;

/// What we need of it.
#[derive(Debug)]
pub(crate) struct Header {
    pub backing: Option<String>,
    pub backing_format: Option<String>,
    snapshots: u32,
    encryption: u32,
    incompatible: u64,
    cluster_bits: u32,
    refcount_order: u32,
    refcount_table: u64,
    refcount_table_clusters: u32,
}

impl Header {
    pub fn read(file: &File, path: &Path) -> Result<Self, BlockError> {
        Self::parse(file).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                damaged(path, error.to_string())
            }
            _ => BlockError::io("read", path, error),
        })
    }

    fn parse(file: &File) -> io::Result<Self> {
        let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text);
        let mut bytes = [0; 104];
        file.read_exact_at(&mut bytes[..SHORT], 0)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => invalid("it is too short for a header"),
                _ => error,
            })?;
        if bytes[..4] != *b"QFI\xfb" {
            return Err(invalid("it has no qcow2 header"));
        }
        let version = word(&bytes, 4);
        let name = (long(&bytes, 8), word(&bytes, 16));
        let (encryption, snapshots) = (word(&bytes, 32), word(&bytes, 60));
        let (table, table_clusters) = (long(&bytes, 48), word(&bytes, 56));
        let cluster_bits = word(&bytes, 20);
        let (incompatible, refcount_order, end) = match version {
            2 => (0, 4, SHORT as u64),
            3 => {
                file.read_exact_at(&mut bytes[SHORT..], SHORT as u64)?;
                let end = u64::from(word(&bytes, 100));
                (long(&bytes, 72), word(&bytes, 96), end)
            }
            _ => return Err(invalid("only versions 2 and 3 are known")),
        };
        if !(9..=21).contains(&cluster_bits) || refcount_order > 6 {
            return Err(invalid(
                "the size of its clusters or refcounts is impossible",
            ));
        }
        let backing = match name {
            (0, _) => None,
            (_, length) if length > LONGEST_NAME => {
                return Err(invalid("the name of its backing file is too long"));
            }
            (offset, length) => {
                let mut name = vec![0; length as usize];
                if i64::try_from(offset).is_err() {
                    return Err(invalid("the name of its backing file lies outside"));
                }
                file.read_exact_at(&mut name, offset)?;
                let name = String::from_utf8(name)
                    .map_err(|_| invalid("the name of its backing file is no text"))?;
                Some(name).filter(|name| !name.is_empty())
            }
        };
        Ok(Self {
            backing_format: match backing {
                Some(_) => backing_format(file, end)?,
                None => None,
            },
            backing,
            snapshots,
            encryption,
            incompatible,
            cluster_bits,
            refcount_order,
            refcount_table: table,
            refcount_table_clusters: table_clusters,
        })
    }

    /// Whether we can do what it asks for.
    pub fn check(&self, path: &Path, read_only: bool) -> Result<(), BlockError> {
        let refuse = |reason: &str| Err(damaged(path, reason.into()));
        if self.encryption != 0 {
            return refuse("it is encrypted; convert it with qemu-img");
        }
        if self.incompatible & DATA_FILE != 0 {
            return refuse("its data is in another file; convert it with qemu-img");
        }
        if self.incompatible & CORRUPT != 0 {
            return refuse("it is marked as corrupt; repair it with qemu-img check -r");
        }
        if self.incompatible & DIRTY != 0 {
            return refuse("it was not closed; repair it with qemu-img check -r leaks");
        }
        if self.incompatible & COMPRESSION_TYPE != 0 {
            return refuse(
                "its clusters are compressed with zstd, which favo doesn't read yet; \
                 convert it with qemu-img",
            );
        }
        if self.snapshots != 0 && !read_only {
            return refuse(
                "it has internal snapshots, which writing would damage; \
                 open it read-only or convert it with qemu-img",
            );
        }
        Ok(())
    }
}

impl Header {
    /// Whether every cluster of the file has a refcount block. The driver
    /// would make the missing ones, and on a file that was made for it do so
    /// without end.
    pub fn check_refcounts(&self, file: &File, path: &Path) -> Result<(), BlockError> {
        let failed = |error| BlockError::io("read", path, error);
        let refuse = |what: &str| {
            let reason = format!("its refcounts are damaged ({what}); repair it with qemu-img");
            Err(damaged(path, reason))
        };
        let size = file.metadata().map_err(failed)?.len();
        let cluster = 1u64 << self.cluster_bits;
        let covered = cluster * ((cluster * 8) >> self.refcount_order);
        let needed = size.div_ceil(covered) * 8;
        let length = u64::from(self.refcount_table_clusters) * cluster;
        let inside = |offset: u64| {
            offset != 0
                && offset.is_multiple_of(cluster)
                && offset < size
                && i64::try_from(offset).is_ok()
        };
        if length > LARGEST_TABLE || needed > length || !inside(self.refcount_table) {
            return refuse("the table doesn't fit the file");
        }
        let mut table = vec![0; needed as usize];
        match file.read_exact_at(&mut table, self.refcount_table) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return refuse("the table is cut off");
            }
            result => result.map_err(failed)?,
        }
        for entry in 0..table.len() / 8 {
            if !inside(long(&table, entry * 8)) {
                return refuse("a block lies outside the file");
            }
        }
        Ok(())
    }
}

/// The big-endian number at `at`, which lies in `bytes`.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// As [`word`], of 64 bits.
fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) << 32 | u64::from(word(bytes, at + 4))
}

/// Looks for it among the extensions from `at`.
fn backing_format(file: &File, mut at: u64) -> io::Result<Option<String>> {
    for _ in 0..MOST_EXTENSIONS {
        let mut head = [0; 8];
        match file.read_exact_at(&mut head, at) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let [a, b, c, d, rest @ ..] = head;
        let (kind, length) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes(rest));
        match kind {
            0 => return Ok(None),
            BACKING_FORMAT if length <= 64 => {
                let mut name = vec![0; length as usize];
                file.read_exact_at(&mut name, at + 8)?;
                return Ok(Some(String::from_utf8_lossy(&name).into_owned()));
            }
            _ => at += 8 + u64::from(length).next_multiple_of(8),
        }
    }
    Ok(None)
}

fn damaged(path: &Path, reason: String) -> BlockError {
    BlockError::Format {
        path: path.into(),
        format: "qcow2",
        reason,
    }
}

//! qcow2 files in and out, by the imago library; its types stop here.
//!
//! The file is hostile: no other file it names is ever opened (a backing file, an external
//! data file), and what imago calls an error ends the import.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use imago::file::File as ImagoFile;
use imago::qcow2::{Qcow2, Qcow2CreateBuilder};
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder, Mapping, Storage,
    StorageOpenOptions,
};

use favo_types::ByteCount;

use crate::error::IoContext;
use crate::{ImageError, Progress, sparse};

/// The first bytes of a qcow2 file.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Above any disk that means it; a size field can say up to 16 EiB.
const SIZE_LIMIT: u64 = 1 << 46;

const BUFFER: u64 = 1 << 20;

/// The part of a header that version 2 has too.
const HEADER: usize = 72;

/// The first-level table of the largest disk QEMU makes is this large.
const TABLE_LIMIT: u64 = 32 << 20;

/// The bits of a first-level entry that are a table's offset.
const L1_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Converts a qcow2 file to a raw one with holes. `to` is created.
pub(crate) fn to_raw(from: &Path, to: &Path, progress: &dyn Progress) -> Result<(), ImageError> {
    let not_an_image = |reason: String| ImageError::NotAnImage {
        path: from.into(),
        reason,
    };
    let end = check(from)?;
    let out = File::create_new(to).during("create", to)?;
    let options = StorageOpenOptions::new().filename(from).write(false);
    let file = ImagoFile::open(options).during("open", from)?;
    let qcow2 = Qcow2::<ImagoFile>::builder(file)
        .write(false)
        .open(DenyImplicitOpenGate::default())
        .map_err(|e| not_an_image(format!("damaged or unsupported qcow2: {e}")))?;
    let disk = FormatAccess::new(qcow2);
    let size = disk.size();
    if size > SIZE_LIMIT {
        return Err(not_an_image(format!(
            "a disk of {size} bytes is beyond reason"
        )));
    }
    out.set_len(size).during("extend", to)?;
    progress.stage("converting the disk", Some(ByteCount(size)));
    let mut buffer = vec![0; BUFFER as usize];
    let mut at = 0;
    while at < size {
        if progress.is_cancelled() {
            return Err(ImageError::Cancelled);
        }
        let damaged = |e: io::Error| not_an_image(format!("damaged at byte {at}: {e}"));
        let (mapping, length) = disk.get_mapping(at, size - at).map_err(damaged)?;
        let length = length.min(size - at);
        if length == 0 {
            return Err(not_an_image(format!(
                "damaged at byte {at}: an empty range"
            )));
        }
        if let Mapping::Raw { offset, .. } = mapping
            && offset.checked_add(length).is_none_or(|e| e > end)
        {
            return Err(not_an_image(format!(
                "cut off: byte {at} is beyond its end"
            )));
        }
        if matches!(mapping, Mapping::Zero { .. }) {
            at += length;
        } else {
            let count = length.min(BUFFER);
            let bytes = &mut buffer[..count as usize];
            disk.read(&mut *bytes, at).map_err(damaged)?;
            sparse::write_sparse(&out, bytes, at).during("write", to)?;
            at += count;
        }
        progress.done(ByteCount(at));
    }
    Ok(())
}

/// Converts a raw file to a qcow2 one. `to` is there and empty.
pub(crate) fn from_raw(from: &Path, to: &Path, progress: &dyn Progress) -> Result<(), ImageError> {
    let source = File::open(from).during("open", from)?;
    let size = source.metadata().during("read", from)?.len();
    progress.stage("writing qcow2", Some(ByteCount(size)));
    let options = || StorageOpenOptions::new().filename(to).write(true);
    let file = ImagoFile::open(options()).during("open", to)?;
    Qcow2CreateBuilder::<ImagoFile, FormatAccess<ImagoFile>>::new(file)
        .size(size)
        .create()
        .during("write", to)?;
    let file = ImagoFile::open(options()).during("open", to)?;
    let qcow2 = Qcow2::<ImagoFile>::builder(file)
        .write(true)
        .open(DenyImplicitOpenGate::default())
        .during("open", to)?;
    let disk = FormatAccess::new(qcow2);
    let mut buffer = vec![0; BUFFER as usize];
    let mut at = 0;
    while at < size {
        if progress.is_cancelled() {
            return Err(ImageError::Cancelled);
        }
        let count = BUFFER.min(size - at);
        let bytes = &mut buffer[..count as usize];
        source.read_exact_at(bytes, at).during("read", from)?;
        if bytes.iter().any(|&b| b != 0) {
            disk.write(&*bytes, at).during("write", to)?;
        }
        at += count;
        progress.done(ByteCount(at));
    }
    disk.flush().during("flush", to)?;
    disk.sync().during("flush", to)
}

/// What must be known of a file before imago reads it: imago takes what lies beyond the file's
/// end as zeroes, and believes the sizes of tables. Returns the file's length in whole
/// clusters: the last one may be written in part.
///
/// Checks the header and the first-level table
/// ([qcow2](https://www.qemu.org/docs/master/interop/qcow2.html), "Header" and "Cluster
/// mapping"): no backing file, tables of a bearable size, all of them inside the file.
fn check(path: &Path) -> Result<u64, ImageError> {
    let not_an_image = |reason: &str| ImageError::NotAnImage {
        path: path.into(),
        reason: reason.into(),
    };
    let cut = || not_an_image("the qcow2 file is cut off, or damaged");
    let file = File::open(path).during("open", path)?;
    let length = file.metadata().during("read", path)?.len();
    let mut header = [0; HEADER];
    if length < HEADER as u64 {
        return Err(cut());
    }
    file.read_exact_at(&mut header, 0).during("read", path)?;
    if be64(&header, 8) != 0 {
        return Err(not_an_image(
            "it is a difference to a backing file, which is outside the image store; merge them \
             first (qemu-img convert -O qcow2)",
        ));
    }
    let cluster = match be32(&header, 20) {
        bits @ 9..=21 => 1 << bits,
        _ => return Err(cut()),
    };
    let end = length.next_multiple_of(cluster);
    let is_inside = |at: u64, size: u64| at.checked_add(size).is_some_and(|e| e <= end);
    let l1_size = u64::from(be32(&header, 36)) * 8;
    let l1_at = be64(&header, 40);
    let refcounts_size = u64::from(be32(&header, 56)) * cluster;
    let bearable = l1_size <= TABLE_LIMIT && refcounts_size <= TABLE_LIMIT;
    if !bearable || !is_inside(l1_at, l1_size) || !is_inside(be64(&header, 48), refcounts_size) {
        return Err(cut());
    }
    let mut l1 = vec![0; l1_size as usize];
    // The table itself has no part that may be missing.
    file.read_exact_at(&mut l1, l1_at).map_err(|_| cut())?;
    for entry in l1.chunks_exact(8) {
        let l2_at = be64(entry, 0) & L1_OFFSET;
        if l2_at != 0 && (!l2_at.is_multiple_of(cluster) || !is_inside(l2_at, cluster)) {
            return Err(cut());
        }
    }
    Ok(end)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4]
        .iter()
        .fold(0, |n, &b| n << 8 | u32::from(b))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

//! Files with holes: copied and hashed without reading what is not there.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use favo_types::ByteCount;

use crate::error::IoContext;
use crate::{Digest, ImageError, Progress};

const BUFFER: usize = 1 << 20;

/// What is all zero in a copy becomes a hole, in units of this.
const BLOCK: usize = 4096;

/// The digest of a whole file, holes included as the zeroes they read as.
pub(crate) fn hash(path: &Path, progress: &dyn Progress) -> Result<(Digest, u64), ImageError> {
    let file = File::open(path).during("open", path)?;
    let size = file.metadata().during("read", path)?.len();
    let mut hasher = Sha256::new();
    walk(&file, path, size, progress, &mut |piece| {
        match piece {
            Piece::Data(_, bytes) => hasher.update(bytes),
            Piece::Hole(range) => update_zeroes(&mut hasher, range.end - range.start),
        }
        Ok(())
    })?;
    Ok((Digest::from_hasher(hasher), size))
}

/// Copies a whole file; zeroes become holes. `to` is new and empty.
pub(crate) fn copy(
    from: &File,
    from_path: &Path,
    to: &File,
    to_path: &Path,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let size = from.metadata().during("read", from_path)?.len();
    to.set_len(size).during("extend", to_path)?;
    walk(from, from_path, size, progress, &mut |piece| match piece {
        Piece::Data(offset, bytes) => write_sparse(to, bytes, offset).during("write", to_path),
        Piece::Hole(_) => Ok(()),
    })
}

/// Writes `bytes` at `offset` of a file that reads as zeroes there, leaving out blocks of
/// zeroes.
pub(crate) fn write_sparse(to: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut at = 0;
    while at < bytes.len() {
        let is_data = |block: &[u8]| block.iter().any(|&b| b != 0);
        let end = |at: usize| (at + BLOCK).min(bytes.len());
        let start = at;
        while at < bytes.len() && is_data(&bytes[at..end(at)]) {
            at = end(at);
        }
        if at > start {
            to.write_all_at(&bytes[start..at], offset + start as u64)?;
        } else {
            at = end(at);
        }
    }
    Ok(())
}

/// The bytes a file takes on its disk.
pub(crate) fn stored_size(path: &Path) -> Result<ByteCount, ImageError> {
    let metadata = std::fs::metadata(path).during("read", path)?;
    Ok(ByteCount(metadata.blocks() * 512))
}

enum Piece<'a> {
    Data(u64, &'a [u8]),
    Hole(Range<u64>),
}

/// Visits a file's data and holes in order.
fn walk(
    file: &File,
    path: &Path,
    size: u64,
    progress: &dyn Progress,
    visit: &mut dyn FnMut(Piece<'_>) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let mut buffer = vec![0; BUFFER];
    let mut at = 0;
    while at < size {
        let data = next_data(file, at, size).during("seek in", path)?;
        // Holes, too, in pieces: hashing one takes its time.
        while at < data.start {
            let end = data.start.min(at + (64 << 20));
            visit(Piece::Hole(at..end))?;
            at = end;
            report(progress, at)?;
        }
        while at < data.end {
            let count = (data.end - at).min(BUFFER as u64) as usize;
            file.read_exact_at(&mut buffer[..count], at)
                .during("read", path)?;
            visit(Piece::Data(at, &buffer[..count]))?;
            at += count as u64;
            report(progress, at)?;
        }
    }
    Ok(())
}

fn report(progress: &dyn Progress, done: u64) -> Result<(), ImageError> {
    progress.done(ByteCount(done));
    if progress.is_cancelled() {
        return Err(ImageError::Cancelled);
    }
    Ok(())
}

/// The next range of data from `at` on; empty at `size` if there is none.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Range<u64>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start.min(size),
        Err(Errno::NXIO) => return Ok(size..size),
        // A file system that knows no holes: all is data.
        Err(Errno::INVAL) => return Ok(at..size),
        Err(e) => return Err(e.into()),
    };
    let end = match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        Ok(end) => end.min(size),
        Err(Errno::NXIO) => size,
        Err(e) => return Err(e.into()),
    };
    Ok(start..end)
}

fn update_zeroes(hasher: &mut Sha256, mut count: u64) {
    static ZEROES: [u8; 1 << 16] = [0; 1 << 16];
    while count > 0 {
        let piece = count.min(ZEROES.len() as u64);
        hasher.update(&ZEROES[..piece as usize]);
        count -= piece;
    }
}

#[cfg(test)]
#[path = "sparse_test.rs"]
mod test;

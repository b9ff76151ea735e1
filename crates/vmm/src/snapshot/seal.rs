//! Data files: sparse, sealed by a last page, with a sum for every chunk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use favo_accel::PAGE_SIZE;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::SnapshotError;
use super::manifest::{FileRecord, SnapshotId, Sum};

/// What one sum is of.
pub const CHUNK: u64 = 2 << 20;
/// The sum of a chunk that is all zeroes: it is not computed.
const ZERO: [u8; 32] = [0; 32];
const MAGIC: &[u8] = b"favo-snapshot-file";

/// The last page of the file `name` of the snapshot `id`.
fn seal(id: SnapshotId, name: &str) -> Vec<u8> {
    let mut page = MAGIC.to_vec();
    page.push(b'\n');
    page.extend(id.to_string().bytes());
    page.push(b'\n');
    page.extend(name.bytes());
    page.push(b'\n');
    page.resize(PAGE_SIZE as usize, 0);
    page
}

/// The sums of the first `bytes` of a file. Holes are not read.
fn sums(file: &File, bytes: u64) -> io::Result<Vec<u8>> {
    let mut sums = Vec::new();
    let mut chunk = vec![0; CHUNK as usize];
    let mut data_from = None;
    let mut at = 0;
    while at < bytes {
        let length = CHUNK.min(bytes - at);
        let next = match data_from {
            Some(next) if next >= at => next,
            _ => match seek(file, SeekFrom::Data(at)) {
                Ok(next) => next,
                Err(Errno::NXIO) => u64::MAX,
                // A file system without holes.
                Err(Errno::INVAL) => at,
                Err(error) => return Err(error.into()),
            },
        };
        data_from = Some(next);
        let mut sum = ZERO;
        if next < at + length {
            let chunk = &mut chunk[..length as usize];
            file.read_exact_at(chunk, at)?;
            if chunk.iter().any(|byte| *byte != 0) {
                sum = Sha256::digest(chunk).into();
            }
        }
        sums.extend(sum);
        at += length;
    }
    Ok(sums)
}

fn sums_name(name: &str) -> String {
    format!("{name}.sums")
}

/// Seals a file that has all its data, writes its sums, and makes both durable.
pub fn finish(
    directory: &Path,
    name: &str,
    file: &File,
    bytes: u64,
    id: SnapshotId,
) -> Result<FileRecord, SnapshotError> {
    let path = directory.join(name);
    file.write_all_at(&seal(id, name), bytes)
        .map_err(SnapshotError::io("writing", &path))?;
    let sums = sums(file, bytes).map_err(SnapshotError::io("reading", &path))?;
    write_new(&directory.join(sums_name(name)), &sums)?;
    let read_only = std::os::unix::fs::PermissionsExt::from_mode(0o400);
    file.set_permissions(read_only)
        .and_then(|()| file.sync_all())
        .map_err(SnapshotError::io("writing", &path))?;
    Ok(FileRecord {
        name: name.to_owned(),
        bytes,
        sums: Sum::of(&sums),
    })
}

/// A small file, durable.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<(), SnapshotError> {
    use std::io::Write;
    let write = || {
        let mut file = create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(SnapshotError::io("writing", path))
}

/// A new file that only we may read.
pub fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.read(true).write(true).create_new(true).mode(0o600);
    options.open(path)
}

fn read_at_most(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens a data file and checks its length and its seal.
pub fn open(directory: &Path, record: &FileRecord, id: SnapshotId) -> Result<File, SnapshotError> {
    let path = directory.join(&record.name);
    let file = File::open(&path).map_err(SnapshotError::io("opening", &path))?;
    let metadata = file
        .metadata()
        .map_err(SnapshotError::io("opening", &path))?;
    if !metadata.is_file() {
        return Err(SnapshotError::foreign(&path, "it is no regular file"));
    }
    let expected = record.bytes.saturating_add(PAGE_SIZE);
    if metadata.len() != expected {
        return Err(SnapshotError::damaged(
            &path,
            format!("it has {} bytes instead of {expected}", metadata.len()),
        ));
    }
    let mut page = vec![0; PAGE_SIZE as usize];
    file.read_exact_at(&mut page, record.bytes)
        .map_err(SnapshotError::io("reading", &path))?;
    if page != seal(id, &record.name) {
        let reason = match page.starts_with(MAGIC) {
            true => "it belongs to another snapshot, or is another of its files",
            false => "its seal is not there",
        };
        return Err(SnapshotError::damaged(&path, reason));
    }
    Ok(file)
}

/// Reads all of a data file and compares it with its sums.
pub fn verify(directory: &Path, record: &FileRecord, id: SnapshotId) -> Result<u64, SnapshotError> {
    let path = directory.join(&record.name);
    let file = open(directory, record, id)?;
    let sums_path = directory.join(sums_name(&record.name));
    let length = record.bytes.div_ceil(CHUNK) * ZERO.len() as u64;
    let expected =
        read_at_most(&sums_path, length).map_err(SnapshotError::io("reading", &sums_path))?;
    if Sum::of(&expected) != record.sums {
        return Err(SnapshotError::damaged(
            &sums_path,
            "its checksum is another",
        ));
    }
    let found = sums(&file, record.bytes).map_err(SnapshotError::io("reading", &path))?;
    let pairs = found.chunks(ZERO.len()).zip(expected.chunks(ZERO.len()));
    let bad = (0..)
        .zip(pairs)
        .find(|(_, (found, expected))| found != expected);
    if let Some((chunk, _)) = bad {
        let reason = format!(
            "the {} KiB from byte {} are not as they were written",
            CHUNK >> 10,
            chunk * CHUNK
        );
        return Err(SnapshotError::damaged(&path, reason));
    }
    if found.len() != expected.len() {
        return Err(SnapshotError::damaged(
            &sums_path,
            "it is of a file of another length",
        ));
    }
    Ok(record.bytes)
}

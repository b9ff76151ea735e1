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

/// Converts a qcow2 file to a raw one with holes. `to` is created.
pub(crate) fn to_raw(from: &Path, to: &Path, progress: &dyn Progress) -> Result<(), ImageError> {
    let not_an_image = |reason: String| ImageError::NotAnImage {
        path: from.into(),
        reason,
    };
    check_no_backing(from)?;
    let out = File::create_new(to).during("create", to)?;
    runtime(from)?.block_on(async {
        let qcow2 = Qcow2::<ImagoFile>::builder_path(from)
            .write(false)
            .open(DenyImplicitOpenGate::default())
            .await
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
            let (mapping, length) = disk.get_mapping(at, size - at).await.map_err(damaged)?;
            let length = length.min(size - at);
            if length == 0 {
                return Err(not_an_image(format!(
                    "damaged at byte {at}: an empty range"
                )));
            }
            if matches!(mapping, Mapping::Zero { .. }) {
                at += length;
            } else {
                let count = length.min(BUFFER);
                let bytes = &mut buffer[..count as usize];
                disk.read(&mut *bytes, at).await.map_err(damaged)?;
                sparse::write_sparse(&out, bytes, at).during("write", to)?;
                at += count;
            }
            progress.done(ByteCount(at));
        }
        Ok(())
    })
}

/// Converts a raw file to a qcow2 one. `to` is there and empty.
pub(crate) fn from_raw(from: &Path, to: &Path, progress: &dyn Progress) -> Result<(), ImageError> {
    let source = File::open(from).during("open", from)?;
    let size = source.metadata().during("read", from)?.len();
    progress.stage("writing qcow2", Some(ByteCount(size)));
    runtime(to)?.block_on(async {
        let options = || StorageOpenOptions::new().filename(to).write(true);
        let file = ImagoFile::open(options()).await.during("open", to)?;
        Qcow2CreateBuilder::<ImagoFile, FormatAccess<ImagoFile>>::new(file)
            .size(size)
            .create()
            .await
            .during("write", to)?;
        let qcow2 = Qcow2::<ImagoFile>::builder_path(to)
            .write(true)
            .open(DenyImplicitOpenGate::default())
            .await
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
                disk.write(&*bytes, at).await.during("write", to)?;
            }
            at += count;
            progress.done(ByteCount(at));
        }
        disk.flush().await.during("flush", to)?;
        disk.sync().await.during("flush", to)
    })
}

/// A backing file is refused here with a reason of its own; the offset of its name is bytes 8
/// to 16 of the header.
fn check_no_backing(path: &Path) -> Result<(), ImageError> {
    let mut header = [0; 16];
    let result = File::open(path).and_then(|file| file.read_exact_at(&mut header, 0));
    match result {
        Ok(()) if header[8..] == [0; 8] => Ok(()),
        Ok(()) => Err(ImageError::NotAnImage {
            path: path.into(),
            reason: "it is a difference to a backing file, which is outside the image store; \
                     merge them first (qemu-img convert -O qcow2)"
                .into(),
        }),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(ImageError::NotAnImage {
            path: path.into(),
            reason: "a qcow2 file cut off in its header".into(),
        }),
        Err(e) => Err(e).during("read", path),
    }
}

fn runtime(path: &Path) -> Result<tokio::runtime::Runtime, ImageError> {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .during("prepare to read", path)
}

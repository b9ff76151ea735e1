//! The initial RAM disk of the guests: the program as `/init`, nothing else.

use std::io::{self, Write};
use std::path::Path;

use cpio::newc::{Builder, ModeFileType, trailer};
use tempfile::NamedTempFile;

/// An archive (cpio, newc) with `program` as `/init`; it goes with the handle.
pub fn with_init(program: &Path) -> io::Result<NamedTempFile> {
    let content = std::fs::read(program)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.display())))?;
    let size = u32::try_from(content.len()).map_err(io::Error::other)?;
    let mut file = NamedTempFile::new()?;
    let mut init = Builder::new("init")
        .mode(0o755)
        .set_mode_file_type(ModeFileType::Regular)
        .write(&mut file, size);
    init.write_all(&content)?;
    init.finish()?;
    trailer(&mut file)?;
    file.flush()?;
    Ok(file)
}

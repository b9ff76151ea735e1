//! A machine as another one, at this moment: what `favo vmm fork` hands over.
//!
//! A [`MachineClone`] is a value, and the descriptors it counts on go with it,
//! in this order: the files of its memory, the lowest layer first; then, disk
//! by disk, for each layer of a throw-away disk, the newest first, its file and
//! a file with its bitmap. Whoever adopts it runs it as a snapshot is run: its
//! memory and disks are shared with the original until they are written.
//!
//! Nobody can change what was handed over: memory's files are sealed, disks'
//! are open for reading.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use favo_accel::EngineKind;
use favo_accel::memory::Layer;
use favo_block::{BlockImage, OverlayLayer};
use serde::{Deserialize, Serialize};

use crate::machine::config::{DiskConfig, DiskSource, MachineConfig};
use crate::machine::{ClockStep, MachineHandle, MachineSpec, MachineState, SavedMachine};
use crate::snapshot::{RestoreParts, SnapshotError};

/// See the module.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MachineClone {
    /// The engine the original runs on.
    pub engine: EngineKind,
    /// What it is made of.
    pub config: MachineConfig,
    /// What the machine's owner keeps with it.
    #[serde(default)]
    pub owner: serde_json::Value,
    /// Processors and devices.
    pub state: MachineState,
    /// For each layer of memory which bytes count, all if it doesn't say.
    memory: Vec<Option<Vec<(u64, u64)>>>,
    /// For each disk how many layers were written to it.
    disks: Vec<usize>,
}

/// A clone with what goes with it.
#[derive(Debug)]
pub struct Cloned {
    /// The value.
    pub machine: MachineClone,
    /// The descriptors.
    pub descriptors: Vec<OwnedFd>,
    /// How long the original stood still.
    pub paused: Duration,
}

/// Makes a clone of a machine, which goes on. It may be adopted many times.
///
/// # Errors
///
/// [`SnapshotError::NotSaveable`] for a machine that writes to a disk that is
/// not thrown away: two can't.
pub fn fork(machine: &MachineHandle, owner: serde_json::Value) -> Result<Cloned, SnapshotError> {
    let body = machine.body()?;
    let mut disks = Vec::new();
    for (number, disk) in body.disks.iter().enumerate() {
        let disk = disk.clone().ok_or_else(|| {
            SnapshotError::NotSaveable(format!("nobody knows where disk {number} comes from"))
        })?;
        if !disk.config.throw_away && !disk.config.read_only {
            return Err(SnapshotError::NotSaveable(format!(
                "it writes to the disk {}, which two machines can't; only throw-away and \
                 read-only disks can be cloned",
                disk.config.path.display()
            )));
        }
        disks.push(disk);
    }
    let failed = |action| SnapshotError::io(action, Path::new("the machine"));
    let begin = Instant::now();
    let standing = body.stand()?;
    let phase = |name: &str| tracing::debug!(phase = name, elapsed = ?begin.elapsed(), "fork");
    phase("stands still");
    let moment = || {
        let state = standing.save()?;
        phase("state read");
        let memory = body.memory().freeze().map_err(failed("freezing"))?;
        phase("memory frozen");
        let layers = disks.iter().map(|disk| match disk.image.freeze() {
            Some(layers) => Ok(layers?),
            None => Ok(Vec::new()),
        });
        let layers: Vec<Vec<OverlayLayer>> = layers.collect::<Result<_, SnapshotError>>()?;
        Ok::<_, SnapshotError>((state, memory, layers))
    };
    let moment = moment();
    standing.resume();
    let paused = begin.elapsed();
    let (state, memory, layers) = moment?;

    let mut descriptors = Vec::new();
    for layer in &memory {
        descriptors.push(for_reading(&layer.file).map_err(failed("handing over"))?);
    }
    for layer in layers.iter().flatten() {
        descriptors.push(for_reading(layer.file()).map_err(failed("handing over"))?);
        descriptors.push(bitmap_file(&layer.bitmap()).map_err(failed("handing over"))?);
    }
    let range = |range: &Range<u64>| (range.start, range.end);
    let ranges = |layer: &Layer| Some(layer.ranges.as_ref()?.iter().map(range).collect());
    Ok(Cloned {
        machine: MachineClone {
            engine: body.partition.kind(),
            config: body.config.clone(),
            owner,
            state,
            memory: memory.iter().map(ranges).collect(),
            disks: layers.iter().map(Vec::len).collect(),
        },
        descriptors,
        paused,
    })
}

/// The same file, but not to be written.
fn for_reading(file: &File) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?.into())
}

fn bitmap_file(bitmap: &[u8]) -> io::Result<OwnedFd> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::memfd_create("favo-disk-bitmap", flags)?);
    file.write_all(bitmap)?;
    for_reading(&file)
}

impl MachineClone {
    /// The machine, ready to be started. Its clocks are set forward by the
    /// time since it was cloned.
    pub fn into_spec(
        self,
        descriptors: Vec<OwnedFd>,
        parts: RestoreParts,
    ) -> Result<MachineSpec, SnapshotError> {
        let expected = self
            .disks
            .iter()
            .try_fold(self.memory.len(), |sum, layers| {
                sum.checked_add(layers.checked_mul(2)?)
            });
        if expected != Some(descriptors.len()) || self.disks.len() != self.config.disks.len() {
            return Err(SnapshotError::Misfit(format!(
                "{} descriptors came with it, which are not its",
                descriptors.len()
            )));
        }
        let mut descriptors = descriptors.into_iter().map(File::from);
        let mut memory = Vec::new();
        for ranges in &self.memory {
            let range = |(start, end): &(u64, u64)| *start..*end;
            memory.extend(descriptors.next().map(|file| Layer {
                file: Arc::new(file),
                ranges: ranges.as_ref().map(|all| all.iter().map(range).collect()),
            }));
        }
        let mut disks = Vec::new();
        for (config, count) in self.config.disks.iter().zip(&self.disks) {
            let files: Vec<File> = descriptors.by_ref().take(2 * count).collect();
            disks.push(disk(config, files, &parts.scratch)?.into());
        }
        let saved = SavedMachine {
            memory,
            state: self.state,
            clock: ClockStep::Follow,
        };
        crate::snapshot::spec_of(&self.config, saved, disks, parts)
    }
}

/// A disk from its base and pairs of files: what was written, and where.
fn disk(
    config: &DiskConfig,
    files: Vec<File>,
    scratch: &Path,
) -> Result<DiskSource, SnapshotError> {
    let base = BlockImage::open(&config.path, &config.options())?;
    let capacity = favo_block::BlockDevice::info(&base).capacity;
    let mut layers = Vec::new();
    let mut files = files.into_iter();
    while let (Some(file), Some(bitmap)) = (files.next(), files.next()) {
        let bytes = bitmap_of(&bitmap, capacity).map_err(SnapshotError::io(
            "reading what was written to",
            &config.path,
        ))?;
        let layer = OverlayLayer::from_parts(file, &bytes, capacity).map_err(SnapshotError::io(
            "adopting what was written to",
            &config.path,
        ))?;
        layers.push(layer);
    }
    let image = match config.throw_away {
        true => base.overlay_on(layers, scratch)?,
        false => base,
    };
    Ok(DiskSource {
        image,
        config: config.clone(),
    })
}

/// All of a bitmap's file. At its places: whoever else adopts the clone has the
/// same open file, and its position with it.
fn bitmap_of(file: &File, capacity: u64) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let most = capacity / (8 * 4096) + 2;
    let length = file.metadata()?.len().min(most);
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
#[path = "clone_test.rs"]
mod test;

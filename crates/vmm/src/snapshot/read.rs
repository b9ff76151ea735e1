//! From a directory to a machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use favo_accel::memory::Layer;
use favo_block::{BlockImage, OverlayLayer};

use super::manifest::{DiskRecord, Manifest, SnapshotId, Sum};
use super::write::identify;
use super::{SnapshotError, seal};
use crate::machine::config::{DiskConfig, DiskSource, MachineConfig};
use crate::machine::{
    BootSource, CardSpec, ClockStep, ConsoleEnds, DiskSpec, MachineSpec, SavedMachine,
};

/// More snapshots than this are not added to each other.
const MOST_PARENTS: usize = 64;

/// A snapshot that was opened: its files are there and belong to it.
pub struct Snapshot {
    directory: PathBuf,
    manifest: Manifest,
    /// RAM, the lowest first.
    memory: Vec<Layer>,
}

/// What of a machine is not in a snapshot but this host's.
#[derive(Default)]
pub struct RestoreParts {
    /// The network cards with their cables, as many as it had.
    pub cards: Vec<CardSpec>,
    /// The descriptors of its console, if it had one.
    pub console: Option<ConsoleEnds>,
    /// Where nameless files for throw-away disks are made.
    pub scratch: PathBuf,
}

impl Snapshot {
    /// Opens the snapshot in `directory`, and those it adds to. Reads
    /// manifests and seals, no data.
    pub fn open(directory: &Path) -> Result<Self, SnapshotError> {
        let chain = chain(directory)?;
        let mut memory = Vec::new();
        for (directory, manifest) in chain.iter().rev() {
            let record = &manifest.memory;
            let file = seal::open(directory, &record.file, manifest.id)?;
            memory.push(Layer {
                file: Arc::new(file),
                ranges: record.ranges(),
            });
        }
        let (directory, manifest) = chain
            .into_iter()
            .next()
            .ok_or_else(|| SnapshotError::foreign(directory, "it has no manifest"))?;
        for disk in manifest
            .disks
            .iter()
            .filter_map(|disk| disk.overlay.as_ref())
        {
            seal::open(&directory, &disk.file, manifest.id)?;
        }
        Ok(Self {
            directory,
            manifest,
            memory,
        })
    }

    /// What it says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The machine it is of, ready to be started: it goes on where it was.
    pub fn into_spec(self, parts: RestoreParts) -> Result<MachineSpec, SnapshotError> {
        let config = &self.manifest.config;
        let disks = config.disks.iter().zip(&self.manifest.disks);
        let disks = disks.map(|(config, record)| self.disk(config, record, &parts.scratch));
        let disks = disks.collect::<Result<_, _>>()?;
        let saved = SavedMachine {
            memory: self.memory,
            state: self.manifest.state,
            clock: ClockStep::Stand,
        };
        spec_of(config, saved, disks, parts)
    }

    fn disk(
        &self,
        config: &DiskConfig,
        record: &DiskRecord,
        scratch: &Path,
    ) -> Result<DiskSpec, SnapshotError> {
        check_identity(config, record)?;
        let mut image = BlockImage::open(&config.path, &config.options())?;
        if let Some(overlay) = &record.overlay {
            let path = self.directory.join(&overlay.bitmap);
            let bitmap = read_bitmap(&path, overlay.file.bytes)?;
            if Sum::of(&bitmap) != overlay.bitmap_sum {
                return Err(SnapshotError::damaged(&path, "its checksum is another"));
            }
            let file = seal::open(&self.directory, &overlay.file, self.manifest.id)?;
            let layer = OverlayLayer::from_parts(file, &bitmap, overlay.file.bytes)
                .map_err(|error| SnapshotError::damaged(&path, error.to_string()))?;
            image = image.overlay_on(vec![layer], scratch)?;
        }
        Ok(DiskSource {
            image,
            config: config.clone(),
        }
        .into())
    }
}

/// A saved machine with what it is made of and what is this host's.
pub(crate) fn spec_of(
    config: &MachineConfig,
    saved: SavedMachine,
    disks: Vec<DiskSpec>,
    parts: RestoreParts,
) -> Result<MachineSpec, SnapshotError> {
    let cards = parts.cards.iter().map(|card| card.card.mac);
    if !cards.eq(config.cards.iter().copied()) {
        return Err(SnapshotError::Misfit(format!(
            "it had {} network cards; here are others, or as many with other addresses",
            config.cards.len()
        )));
    }
    if config.console != parts.console.is_some() {
        return Err(SnapshotError::Misfit(
            "only one of it and what is here has a console".to_owned(),
        ));
    }
    Ok(MachineSpec {
        cpus: config.cpus,
        features: None,
        memory: config.memory(),
        disks,
        cards: parts.cards,
        vsock_cid: config.vsock_cid,
        rng: config.rng,
        balloon: config.balloon,
        console: parts.console,
        backing: favo_accel::MemoryBacking::default(),
        boot: BootSource::Saved(Box::new(saved)),
    })
}

/// A bit for each cluster of 4 KiB.
fn read_bitmap(path: &Path, capacity: u64) -> Result<Vec<u8>, SnapshotError> {
    use std::io::Read;
    let most = capacity / (8 * 4096) + 1;
    let mut bitmap = Vec::new();
    let file = std::fs::File::open(path).map_err(SnapshotError::io("opening", path))?;
    file.take(most + 1)
        .read_to_end(&mut bitmap)
        .map_err(SnapshotError::io("reading", path))?;
    Ok(bitmap)
}

/// The manifests of a snapshot, of its parent, and so on.
fn chain(directory: &Path) -> Result<Vec<(PathBuf, Manifest)>, SnapshotError> {
    let mut next = directory.to_owned();
    let mut wanted = None;
    let mut chain: Vec<(PathBuf, Manifest)> = Vec::new();
    loop {
        let manifest = Manifest::read(&next)?;
        if wanted.is_some_and(|wanted| wanted != manifest.id) {
            return Err(SnapshotError::foreign(
                &next,
                format!("{} adds to another", directory.display()),
            ));
        }
        if let Some((_, above)) = chain.last()
            && above.config.memory != manifest.config.memory
        {
            return Err(SnapshotError::damaged(&next, "it is of another machine"));
        }
        let parent = manifest.parent.clone();
        let here = std::mem::take(&mut next);
        if let Some(parent) = parent {
            wanted = Some(parent.id);
            next = find_parent(&here, &parent.path, parent.id);
        }
        chain.push((here, manifest));
        if next == Path::new("") {
            return Ok(chain);
        }
        if chain.len() > MOST_PARENTS {
            return Err(SnapshotError::damaged(
                directory,
                format!("it adds to more than {MOST_PARENTS} snapshots"),
            ));
        }
    }
}

/// Snapshots that are moved together stay together.
fn find_parent(directory: &Path, path: &Path, id: SnapshotId) -> PathBuf {
    let beside = std::path::absolute(directory)
        .ok()
        .and_then(|directory| Some(directory.parent()?.join(path.file_name()?)));
    let found = beside.filter(|beside| Manifest::read(beside).is_ok_and(|it| it.id == id));
    found.unwrap_or_else(|| path.to_owned())
}

fn check_identity(config: &DiskConfig, record: &DiskRecord) -> Result<(), SnapshotError> {
    use std::os::unix::fs::MetadataExt;
    let changed = |reason: String| {
        Err(SnapshotError::DiskChanged {
            path: config.path.clone(),
            reason,
        })
    };
    let then = &record.identity;
    let metadata =
        std::fs::metadata(&config.path).map_err(SnapshotError::io("opening", &config.path))?;
    let modified = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    if (metadata.len(), modified) == (then.bytes, then.modified_ns) {
        return Ok(());
    }
    let now = identify(&config.path)?;
    if now.bytes != then.bytes {
        return changed(format!("it has {} bytes, not {}", now.bytes, then.bytes));
    }
    // A base that nobody writes may have been copied here.
    let unwritten = config.read_only || config.throw_away;
    if now.sample != then.sample {
        return changed("it has other contents".to_owned());
    }
    if !unwritten && now.modified_ns != then.modified_ns {
        return changed("it was written since".to_owned());
    }
    Ok(())
}

/// What [`verify`] read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verified {
    /// The snapshot.
    pub id: SnapshotId,
    /// Bytes of data, holes included, of it and those it adds to.
    pub bytes: u64,
    /// How many snapshots it adds to.
    pub parents: usize,
}

/// Reads all of a snapshot, and of those it adds to, and compares it with its
/// checksums.
pub fn verify(directory: &Path) -> Result<Verified, SnapshotError> {
    let chain = chain(directory)?;
    let mut verified = None;
    let mut bytes = 0;
    for (number, (directory, manifest)) in chain.iter().enumerate() {
        bytes += seal::verify(directory, &manifest.memory.file, manifest.id)?;
        // Only the newest overlays count: each is whole.
        if number > 0 {
            continue;
        }
        for overlay in manifest
            .disks
            .iter()
            .filter_map(|disk| disk.overlay.as_ref())
        {
            bytes += seal::verify(directory, &overlay.file, manifest.id)?;
            let path = directory.join(&overlay.bitmap);
            let bitmap = read_bitmap(&path, overlay.file.bytes)?;
            if Sum::of(&bitmap) != overlay.bitmap_sum {
                return Err(SnapshotError::damaged(&path, "its checksum is another"));
            }
        }
        verified = Some(manifest.id);
    }
    let id = verified.ok_or_else(|| SnapshotError::foreign(directory, "it has no manifest"))?;
    Ok(Verified {
        id,
        bytes,
        parents: chain.len() - 1,
    })
}

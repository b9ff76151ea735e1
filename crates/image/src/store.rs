//! The catalogue and the blobs.
//!
//! ```text
//! STATE/images/NAME:TAG.json    manifests, one per name
//! STATE/images/lock             the catalogue's lock
//! STATE/blobs/sha256/HEX        blobs, read-only, each named by its content
//! STATE/pins/HOLDER.json        blobs that something outside the catalogue needs
//! STATE/tmp/work-XXXXXX/        work in progress, locked by whoever does it
//! ```
//!
//! Crashes. A file gets its final name by rename, after fsync and before the directory's
//! fsync: under its name it is whole. A manifest is published after its blobs. What a crash
//! leaves are directories in `tmp` and blobs no manifest names; the next change removes both.
//!
//! Several processes. The catalogue's lock is held for moments only: shared to read manifests,
//! to make a work directory and to give a blob its name; exclusively to publish, to remove and
//! to sweep. A process that uses a blob (a running VM, a build that has not yet published)
//! holds a shared lock on the blob's file, which it took under the catalogue's lock. Blobs are
//! deleted only under the exclusive catalogue lock and only when their own lock is free: so
//! nobody's blob goes away, and nobody waits for a running VM.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use favo_types::ByteCount;

use crate::error::IoContext;
use crate::manifest::{Blob, MANIFEST_VERSION};
use crate::scratch::{Scratch, sweep};
use crate::{Digest, ImageError, ImageName, Manifest, Progress, build, sparse};

/// The image store of one state directory.
#[derive(Debug, Clone)]
pub struct Store {
    state: PathBuf,
}

/// An image in the catalogue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredImage {
    /// The digest of its manifest: two images with the same one are the same.
    pub id: Digest,
    /// What it is made of.
    #[serde(flatten)]
    pub manifest: Manifest,
}

/// What [`Store::remove`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Disk space given back.
    pub freed: ByteCount,
    /// Blobs kept because a running VM or a kept disk needs them; they go when it does.
    pub deferred: usize,
}

/// A blob in the store that nobody can remove while this lives.
#[derive(Debug)]
pub(crate) struct HeldBlob {
    /// Its name and size.
    pub blob: Blob,
    path: PathBuf,
    _lock: File,
}

/// An image with all its blobs held, for as long as a VM runs from it.
#[derive(Debug)]
pub struct OpenImage {
    /// The image.
    pub image: StoredImage,
    blobs: Vec<HeldBlob>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Pins {
    digests: BTreeSet<Digest>,
}

impl Store {
    /// The store in `state`, made if it is not there.
    pub fn open(state: impl Into<PathBuf>) -> Result<Self, ImageError> {
        let store = Self {
            state: state.into(),
        };
        for directory in [store.images(), store.blobs(), store.pins(), store.tmp()] {
            fs::create_dir_all(&directory).during("create", directory)?;
        }
        Ok(store)
    }

    /// The store in [`crate::state_directory`].
    pub fn open_default() -> Result<Self, ImageError> {
        Self::open(crate::state_directory()?)
    }

    /// The state directory it is in.
    pub fn state_directory(&self) -> &Path {
        &self.state
    }

    /// All images, by name.
    pub fn list(&self) -> Result<Vec<StoredImage>, ImageError> {
        let _lock = self.lock_shared()?;
        self.read_all()
    }

    /// One image.
    pub fn show(&self, name: &ImageName) -> Result<StoredImage, ImageError> {
        let _lock = self.lock_shared()?;
        self.read(name)
    }

    /// One image with its blobs held, to run it or copy from it.
    pub fn open_image(&self, name: &ImageName) -> Result<OpenImage, ImageError> {
        let lock = self.lock_shared()?;
        let image = self.read(name)?;
        self.hold_all(&lock, image)
    }

    /// The same for an image somebody remembers, and whose blobs they
    /// [pinned](Store::pin): its name may be gone, or another's.
    pub fn open_pinned(&self, image: StoredImage) -> Result<OpenImage, ImageError> {
        let lock = self.lock_shared()?;
        self.hold_all(&lock, image)
    }

    fn hold_all(&self, lock: &SharedLock, image: StoredImage) -> Result<OpenImage, ImageError> {
        let blobs = image
            .manifest
            .blobs()
            .map(|blob| self.hold(lock, blob))
            .collect::<Result<_, _>>()
            .map_err(|problem: BlobProblem| problem.of_image(&image.manifest.name))?;
        Ok(OpenImage { image, blobs })
    }

    /// Removes an image, and the blobs nobody else needs. While a VM runs from it that is
    /// refused, or with `force` the blobs go later.
    pub fn remove(&self, name: &ImageName, force: bool) -> Result<Removed, ImageError> {
        let lock = self.lock_exclusive()?;
        let image = self.read(name)?;
        let kept = self.needed_digests(Some(name))?;
        let own = image.manifest.blobs().filter(|b| !kept.contains(&b.digest));
        for blob in own {
            if !force && self.is_held(blob.digest)? {
                return Err(ImageError::InUse { name: name.clone() });
            }
        }
        let path = self.manifest_path(name);
        fs::remove_file(&path).during("remove", path)?;
        sync_directory(&self.images())?;
        self.collect(&lock)
    }

    /// Removes what crashed processes left, and blobs nobody needs.
    pub fn clean(&self) -> Result<Removed, ImageError> {
        let lock = self.lock_exclusive()?;
        self.collect(&lock)
    }

    /// Checks that an image's blobs have the content their names say.
    pub fn verify(&self, name: &ImageName, progress: &dyn Progress) -> Result<(), ImageError> {
        for held in self.open_image(name)?.blobs {
            let size = held.blob.size;
            progress.stage(&format!("checking {}", held.blob.digest), Some(size));
            let (digest, _) = sparse::hash(&held.path, progress)?;
            if digest != held.blob.digest {
                return Err(BlobProblem {
                    digest: held.blob.digest,
                    problem: format!("has other content ({digest})"),
                }
                .of_image(name));
            }
        }
        Ok(())
    }

    /// Keeps blobs from being removed as long as `holder`, a kept disk for example, needs
    /// them; survives this process. `holder` follows the rules of an image's name. Replaces
    /// what it held before.
    pub fn pin(
        &self,
        holder: &ImageName,
        digests: impl IntoIterator<Item = Digest>,
    ) -> Result<(), ImageError> {
        let _lock = self.lock_exclusive()?;
        let pins = Pins {
            digests: digests.into_iter().collect(),
        };
        let scratch = Scratch::new_in(&self.tmp())?;
        let text = to_json(&pins);
        self.install(&scratch, &text, &self.pins().join(holder.file_name()))
    }

    /// Ends what [`Store::pin`] began, and removes blobs nobody needs any more.
    pub fn unpin(&self, holder: &ImageName) -> Result<Removed, ImageError> {
        let lock = self.lock_exclusive()?;
        let path = self.pins().join(holder.file_name());
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).during("remove", path),
            _ => {}
        }
        sync_directory(&self.pins())?;
        self.collect(&lock)
    }

    /// A directory for work in progress, on the same file system as the blobs.
    pub(crate) fn scratch(&self) -> Result<Scratch, ImageError> {
        let lock = self.lock_exclusive()?;
        self.collect(&lock)?;
        Scratch::new_in(&self.tmp())
    }

    /// Fails early if the name is taken; [`Store::publish`] decides.
    pub(crate) fn check_free(&self, name: &ImageName, replace: bool) -> Result<(), ImageError> {
        if !replace && self.manifest_path(name).exists() {
            return Err(ImageError::Exists { name: name.clone() });
        }
        Ok(())
    }

    /// Takes a finished file from a work directory into the store.
    pub(crate) fn add(&self, path: &Path, progress: &dyn Progress) -> Result<HeldBlob, ImageError> {
        let (digest, size) = sparse::hash(path, progress)?;
        let blob = Blob {
            digest,
            size: ByteCount(size),
        };
        let file = File::open(path).during("open", path)?;
        file.set_permissions(Permissions::from_mode(0o444))
            .during("protect", path)?;
        file.sync_all().during("flush", path)?;
        let lock = self.lock_shared()?;
        let target = self.blob_path(digest);
        // The same content may be there already; its size tells a whole one from a torn one.
        let present = fs::metadata(&target).is_ok_and(|m| m.len() == size);
        if present {
            fs::remove_file(path).during("remove", path)?;
        } else {
            fs::rename(path, &target).during("rename", path)?;
            sync_directory(&self.blobs())?;
        }
        self.hold(&lock, blob)
            .map_err(|problem| ImageError::Content {
                what: target.display().to_string(),
                reason: problem.problem,
            })
    }

    /// Puts an image into the catalogue. `held` are its blobs, all of them.
    pub(crate) fn publish(
        &self,
        scratch: &Scratch,
        manifest: &Manifest,
        held: &[HeldBlob],
        replace: bool,
    ) -> Result<StoredImage, ImageError> {
        debug_assert!(
            manifest
                .blobs()
                .all(|blob| held.iter().any(|h| h.blob == blob))
        );
        let text = to_json(manifest);
        let lock = self.lock_exclusive()?;
        self.check_free(&manifest.name, replace)?;
        self.install(scratch, &text, &self.manifest_path(&manifest.name))?;
        self.collect(&lock)?;
        Ok(StoredImage {
            id: Digest::of(&text),
            manifest: manifest.clone(),
        })
    }

    /// Writes a small file so that it is either there, whole, or not.
    fn install(&self, scratch: &Scratch, text: &[u8], target: &Path) -> Result<(), ImageError> {
        let path = scratch.path().join("new");
        let mut file = File::create(&path).during("create", &path)?;
        file.write_all(text).during("write", &path)?;
        file.sync_all().during("flush", &path)?;
        fs::rename(&path, target).during("rename to", target)?;
        sync_directory(target.parent().unwrap_or(&self.state))
    }

    /// Sweeps work directories and unneeded blobs.
    fn collect(&self, _lock: &ExclusiveLock) -> Result<Removed, ImageError> {
        sweep(&self.tmp())?;
        let needed = self.needed_digests(None)?;
        let mut removed = Removed {
            freed: ByteCount(0),
            deferred: 0,
        };
        let blobs = self.blobs();
        for entry in fs::read_dir(&blobs).during("read", &blobs)? {
            let path = entry.during("read", &blobs)?.path();
            let digest = path
                .file_name()
                .and_then(|n| format!("sha256:{}", n.to_str()?).parse::<Digest>().ok());
            let Some(digest) = digest.filter(|d| !needed.contains(d)) else {
                continue;
            };
            if self.is_held(digest)? {
                removed.deferred += 1;
                continue;
            }
            let size = sparse::stored_size(&path)?;
            fs::remove_file(&path).during("remove", &path)?;
            removed.freed.0 += size.bytes();
        }
        Ok(removed)
    }

    /// The digests that images (but `except`) and pins name. An unreadable manifest is an
    /// error: what it needs is unknown, so nothing may be removed.
    fn needed_digests(&self, except: Option<&ImageName>) -> Result<BTreeSet<Digest>, ImageError> {
        let mut needed: BTreeSet<Digest> = self
            .read_all()?
            .iter()
            .filter(|image| Some(&image.manifest.name) != except)
            .flat_map(|image| image.manifest.blobs().map(|b| b.digest).collect::<Vec<_>>())
            .collect();
        let pins = self.pins();
        for entry in fs::read_dir(&pins).during("read", &pins)? {
            let path = entry.during("read", &pins)?.path();
            let text = fs::read(&path).during("read", &path)?;
            let pins: Pins = parse(&text, &path)?;
            needed.extend(pins.digests);
        }
        Ok(needed)
    }

    fn is_held(&self, digest: Digest) -> Result<bool, ImageError> {
        let path = self.blob_path(digest);
        match File::open(&path) {
            Ok(file) => match file.try_lock() {
                Ok(()) => Ok(false),
                Err(fs::TryLockError::WouldBlock) => Ok(true),
                Err(fs::TryLockError::Error(e)) => Err(e).during("lock", path),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e).during("open", path),
        }
    }

    /// Opens a blob and locks it against removal.
    fn hold(&self, _lock: &SharedLock, blob: Blob) -> Result<HeldBlob, BlobProblem> {
        let path = self.blob_path(blob.digest);
        let problem = |problem: String| BlobProblem {
            digest: blob.digest,
            problem,
        };
        let file = File::open(&path).map_err(|e| problem(format!("cannot be opened: {e}")))?;
        let size = file.metadata().map(|m| m.len()).unwrap_or_default();
        if size != blob.size.bytes() {
            let expected = blob.size.bytes();
            return Err(problem(format!("has {size} bytes instead of {expected}")));
        }
        // Never blocks: exclusive locks are taken only under the catalogue's exclusive lock.
        file.lock_shared()
            .map_err(|e| problem(format!("cannot be locked: {e}")))?;
        Ok(HeldBlob {
            blob,
            path,
            _lock: file,
        })
    }

    fn read_all(&self) -> Result<Vec<StoredImage>, ImageError> {
        let directory = self.images();
        let mut names = Vec::new();
        for entry in fs::read_dir(&directory).during("read", &directory)? {
            let file_name = entry.during("read", &directory)?.file_name();
            names.extend(file_name.to_str().and_then(ImageName::from_file_name));
        }
        names.sort();
        names.iter().map(|name| self.read(name)).collect()
    }

    fn read(&self, name: &ImageName) -> Result<StoredImage, ImageError> {
        let path = self.manifest_path(name);
        let text = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(self.not_found(name)),
            text => text.during("read", &path)?,
        };
        let error = |reason: String| ImageError::Manifest {
            path: path.clone(),
            reason,
        };
        // The version first: a newer manifest may have fields this favo has not heard of.
        let version: Version = parse(&text, &path)?;
        if version.version != MANIFEST_VERSION {
            let got = version.version;
            return Err(error(format!(
                "version {got}; this favo reads {MANIFEST_VERSION}"
            )));
        }
        let manifest: Manifest = parse(&text, &path)?;
        if manifest.name != *name {
            return Err(error(format!("it is of {}", manifest.name)));
        }
        Ok(StoredImage {
            id: Digest::of(&text),
            manifest,
        })
    }

    fn not_found(&self, name: &ImageName) -> ImageError {
        let mut near: Vec<(f64, ImageName)> = self
            .read_all()
            .unwrap_or_default()
            .into_iter()
            .map(|image| image.manifest.name)
            .map(|n| (strsim::jaro_winkler(&n.to_string(), &name.to_string()), n))
            .filter(|(likeness, n)| *likeness > 0.8 || n.name() == name.name())
            .collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0));
        ImageError::NotFound {
            name: name.clone(),
            nearest: near.into_iter().take(3).map(|(_, n)| n).collect(),
            buildable: build::is_known(name),
        }
    }

    fn lock_shared(&self) -> Result<SharedLock, ImageError> {
        let (file, path) = self.lock_file()?;
        file.lock_shared().during("lock", path)?;
        Ok(SharedLock(file))
    }

    fn lock_exclusive(&self) -> Result<ExclusiveLock, ImageError> {
        let (file, path) = self.lock_file()?;
        file.lock().during("lock", path)?;
        Ok(ExclusiveLock(file))
    }

    fn lock_file(&self) -> Result<(File, PathBuf), ImageError> {
        let path = self.images().join("lock");
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .during("open", &path)?;
        Ok((file, path))
    }

    fn images(&self) -> PathBuf {
        self.state.join("images")
    }

    fn blobs(&self) -> PathBuf {
        self.state.join("blobs/sha256")
    }

    fn pins(&self) -> PathBuf {
        self.state.join("pins")
    }

    fn tmp(&self) -> PathBuf {
        self.state.join("tmp")
    }

    fn manifest_path(&self, name: &ImageName) -> PathBuf {
        self.images().join(name.file_name())
    }

    fn blob_path(&self, digest: Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }
}

impl OpenImage {
    /// The file that holds one of the image's blobs. Open it anew, read-only; the lock stays
    /// with `self`.
    pub fn path(&self, blob: Blob) -> Option<&Path> {
        self.held(blob).map(|held| held.path.as_path())
    }

    /// The disk: a raw file, read-only.
    pub fn disk_path(&self) -> Option<&Path> {
        self.path(self.image.manifest.disk.image)
    }

    /// The kernel, if the image has one.
    pub fn kernel_path(&self) -> Option<&Path> {
        self.path(self.image.manifest.kernel.as_ref()?.image)
    }

    /// All of a blob in memory: for kernels, modules, initrds.
    pub fn read(&self, blob: Blob) -> Result<Vec<u8>, ImageError> {
        let name = &self.image.manifest.name;
        let held = self.held(blob).ok_or_else(|| {
            BlobProblem {
                digest: blob.digest,
                problem: "is not part of it".into(),
            }
            .of_image(name)
        })?;
        fs::read(&held.path).during("read", &held.path)
    }

    fn held(&self, blob: Blob) -> Option<&HeldBlob> {
        self.blobs.iter().find(|held| held.blob == blob)
    }
}

struct SharedLock(#[expect(dead_code, reason = "held for its lock")] File);
struct ExclusiveLock(#[expect(dead_code, reason = "held for its lock")] File);

#[derive(Deserialize)]
struct Version {
    version: u32,
}

struct BlobProblem {
    digest: Digest,
    problem: String,
}

impl BlobProblem {
    fn of_image(self, name: &ImageName) -> ImageError {
        ImageError::Damaged {
            name: name.clone(),
            digest: self.digest,
            problem: self.problem,
        }
    }
}

fn parse<'a, T: Deserialize<'a>>(text: &'a [u8], path: &Path) -> Result<T, ImageError> {
    serde_json::from_slice(text).map_err(|e| ImageError::Manifest {
        path: path.into(),
        reason: e.to_string(),
    })
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    // Only fails on map keys that are not strings, which these types have not.
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text
}

fn sync_directory(path: &Path) -> Result<(), ImageError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .during("flush", path)
}

#[cfg(test)]
#[path = "store_test.rs"]
mod test;

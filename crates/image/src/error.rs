//! What can go wrong with images, and what to do then.

use std::io;
use std::path::PathBuf;

use crate::{Digest, ImageName};

/// Why work on images failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// No image has this name.
    #[error("there is no image {name}{}", nearest_text(.nearest))]
    NotFound {
        /// The name asked for.
        name: ImageName,
        /// Names that are there and look alike, best first.
        nearest: Vec<ImageName>,
        /// Whether `favo image build` knows how to make it.
        buildable: bool,
    },
    /// An image has this name already.
    #[error("there is an image {name} already")]
    Exists {
        /// The name.
        name: ImageName,
    },
    /// A running VM uses the image.
    #[error("image {name} is in use by a running VM")]
    InUse {
        /// The image.
        name: ImageName,
    },
    /// The catalogue holds something that is not a manifest of this version.
    #[error("{}: not an image manifest: {reason}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A blob that a manifest names is not there, or not what it should be.
    #[error("image {name} is damaged: blob {digest} {problem}")]
    Damaged {
        /// The image.
        name: ImageName,
        /// The blob.
        digest: Digest,
        /// What is wrong with it.
        problem: String,
    },
    /// The state directory cannot be determined.
    #[error("no place for favo's state: HOME, XDG_DATA_HOME and FAVO_STATE_DIR are all unset")]
    NoStateDirectory,
    /// The file to import is not an image.
    #[error("{}: {reason}", path.display())]
    NotAnImage {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The file to write exists.
    #[error("{} exists already", path.display())]
    FileExists {
        /// The file.
        path: PathBuf,
    },
    /// There is no builder of this name.
    #[error("favo cannot build {name}; it can build {}", known.join(", "))]
    NoBuilder {
        /// The name asked for.
        name: ImageName,
        /// Those there are.
        known: Vec<String>,
    },
    /// Programs a build needs are not installed.
    #[error("{what} needs {}, which {} not installed", programs.join(" and "), if programs.len() == 1 { "is" } else { "are" })]
    MissingTools {
        /// What needs them.
        what: String,
        /// The programs.
        programs: Vec<String>,
        /// The Debian packages they are in.
        packages: Vec<String>,
    },
    /// The host's apt has no source for Debian's packages.
    #[error("the host's apt is not configured for Debian's packages: {reason}")]
    NoAptSource {
        /// What was looked for.
        reason: String,
    },
    /// A program a build runs failed.
    #[error("{program} failed ({status}):\n{output}")]
    Tool {
        /// The program.
        program: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        output: String,
    },
    /// A root file system or kernel package lacks something.
    #[error("{what}: {reason}")]
    Content {
        /// What was looked at.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// The root file system does not fit the disk.
    #[error("the root file system needs more than the disk's {size} bytes")]
    TooSmall {
        /// The size asked for.
        size: u64,
    },
    /// The user stopped it.
    #[error("stopped; nothing is left behind")]
    Cancelled,
    /// A file operation failed.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried: a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    /// What to do about it, as a sentence for people; `None` where the error says it all.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotFound {
                name,
                buildable: true,
                ..
            } => format!("make it with: favo image build {name}"),
            Self::NotFound { .. } => {
                "see what there is with: favo image list; make one with: favo image build \
                 debian:12, or: favo image import FILE"
                    .into()
            }
            Self::Exists { name } => {
                format!("take another name, replace it with --force, or: favo image rm {name}")
            }
            Self::InUse { .. } => "stop the VM first, or remove the name now and the data when \
                                   the VM has stopped, with --force"
                .into(),
            Self::Manifest { path, .. } => format!(
                "it was written by another version of favo, or damaged; to give the image up, \
                 delete {}",
                path.display()
            ),
            Self::Damaged { name, .. } => {
                format!("remove it (favo image rm {name}) and build or import it again")
            }
            Self::NoStateDirectory => "set FAVO_STATE_DIR to a directory".into(),
            Self::NotAnImage { .. } => "favo imports raw disks, qcow2, and tar archives of a \
                                        root file system (also .gz, .xz, .zst); --format raw \
                                        takes a file as it is"
                .into(),
            Self::FileExists { .. } => "take another name, or overwrite it with --force".into(),
            Self::MissingTools { packages, .. } => {
                format!(
                    "install it with: sudo apt-get install {}",
                    packages.join(" ")
                )
            }
            Self::NoAptSource { .. } => {
                "add Debian's archive to the host's apt sources, or name a mirror with --mirror \
                 URI; Debian's keys are in the package debian-archive-keyring"
                    .into()
            }
            Self::TooSmall { .. } => "give it a larger --size".into(),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "free some space (favo image rm), or set FAVO_STATE_DIR to a larger file system"
                    .into()
            }
            _ => return None,
        })
    }
}

fn nearest_text(nearest: &[ImageName]) -> String {
    match nearest {
        [] => String::new(),
        names => {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            format!("; there is {}", names.join(", "))
        }
    }
}

/// Adds the verb and the path to an I/O error.
pub(crate) trait IoContext<T> {
    fn during(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, ImageError>;
}

impl<T, E: Into<io::Error>> IoContext<T> for Result<T, E> {
    fn during(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, ImageError> {
        self.map_err(|source| ImageError::Io {
            action,
            path: path.into(),
            source: source.into(),
        })
    }
}

//! `favo image`: make, import, list and remove images.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use favo_image::build::{self, BuildOptions};
use favo_image::export::{self, ExportFormat, ExportOptions};
use favo_image::import::{self, ImportOptions};
use favo_image::{ImageError, ImageName, Store, StoredImage};
use favo_types::ByteCount;

use crate::output::{Format, FormatArgs, print_json, print_line, print_list};
use crate::progress::TerminalProgress;
use crate::{Failure, exit};

/// Arguments of `favo image`.
#[derive(clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make an image from Debian's packages.
    ///
    /// Known are debian:12, debian:13, debian:12-6.12 (Debian 12 with its 6.12 kernel) and
    /// minimal (busybox). Packages come through this host's apt configuration and are verified
    /// by its keys.
    #[command(after_help = "Example:\n  favo image build debian:12")]
    Build {
        /// What to make.
        image: ImageName,
        /// Call it something else.
        #[arg(long)]
        name: Option<ImageName>,
        /// The disk's size; unused space takes none.
        #[arg(long, value_name = "SIZE")]
        disk_size: Option<ByteCount>,
        /// Replace an image of the same name.
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Make an image from a file: a raw or qcow2 disk, or a tar of a root file system.
    #[command(after_help = "Example:\n  favo image import disk.qcow2 --name mail:1 --kernel vmlinuz --initrd initrd.img")]
    Import {
        /// The file.
        file: PathBuf,
        /// What to call the image; by default the file's name.
        #[arg(long)]
        name: Option<ImageName>,
        /// A kernel to boot it with.
        #[arg(long, value_name = "FILE")]
        kernel: Option<PathBuf>,
        /// The initial RAM disk for that kernel.
        #[arg(long, value_name = "FILE", requires = "kernel")]
        initrd: Option<PathBuf>,
        /// The kernel's command line.
        #[arg(long, value_name = "TEXT")]
        cmdline: Option<String>,
        /// For a tar: the disk's size.
        #[arg(long, value_name = "SIZE")]
        disk_size: Option<ByteCount>,
        /// Replace an image of the same name.
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// List the images.
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Show one image.
    Show {
        /// Which one.
        image: ImageName,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Remove an image. Disks that run from it keep what they need.
    Rm {
        /// Which ones.
        #[arg(required = true)]
        images: Vec<ImageName>,
        /// Remove it even if a machine runs from it.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Write an image's disk to a file.
    Export {
        /// Which one.
        image: ImageName,
        /// The file.
        file: PathBuf,
        /// Its format; by default qcow2 if the file's name ends so, raw if not.
        #[arg(long, value_enum)]
        format: Option<DiskFormat>,
        /// Replace the file if it is there.
        #[arg(long)]
        replace: bool,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum DiskFormat {
    Raw,
    Qcow2,
}

/// Runs `favo image`.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let store = Store::open_default().map_err(failure)?;
    match args.command {
        Command::Build { image, name, disk_size, replace, format } => {
            let options = BuildOptions { name, disk_size, replace, ..BuildOptions::default() };
            let made = with_progress(|progress| build::build(&store, &image, &options, progress))?;
            print_image(format.output, &made)?;
        }
        Command::Import { file, name, kernel, initrd, cmdline, disk_size, replace, format } => {
            let name = name.map_or_else(|| name_of(&file), Ok)?;
            let options = ImportOptions {
                kernel,
                initrd,
                command_line: cmdline,
                disk_size,
                replace,
                ..ImportOptions::new(file, name)
            };
            let made = with_progress(|progress| import::import(&store, &options, progress))?;
            print_image(format.output, &made)?;
        }
        Command::List { format } => list(&store, format.output)?,
        Command::Show { image, format } => {
            print_image(format.output, &store.show(&image).map_err(failure)?)?;
        }
        Command::Rm { images, force, format } => {
            for image in &images {
                let removed = store.remove(image, force).map_err(failure)?;
                if format.output == Format::Json {
                    print_json(&removed)?;
                } else {
                    print_line(&format!("removed {image}, {} freed", removed.freed));
                }
            }
        }
        Command::Export { image, file, format, replace } => {
            let qcow2 = match format {
                Some(format) => format == DiskFormat::Qcow2,
                None => file.extension().is_some_and(|extension| extension == "qcow2"),
            };
            let format = if qcow2 { ExportFormat::Qcow2 } else { ExportFormat::Raw };
            let options = ExportOptions { file, format, replace };
            with_progress(|progress| export::export(&store, &image, &options, progress))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs long work with its stages drawn on standard error.
fn with_progress<T>(
    work: impl FnOnce(&TerminalProgress) -> Result<T, ImageError>,
) -> Result<T, Failure> {
    let progress = TerminalProgress::new()?;
    let result = work(&progress);
    progress.finish();
    result.map_err(failure)
}

/// What an error means for the exit status, and its hint.
pub fn failure(error: ImageError) -> Failure {
    let status = match &error {
        ImageError::NotFound { .. } | ImageError::NoBuilder { .. } => exit::NOT_FOUND,
        ImageError::Exists { .. } | ImageError::InUse { .. } | ImageError::FileExists { .. } => {
            exit::CONFLICT
        }
        _ => exit::FAILED,
    };
    let hint = error.hint();
    let Failure { mut message, .. } = Failure::from(error);
    if let Some(hint) = hint {
        message = format!("{message}\n  {hint}");
    }
    Failure::with_status(message, status)
}

/// `disk.qcow2` becomes `disk:latest`.
fn name_of(file: &std::path::Path) -> Result<ImageName, Failure> {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().to_lowercase());
    stem.unwrap_or_default().parse().map_err(|error| {
        Failure::new(format!("{error}; give it one with --name"))
    })
}

fn list(store: &Store, format: Format) -> Result<(), Failure> {
    let images = store.list().map_err(failure)?;
    let headings = ["name", "kind", "kernel", "disk", "stored", "created"];
    print_list(format, &images, &headings, |image| {
        let manifest = &image.manifest;
        vec![
            manifest.name.to_string(),
            kind(image),
            kernel(image),
            manifest.disk.image.size.to_string(),
            manifest.disk.stored.to_string(),
            manifest.created.strftime("%Y-%m-%d %H:%M").to_string(),
        ]
    })?;
    Ok(())
}

fn kind(image: &StoredImage) -> String {
    format!("{:?}", image.manifest.kind).to_lowercase()
}

fn kernel(image: &StoredImage) -> String {
    match &image.manifest.kernel {
        None => "-".to_owned(),
        Some(kernel) => kernel.release.clone().unwrap_or_else(|| "yes".to_owned()),
    }
}

fn print_image(format: Format, image: &StoredImage) -> Result<(), Failure> {
    if format == Format::Json {
        print_json(image)?;
        return Ok(());
    }
    let manifest = &image.manifest;
    let packages = manifest.provenance.packages.len();
    for (name, value) in [
        ("name", manifest.name.to_string()),
        ("id", image.id.to_string()),
        ("kind", kind(image)),
        ("kernel", kernel(image)),
        ("command line", manifest.command_line.clone()),
        ("disk", manifest.disk.image.size.to_string()),
        ("stored", manifest.disk.stored.to_string()),
        ("created", manifest.created.to_string()),
        ("source", manifest.provenance.source.clone()),
        ("packages", packages.to_string()),
    ] {
        print_line(&format!("{name:<13} {value}"));
    }
    Ok(())
}

//! `favo image`: make, import, list and remove images.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use favo_image::build::{BuildOptions, build};
use favo_image::export::{ExportFormat, ExportOptions, export};
use favo_image::import::{ImportFormat, ImportOptions, import};
use favo_image::{ImageError, ImageName, Store, StoredImage};
use favo_types::ByteCount;

use crate::output::{self, Format, FormatArgs};
use crate::progress::TerminalProgress;
use crate::{Failure, exit};

/// Makes, imports, lists and removes images.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make an image from Debian's packages: debian:12, debian:13, debian:12-6.12 or minimal.
    Build(Build),
    /// Take a raw or qcow2 disk, or a tar archive of a root file system, as an image.
    Import(Import),
    /// List the images there are.
    #[command(visible_alias = "ls")]
    List(FormatArgs),
    /// Show what an image is made of.
    Show {
        /// The image.
        name: ImageName,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Remove images.
    Rm {
        /// The images.
        #[arg(required = true)]
        names: Vec<ImageName>,
        /// Also while a machine runs from it; its data go when that has stopped.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Write an image's disk to a file.
    Export {
        /// The image.
        name: ImageName,
        /// The file.
        file: PathBuf,
        /// Its format; by default qcow2 if the file's name ends so, else raw.
        #[arg(long, value_enum)]
        format: Option<DiskFormat>,
        /// Overwrite the file.
        #[arg(long)]
        force: bool,
    },
}

#[derive(clap::Args)]
struct Build {
    /// What to make.
    what: ImageName,
    /// What to call it, if not that.
    #[arg(long)]
    name: Option<ImageName>,
    /// The disk's size, like 8G. Unused space takes none.
    #[arg(long, value_name = "SIZE")]
    size: Option<ByteCount>,
    /// A Debian mirror instead of the one in the host's apt sources.
    #[arg(long, value_name = "URI")]
    mirror: Option<String>,
    /// Replace an image of this name.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    format: FormatArgs,
}

#[derive(clap::Args)]
struct Import {
    /// The file.
    file: PathBuf,
    /// What to call the image.
    name: ImageName,
    /// The file's format; by default what its content says.
    #[arg(long, value_enum)]
    format: Option<FileFormat>,
    /// A kernel to boot it with.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The initrd for that kernel.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// For a tar archive the disk's size.
    #[arg(long, value_name = "SIZE")]
    size: Option<ByteCount>,
    /// Replace an image of this name.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    output: FormatArgs,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum DiskFormat {
    Raw,
    Qcow2,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum FileFormat {
    Raw,
    Qcow2,
    Tar,
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    let store = Store::open_default().map_err(image_failure)?;
    match args.command {
        Command::Build(args) => build_image(&store, args)?,
        Command::Import(args) => import_image(&store, args)?,
        Command::List(format) => list(&store, format.output)?,
        Command::Show { name, format } => {
            let image = store.show(&name).map_err(image_failure)?;
            match format.output {
                Format::Json => output::print_json(&image)?,
                Format::Table => show(&image),
            }
        }
        Command::Rm {
            names,
            force,
            format,
        } => {
            let mut removed = Vec::new();
            for name in &names {
                removed.push(store.remove(name, force).map_err(image_failure)?);
            }
            if format.output == Format::Json {
                output::print_json(&removed)?;
            }
        }
        Command::Export {
            name,
            file,
            format,
            force,
        } => export_image(&store, &name, file, format, force)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn build_image(store: &Store, args: Build) -> Result<(), Failure> {
    let options = BuildOptions {
        name: args.name,
        disk_size: args.size,
        mirror: args.mirror,
        replace: args.force,
    };
    let progress = TerminalProgress::new()?;
    let image = build(store, &args.what, &options, &progress);
    progress.finish();
    made(&image.map_err(image_failure)?, args.format.output)
}

fn import_image(store: &Store, args: Import) -> Result<(), Failure> {
    let options = ImportOptions {
        format: args.format.map(|format| match format {
            FileFormat::Raw => ImportFormat::Raw,
            FileFormat::Qcow2 => ImportFormat::Qcow2,
            FileFormat::Tar => ImportFormat::Tar,
        }),
        kernel: args.kernel,
        initrd: args.initrd,
        command_line: args.cmdline,
        disk_size: args.size,
        replace: args.force,
        ..ImportOptions::new(args.file, args.name)
    };
    let progress = TerminalProgress::new()?;
    let image = import(store, &options, &progress);
    progress.finish();
    made(&image.map_err(image_failure)?, args.output.output)
}

fn export_image(
    store: &Store,
    name: &ImageName,
    file: PathBuf,
    format: Option<DiskFormat>,
    force: bool,
) -> Result<(), Failure> {
    let named_qcow2 = file.extension().is_some_and(|end| end == "qcow2");
    let format = match format {
        Some(DiskFormat::Qcow2) => ExportFormat::Qcow2,
        None if named_qcow2 => ExportFormat::Qcow2,
        Some(DiskFormat::Raw) | None => ExportFormat::Raw,
    };
    let options = ExportOptions {
        file,
        format,
        replace: force,
    };
    let progress = TerminalProgress::new()?;
    let exported = export(store, name, &options, &progress);
    progress.finish();
    exported.map_err(image_failure)
}

fn made(image: &StoredImage, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => output::print_json(image)?,
        Format::Table => output::print_line(&image.manifest.name.to_string()),
    }
    Ok(())
}

fn list(store: &Store, format: Format) -> Result<(), Failure> {
    let images = store.list().map_err(image_failure)?;
    let headings = ["name", "kernel", "disk", "stored", "created (utc)"];
    output::print_list(format, &images, &headings, |image| {
        let manifest = &image.manifest;
        vec![
            manifest.name.to_string(),
            kernel(image),
            manifest.disk.image.size.to_string(),
            manifest.disk.stored.to_string(),
            minute(manifest.created),
        ]
    })?;
    Ok(())
}

fn kernel(image: &StoredImage) -> String {
    match &image.manifest.kernel {
        Some(kernel) => kernel.release.clone().unwrap_or_else(|| "unknown".into()),
        None => "none".into(),
    }
}

fn show(image: &StoredImage) {
    let manifest = &image.manifest;
    let root = match &manifest.disk.root {
        Some(root) => root.file_system.clone(),
        None => "unknown".to_owned(),
    };
    for (name, text) in [
        ("name", manifest.name.to_string()),
        ("id", image.id.to_string()),
        ("kernel", kernel(image)),
        ("command line", manifest.command_line.clone()),
        ("disk", manifest.disk.image.size.to_string()),
        ("stored", manifest.disk.stored.to_string()),
        ("root", root),
        ("created", minute(manifest.created)),
        ("source", manifest.provenance.source.clone()),
        ("packages", manifest.provenance.packages.len().to_string()),
    ] {
        output::print_line(&format!("{name:<14}{text}"));
    }
}

/// What is wrong with an image, what to do then, and the status for it.
pub fn image_failure(error: ImageError) -> Failure {
    let status = match &error {
        ImageError::NotFound { .. } => exit::NOT_FOUND,
        ImageError::Exists { .. } | ImageError::InUse { .. } | ImageError::FileExists { .. } => {
            exit::CONFLICT
        }
        _ => exit::FAILED,
    };
    let message = match error.hint() {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    };
    Failure::with_status(message, status)
}

/// A time as people read it, in UTC; programs have all of it in JSON.
fn minute(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M").to_string()
}

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::*;
use crate::NoProgress;
use crate::export::{ExportFormat, ExportOptions, export};

struct Fixture {
    directory: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("state")).unwrap();
        Self { directory, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    fn import(&self, file: &Path) -> Result<StoredImage, ImageError> {
        let options = ImportOptions::new(file, "imported".parse().unwrap());
        import(&self.store, &options, &NoProgress)
    }

    fn assert_empty(&self) {
        assert!(self.store.list().unwrap().is_empty());
        self.store.clean().unwrap();
        let state = self.store.state_directory();
        for directory in ["tmp", "blobs/sha256"] {
            assert_eq!(fs::read_dir(state.join(directory)).unwrap().count(), 0);
        }
    }

    fn export(&self, file: &str, format: ExportFormat) -> Result<(), ImageError> {
        let options = ExportOptions {
            file: self.path(file),
            format,
            replace: false,
        };
        export(
            &self.store,
            &"imported".parse().unwrap(),
            &options,
            &NoProgress,
        )
    }
}

/// A disk with a boot sector and data here and there.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; 5 << 20];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    for (n, byte) in disk[(1 << 20)..(1 << 20) + 300_000].iter_mut().enumerate() {
        *byte = (n % 253) as u8;
    }
    disk[(4 << 20) + 5] = 7;
    disk
}

#[test]
fn raw_goes_in_and_comes_out() {
    let fixture = Fixture::new();
    let image = fixture.import(&fixture.file("disk.raw", &disk())).unwrap();
    assert_eq!(image.manifest.kind, Kind::Disk);
    assert!(image.manifest.kernel.is_none());
    assert!(image.manifest.disk.stored.bytes() < 1 << 20);
    fixture.export("out.raw", ExportFormat::Raw).unwrap();
    assert!(fs::read(fixture.path("out.raw")).unwrap() == disk());
    let error = fixture.export("out.raw", ExportFormat::Raw).unwrap_err();
    assert!(matches!(error, ImageError::FileExists { .. }), "{error}");
    let mode = fs::metadata(fixture.path("out.raw"))
        .unwrap()
        .permissions()
        .mode();
    assert_ne!(mode & 0o777, 0o600);
}

#[test]
fn qcow2_comes_out_and_goes_in_the_same() {
    let fixture = Fixture::new();
    let first = fixture.import(&fixture.file("disk.raw", &disk())).unwrap();
    fixture.export("out.qcow2", ExportFormat::Qcow2).unwrap();
    let mut options = ImportOptions::new(fixture.path("out.qcow2"), "again".parse().unwrap());
    let second = import(&fixture.store, &options, &NoProgress).unwrap();
    assert_eq!(first.manifest.disk, second.manifest.disk);

    // Cut anywhere it is an error, and nothing stays of it.
    let whole = fs::read(fixture.path("out.qcow2")).unwrap();
    options.name = "cut".parse().unwrap();
    for length in [4, 15, 60, 110, 65_536, 150_000, 262_144, whole.len() / 2] {
        options.file = fixture.file("cut.qcow2", &whole[..length]);
        let error = import(&fixture.store, &options, &NoProgress).unwrap_err();
        assert!(
            matches!(error, ImageError::NotAnImage { .. }),
            "{length}: {error}"
        );
    }
    assert_eq!(fixture.store.list().unwrap().len(), 2);
}

fn qemu_img(arguments: &[&str], files: &[&Path]) -> Option<bool> {
    let status = Command::new("qemu-img")
        .args(arguments)
        .args(files)
        .output();
    match status {
        Ok(output) => Some(output.status.success()),
        Err(e) => {
            println!("skipped: qemu-img: {e}");
            None
        }
    }
}

#[test]
fn every_kind_of_qcow2_that_qemu_makes_is_read() {
    let fixture = Fixture::new();
    let raw = fixture.file("disk.raw", &disk());
    let expected = fixture.import(&raw).unwrap();
    for options in [
        &["-o", "compat=0.10"][..],
        &["-o", "compat=1.1"],
        &["-c"],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=2M"],
    ] {
        let file = fixture.path("disk.qcow2");
        let arguments = [&["convert", "-O", "qcow2"], options].concat();
        match qemu_img(&arguments, &[&raw, &file]) {
            None => return,
            Some(made) => assert!(made, "{options:?}"),
        }
        let mut import_options = ImportOptions::new(&file, "q".parse().unwrap());
        import_options.replace = true;
        let image = import(&fixture.store, &import_options, &NoProgress)
            .unwrap_or_else(|e| panic!("{options:?}: {e}"));
        assert_eq!(
            image.manifest.disk.image, expected.manifest.disk.image,
            "{options:?}"
        );
    }
}

/// As it is today: imago does not decompress zstd clusters. The error says what is wrong.
#[test]
fn qcow2_with_zstd_is_refused_by_name() {
    let fixture = Fixture::new();
    let (raw, file) = (fixture.file("disk.raw", &disk()), fixture.path("z.qcow2"));
    let arguments = [
        "convert",
        "-c",
        "-O",
        "qcow2",
        "-o",
        "compression_type=zstd",
    ];
    if qemu_img(&arguments, &[&raw, &file]) == Some(true) {
        let error = fixture.import(&file).unwrap_err();
        assert!(error.to_string().contains("compression type"), "{error}");
        fixture.assert_empty();
    }
}

#[test]
fn qemu_finds_an_exported_qcow2_sound_and_equal() {
    let fixture = Fixture::new();
    let raw = fixture.file("disk.raw", &disk());
    fixture.import(&raw).unwrap();
    fixture.export("out.qcow2", ExportFormat::Qcow2).unwrap();
    let out = fixture.path("out.qcow2");
    assert_ne!(qemu_img(&["check", "-q"], &[&out]), Some(false));
    assert_ne!(qemu_img(&["compare", "-q"], &[&raw, &out]), Some(false));
}

#[test]
fn a_backing_file_is_refused() {
    let fixture = Fixture::new();
    let mut header = vec![0; 65_536];
    header[..4].copy_from_slice(&qcow2::MAGIC);
    header[7] = 3;
    header[14] = 1;
    let error = fixture
        .import(&fixture.file("overlay.qcow2", &header))
        .unwrap_err();
    assert!(error.to_string().contains("backing file"), "{error}");
    fixture.assert_empty();
}

#[test]
fn what_is_no_image_is_refused_and_leaves_nothing() {
    let fixture = Fixture::new();
    let mut cut_tar = vec![0; 700];
    cut_tar[257..262].copy_from_slice(b"ustar");
    for (name, bytes) in [
        ("empty", &b""[..]),
        ("text", b"hello, this is a text file\n"),
        ("zeroes", &[0; 4096]),
        ("cut.tar", &cut_tar),
        ("bad.tar.gz", &[0x1f, 0x8b, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("bad.tar.xz", b"\xfd7zXZ\0garbage and more of it"),
        ("bad.tar.zst", &[0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3]),
    ] {
        let error = fixture.import(&fixture.file(name, bytes)).unwrap_err();
        assert!(
            matches!(&error, ImageError::NotAnImage { path, .. } if path.ends_with(name)),
            "{name}: {error}"
        );
        assert!(error.hint().is_some());
        fixture.assert_empty();
    }
    let error = fixture.import(&fixture.path("nowhere")).unwrap_err();
    assert!(matches!(error, ImageError::Io { .. }), "{error}");
    let error = fixture.import(fixture.directory.path()).unwrap_err();
    assert!(error.to_string().contains("not a regular file"), "{error}");
}

#[test]
fn any_file_of_whole_sectors_is_raw_when_told_so() {
    let fixture = Fixture::new();
    let mut options = ImportOptions::new(fixture.file("x", &[1; 1024]), "x".parse().unwrap());
    options.format = Some(ImportFormat::Raw);
    import(&fixture.store, &options, &NoProgress).unwrap();
    options.file = fixture.file("y", &[1; 1000]);
    options.replace = true;
    let error = import(&fixture.store, &options, &NoProgress).unwrap_err();
    assert!(error.to_string().contains("whole sectors"), "{error}");
}

#[test]
fn a_kernel_can_be_given_beside_a_disk() {
    let fixture = Fixture::new();
    let mut kernel = vec![0; 4096];
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    let mut options = ImportOptions::new(fixture.file("d", &disk()), "d".parse().unwrap());
    options.kernel = Some(fixture.file("vmlinuz", &kernel));
    options.initrd = Some(fixture.file("initrd", b"an initrd"));
    options.command_line = Some("root=/dev/vda1".into());
    let image = import(&fixture.store, &options, &NoProgress).unwrap();
    assert_eq!(image.manifest.command_line, "root=/dev/vda1");
    let open = fixture.store.open_image(&options.name).unwrap();
    assert_eq!(
        open.read(open.image.manifest.initrd.unwrap()).unwrap(),
        b"an initrd"
    );
    assert_eq!(fs::read(open.kernel_path().unwrap()).unwrap(), kernel);

    options.name = "e".parse().unwrap();
    options.kernel = Some(fixture.file("no-kernel", b"nothing of the kind"));
    let error = import(&fixture.store, &options, &NoProgress).unwrap_err();
    assert!(error.to_string().contains("not a Linux kernel"), "{error}");
}

#[test]
fn a_tar_archive_becomes_an_ext4_disk() {
    if let Err(e) = tool::require("this test", &tool::disk_tools()) {
        println!("skipped: {e}");
        return;
    }
    let fixture = Fixture::new();
    let mut builder = tar::Builder::new(Vec::new());
    for (path, mode, owner, bytes) in [
        ("etc/motd", 0o644, 0, &b"welcome\n"[..]),
        ("home/ann/secret", 0o600, 1000, b"x"),
        ("bin/su", 0o4755, 0, b"#!"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, path, bytes).unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Char);
    header.set_mode(0o666);
    header.set_size(0);
    header.set_device_major(1).unwrap();
    header.set_device_minor(3).unwrap();
    builder
        .append_data(&mut header, "dev/null", &b""[..])
        .unwrap();
    let bytes = zstd::encode_all(&*builder.into_inner().unwrap(), 1).unwrap();
    let mut options =
        ImportOptions::new(fixture.file("root.tar.zst", &bytes), "t".parse().unwrap());
    options.disk_size = Some(ByteCount::mib(32));
    let image = import(&fixture.store, &options, &NoProgress).unwrap();
    assert_eq!(image.manifest.kind, Kind::Linux);
    assert!(image.manifest.kernel.is_none());
    assert_eq!(image.manifest.disk.image.size, ByteCount::mib(32));

    let open = fixture.store.open_image(&options.name).unwrap();
    let stat = |path: &str| {
        let output = Command::new("/sbin/debugfs")
            .args(["-R", &format!("stat {path}")])
            .arg(open.disk_path().unwrap())
            .output()
            .expect("debugfs, from the package that has mke2fs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let secret = stat("/home/ann/secret");
    assert!(
        secret.contains("User:  1000") && secret.contains("Mode:  0600"),
        "{secret}"
    );
    assert!(stat("/bin/su").contains("Mode:  04755"));
    assert!(stat("/dev/null").contains("character special"));

    options.name = "small".parse().unwrap();
    options.disk_size = Some(ByteCount(8192));
    let error = import(&fixture.store, &options, &NoProgress).unwrap_err();
    assert!(
        matches!(error, ImageError::TooSmall { .. } | ImageError::Tool { .. }),
        "{error}"
    );
}

/// Stops the work when it is asked the third time.
struct Stopper(std::sync::atomic::AtomicUsize);

impl Progress for Stopper {
    fn stage(&self, _: &str, _: Option<ByteCount>) {}
    fn done(&self, _: ByteCount) {}
    fn note(&self, _: &str) {}
    fn is_cancelled(&self) -> bool {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) >= 2
    }
}

#[test]
fn stopped_work_leaves_nothing() {
    let fixture = Fixture::new();
    let options = ImportOptions::new(fixture.file("d", &disk()), "d".parse().unwrap());
    let error = import(&fixture.store, &options, &Stopper(0.into())).unwrap_err();
    assert!(matches!(error, ImageError::Cancelled), "{error}");
    fixture.assert_empty();
}

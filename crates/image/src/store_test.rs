use super::*;
use crate::NoProgress;
use crate::build::{Parts, store_image};
use crate::manifest::{Kind, Provenance};
use crate::rootfs::FoundKernel;

struct Fixture {
    directory: tempfile::TempDir,
    store: Store,
}

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path().join("state")).unwrap();
    Fixture { directory, store }
}

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

/// Stores an image with this disk and kernel.
fn put(store: &Store, image: &str, disk: &[u8], kernel: &[u8]) -> Result<StoredImage, ImageError> {
    let scratch = store.scratch()?;
    let path = scratch.path().join("disk");
    fs::write(&path, disk).unwrap();
    let parts = Parts {
        kind: Kind::Linux,
        kernel: Some(FoundKernel {
            release: "6.1".into(),
            image: kernel.to_vec(),
            modules: Vec::new(),
        }),
        initrd: None,
        disk: path,
        root: None,
        command_line: "quiet".into(),
        provenance: Provenance::new("test"),
    };
    store_image(store, &scratch, &name(image), parts, false, &NoProgress)
}

fn blob_count(store: &Store) -> usize {
    fs::read_dir(store.blobs()).unwrap().count()
}

fn is_tidy(store: &Store) -> bool {
    fs::read_dir(store.tmp()).unwrap().next().is_none()
}

#[test]
fn what_is_stored_is_listed_shown_and_opened() {
    let Fixture {
        directory: _d,
        store,
    } = fixture();
    let stored = put(&store, "a:1", b"disk", b"kernel").unwrap();
    assert_eq!(store.list().unwrap(), std::slice::from_ref(&stored));
    assert_eq!(store.show(&name("a:1")).unwrap(), stored);
    let open = store.open_image(&name("a:1")).unwrap();
    assert_eq!(fs::read(open.disk_path().unwrap()).unwrap(), b"disk");
    assert_eq!(fs::read(open.kernel_path().unwrap()).unwrap(), b"kernel");
    store.verify(&name("a:1"), &NoProgress).unwrap();
    assert!(is_tidy(&store));
}

#[test]
fn the_same_content_is_stored_once() {
    let Fixture {
        directory: _d,
        store,
    } = fixture();
    put(&store, "a", b"disk", b"kernel").unwrap();
    put(&store, "b", b"other disk", b"kernel").unwrap();
    assert_eq!(blob_count(&store), 3);
    store.remove(&name("a"), false).unwrap();
    assert_eq!(blob_count(&store), 2);
    store.verify(&name("b"), &NoProgress).unwrap();
    store.remove(&name("b"), false).unwrap();
    assert_eq!(blob_count(&store), 0);
}

#[test]
fn a_taken_name_is_refused_and_nothing_is_left() {
    let Fixture {
        directory: _d,
        store,
    } = fixture();
    put(&store, "a", b"disk", b"kernel").unwrap();
    let error = put(&store, "a", b"new disk", b"kernel").unwrap_err();
    assert!(matches!(error, ImageError::Exists { .. }), "{error}");
    store.clean().unwrap();
    assert_eq!(blob_count(&store), 2);
    assert!(is_tidy(&store));
}

#[test]
fn an_image_in_use_stays() {
    let Fixture {
        directory: _d,
        store,
    } = fixture();
    put(&store, "a", b"disk", b"kernel").unwrap();
    let running = store.open_image(&name("a")).unwrap();
    let error = store.remove(&name("a"), false).unwrap_err();
    assert!(matches!(error, ImageError::InUse { .. }), "{error}");
    assert!(error.hint().unwrap().contains("--force"));
    let removed = store.remove(&name("a"), true).unwrap();
    assert_eq!(removed.deferred, 2);
    assert!(matches!(
        store.show(&name("a")),
        Err(ImageError::NotFound { .. })
    ));
    assert_eq!(fs::read(running.disk_path().unwrap()).unwrap(), b"disk");
    drop(running);
    assert_eq!(store.clean().unwrap().deferred, 0);
    assert_eq!(blob_count(&store), 0);
}

#[test]
fn an_image_whose_blobs_another_shares_can_go_while_that_runs() {
    let Fixture {
        directory: _d,
        store,
    } = fixture();
    put(&store, "a", b"disk", b"kernel").unwrap();
    put(&store, "b", b"disk", b"kernel").unwrap();
    let _running = store.open_image(&name("b")).unwrap();
    store.remove(&name("a"), false).unwrap();
    assert_eq!(blob_count(&store), 2);
}

#[test]
fn a_pin_keeps_a_disk_until_it_is_taken_out() {
    let Fixture {
        directory: _d,
        store,
    } = fixture();
    let image = put(&store, "a", b"disk", b"kernel").unwrap();
    let disk = image.manifest.disk.image.digest;
    store.pin(&name("kept-disk"), [disk]).unwrap();
    store.remove(&name("a"), false).unwrap();
    assert_eq!(blob_count(&store), 1);
    store.unpin(&name("kept-disk")).unwrap();
    assert_eq!(blob_count(&store), 0);
    store.unpin(&name("kept-disk")).unwrap();
}

#[test]
fn a_missing_image_names_its_neighbours() {
    let Fixture {
        directory: _d,
        store,
    } = fixture();
    put(&store, "debian:12", b"disk", b"kernel").unwrap();
    put(&store, "other", b"disk", b"kernel").unwrap();
    let error = store.show(&name("debain:12")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no image debain:12; there is debian:12"
    );
    let error = store.show(&name("minimal")).unwrap_err();
    assert_eq!(
        error.hint().unwrap(),
        "make it with: favo image build minimal:latest"
    );
}

#[test]
fn a_damaged_image_is_told_apart() {
    let Fixture {
        directory: _d,
        store,
    } = fixture();
    let image = put(&store, "a", b"disk", b"kernel").unwrap();
    let path = store.blob_path(image.manifest.disk.image.digest);
    fs::remove_file(&path).unwrap();
    fs::write(&path, b"disc").unwrap();
    let error = store.verify(&name("a"), &NoProgress).unwrap_err();
    assert!(error.to_string().contains("has other content"), "{error}");
    fs::write(&path, b"di").unwrap();
    let error = store.open_image(&name("a")).unwrap_err();
    assert!(
        error.to_string().contains("2 bytes instead of 4"),
        "{error}"
    );
    fs::remove_file(&path).unwrap();
    assert!(matches!(
        store.open_image(&name("a")),
        Err(ImageError::Damaged { .. })
    ));
    // Storing the content again mends it.
    put(&store, "b", b"disk", b"kernel").unwrap();
    store.verify(&name("a"), &NoProgress).unwrap();
}

#[test]
fn an_unreadable_manifest_stops_removal_of_blobs() {
    let Fixture {
        directory: _d,
        store,
    } = fixture();
    put(&store, "a", b"disk", b"kernel").unwrap();
    put(&store, "b", b"disk b", b"kernel b").unwrap();
    let path = store.manifest_path(&name("b"));
    for (text, reason) in [
        (&b"{\"version\": 2, \"new\": true}"[..], "version 2"),
        (b"not json", "expected"),
        (b"{\"version\": 1}", "missing field"),
    ] {
        fs::write(&path, text).unwrap();
        let error = store.remove(&name("a"), false).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        assert!(error.hint().unwrap().contains("b:latest.json"));
    }
    assert_eq!(blob_count(&store), 4);
}

#[test]
fn leftovers_of_the_dead_go_and_work_of_the_living_stays() {
    let Fixture {
        directory: _d,
        store,
    } = fixture();
    let dead = store.tmp().join("work-dead");
    fs::create_dir(&dead).unwrap();
    fs::write(dead.join("disk"), b"half").unwrap();
    let alive = store.scratch().unwrap();
    assert!(!dead.exists());
    fs::write(alive.path().join("disk"), b"half").unwrap();
    store.clean().unwrap();
    assert!(alive.path().join("disk").exists());
    drop(alive);
    assert!(is_tidy(&store));
}

/// The child of the two tests below: stores and removes images until it is killed.
#[test]
fn child_that_works() {
    let Some(state) = std::env::var_os("FAVO_TEST_STORE_CHILD") else {
        return;
    };
    let store = Store::open(state).unwrap();
    let own = std::process::id();
    for round in 0u32.. {
        let image = format!("child-{own}:{}", round % 3);
        let disk = vec![(round % 5) as u8 + 1; 300_000];
        // By force: another child may be storing the same content and hold it.
        match store.remove(&name(&image), true) {
            Ok(_) | Err(ImageError::NotFound { .. }) => {}
            Err(e) => panic!("remove: {e}"),
        }
        match put(&store, &image, &disk, b"shared kernel") {
            Ok(_) => {
                store.verify(&name(&image), &NoProgress).unwrap();
                println!("stored {image}");
            }
            Err(e) => panic!("put: {e}"),
        }
    }
}

fn spawn_child(store: &Store) -> std::process::Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::test::child_that_works", "--nocapture"])
        .env("FAVO_TEST_STORE_CHILD", store.state_directory())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

/// Every image the catalogue lists is whole, and after a cleaning nothing else is there.
fn assert_consistent(store: &Store) {
    let mut blobs = BTreeSet::new();
    for image in store.list().unwrap() {
        store.verify(&image.manifest.name, &NoProgress).unwrap();
        blobs.extend(image.manifest.blobs().map(|b| b.digest));
    }
    store.clean().unwrap();
    assert_eq!(blob_count(store), blobs.len());
    assert!(is_tidy(store));
}

#[test]
fn kill_9_at_any_moment_loses_nothing_and_leaves_nothing() {
    let Fixture {
        directory: _d,
        store,
    } = fixture();
    put(&store, "kept", b"kept disk", b"kept kernel").unwrap();
    let (mut stored, mut round) = (0, 0);
    // However slow the machine: until enough kills came among enough work.
    while round < 25 || stored < 20 {
        round += 1;
        assert!(round < 500, "the children stored only {stored} images");
        let mut child = spawn_child(&store);
        let mut output = child.stdout.take().unwrap();
        std::thread::sleep(std::time::Duration::from_micros(15_000 + round * 3_170));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut text = String::new();
        io::Read::read_to_string(&mut output, &mut text).unwrap();
        // Rounds walk over three names: the kill met another one than the last acknowledged.
        let acknowledged: Vec<_> = text
            .lines()
            .filter_map(|l| l.strip_prefix("stored "))
            .collect();
        stored += acknowledged.len();
        if let Some(image) = acknowledged.last() {
            store.show(&name(image)).unwrap();
        }
        assert_consistent(&store);
    }
    store.verify(&name("kept"), &NoProgress).unwrap();
}

#[test]
fn two_processes_at_once_do_not_disturb_each_other() {
    let Fixture {
        directory: _d,
        store,
    } = fixture();
    let mut children = [spawn_child(&store), spawn_child(&store)];
    let until = std::time::Instant::now() + std::time::Duration::from_secs(3);
    let mut round = 0;
    while std::time::Instant::now() < until {
        // The kernel is shared with the children: theirs and ours come and go.
        put(&store, "ours", &[9; 1000], b"shared kernel").unwrap();
        let open = store.open_image(&name("ours")).unwrap();
        store.verify(&name("ours"), &NoProgress).unwrap();
        drop(open);
        // A child may hold the kernel this very moment.
        store.remove(&name("ours"), true).unwrap();
        round += 1;
    }
    for child in &mut children {
        assert!(child.try_wait().unwrap().is_none(), "a child failed");
        child.kill().unwrap();
        let mut text = String::new();
        io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut text).unwrap();
        child.wait().unwrap();
        assert!(text.matches("stored").count() > 3, "{text}");
    }
    assert!(round > 3, "{round}");
    assert_consistent(&store);
}

use std::fs::File;
use std::os::unix::net::UnixListener;

use super::*;

/// Its process holds the lock, and its socket comes later.
#[test]
fn a_process_that_is_just_starting_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new(directory.path());
    assert!(reach(&place).unwrap().is_none());
    let lock: File = place.lock().unwrap().unwrap();
    let control = place.control();
    let process = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        let listener = UnixListener::bind(control).unwrap();
        listener.accept().unwrap();
    });
    assert!(reach(&place).unwrap().is_some());
    process.join().unwrap();
    // A socket that nobody serves any more is that of a process that ended.
    drop(lock);
    assert!(reach(&place).unwrap().is_none());
}

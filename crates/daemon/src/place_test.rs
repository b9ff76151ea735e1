use super::*;

fn machine() -> MachineFile {
    MachineFile {
        name: "web".to_owned(),
        image: "minimal".to_owned(),
        cpus: 1,
        memory: 1 << 28,
        network: "user".to_owned(),
        publish: Vec::new(),
        rate: Vec::new(),
        demand: 3,
        failures: 0,
        started: Timestamp::UNIX_EPOCH,
    }
}

#[test]
fn who_has_the_lock_lives() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new(directory.path());
    assert!(!place.is_alive().unwrap());
    let lock = place.lock().unwrap().unwrap();
    assert!(place.is_alive().unwrap());
    assert!(place.lock().unwrap().is_none());
    drop(lock);
    assert!(!place.is_alive().unwrap());
    assert!(place.lock().unwrap().is_some());
}

#[test]
fn what_was_written_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new(directory.path());
    assert_eq!(place.machine().unwrap(), None);
    place.set_machine(&machine()).unwrap();
    assert_eq!(place.machine().unwrap(), Some(machine()));
}

#[test]
fn half_a_word_is_no_word() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::new(directory.path());
    place.forget_exit().unwrap();
    std::fs::write(place.exit_file(), r#"{"ending":"powered_o"#).unwrap();
    assert_eq!(place.exit(), None);
    place.forget_exit().unwrap();
    assert!(!place.exit_file().exists());
}

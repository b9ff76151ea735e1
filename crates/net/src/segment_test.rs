use super::*;

#[test]
fn instances_get_addresses_of_their_own_and_keep_them() {
    let networks = tempfile::tempdir().unwrap();
    let join = |instance: &str| join(networks.path(), "lab", instance, 1500);
    let web = join("web").unwrap();
    let db = join("db").unwrap();
    assert_eq!(web.network, db.network);
    assert_ne!(web.lease.v4, db.lease.v4);
    assert_ne!(web.lease.mac, db.lease.mac);
    assert!(web.network.v4.unwrap().hosts_contain(web.lease.v4.unwrap()));

    let error = join("web").unwrap_err();
    assert!(matches!(error, SegmentError::Running(..)), "{error}");

    let Inspection { network, instances } = inspect(networks.path(), "lab").unwrap().unwrap();
    assert_eq!(network, web.network);
    assert_eq!(
        instances,
        [("db".to_owned(), db.lease), ("web".to_owned(), web.lease)]
    );
    assert!(inspect(networks.path(), "other").unwrap().is_none());

    let lease = web.lease;
    drop(web);
    let cache = join("cache").unwrap();
    assert_ne!(cache.lease.v4, lease.v4, "a lease outlives its instance");
    assert_eq!(join("web").unwrap().lease, lease);
}

#[test]
fn a_full_network_takes_leases_of_the_gone_and_then_refuses() {
    let networks = tempfile::tempdir().unwrap();
    let directory = networks.path().join("tiny");
    std::fs::create_dir(&directory).unwrap();
    let mut network = Network::named("tiny", 1500);
    let subnet = network.v4.as_mut().unwrap();
    subnet.prefix = "10.0.0.0/30".parse().unwrap();
    subnet.gateway = "10.0.0.1".parse().unwrap();
    std::fs::write(
        directory.join("network.json"),
        serde_json::to_vec(&network).unwrap(),
    )
    .unwrap();
    let join = |instance: &str| join(networks.path(), "tiny", instance, 1500);
    drop(join("gone").unwrap());
    let here = join("here").unwrap();
    assert_eq!(here.lease.v4, Some("10.0.0.2".parse().unwrap()));
    let error = join("late").unwrap_err();
    assert!(matches!(error, SegmentError::Full(..)), "{error}");
}

#[test]
fn names_that_are_paths_are_refused() {
    let networks = tempfile::tempdir().unwrap();
    for bad in ["", "../x", "a/b", "-a", "a b", "ä", &"a".repeat(64)] {
        assert!(matches!(
            join(networks.path(), bad, "web", 1500),
            Err(SegmentError::Name(_))
        ));
        assert!(matches!(
            join(networks.path(), "lab", bad, 1500),
            Err(SegmentError::Name(_))
        ));
    }
    assert_eq!(std::fs::read_dir(networks.path()).unwrap().count(), 0);
}

#[test]
fn what_a_killed_process_leaves_is_in_nobodys_way() {
    let networks = tempfile::tempdir().unwrap();
    let directory = networks.path().join("lab");
    drop(join(networks.path(), "lab", "web", 1500).unwrap());
    // A socket nobody listens on, and a lease that was cut off.
    drop(std::os::unix::net::UnixListener::bind(directory.join("1-0.sock")).unwrap());
    std::fs::write(directory.join("web.lease"), "{\"mac\":").unwrap();
    let web = join(networks.path(), "lab", "web", 1500).unwrap();
    assert!(web.lease.v4.is_some());
}

#[test]
fn a_damaged_description_is_named() {
    let networks = tempfile::tempdir().unwrap();
    std::fs::create_dir(networks.path().join("lab")).unwrap();
    std::fs::write(networks.path().join("lab/network.json"), "{}").unwrap();
    let error = join(networks.path(), "lab", "web", 1500).unwrap_err();
    assert!(error.to_string().contains("network.json"), "{error}");
}

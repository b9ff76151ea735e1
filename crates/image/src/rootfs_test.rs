use super::*;

#[test]
fn releases_are_ordered_by_number() {
    let mut releases = [
        "6.1.0-9-cloud-amd64",
        "6.12.3+deb12-cloud-amd64",
        "6.1.0-56-cloud-amd64",
    ];
    releases.sort_by_key(|release| version_key(release));
    assert_eq!(
        releases,
        [
            "6.1.0-9-cloud-amd64",
            "6.1.0-56-cloud-amd64",
            "6.12.3+deb12-cloud-amd64"
        ]
    );
}

#[test]
fn installed_packages_are_read() {
    let status = "Package: a\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1-2\n\n\
                  Package: b\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 3\n";
    let packages = installed_packages(status);
    assert_eq!(packages.len(), 1);
    assert_eq!((&*packages[0].name, &*packages[0].version), ("a", "1-2"));
}

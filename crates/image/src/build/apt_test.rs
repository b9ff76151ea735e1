use super::*;

const BOOKWORM: &str = "\
Packages|http://archive.test/debian/|bookworm|bookworm|main|Debian|/etc/apt/sources.list.d/debian.sources:1
Translations|http://archive.test/debian/|bookworm|bookworm|main|Debian|/etc/apt/sources.list.d/debian.sources:1
Packages|http://archive.test/debian/|bookworm-updates|bookworm-updates|main|Debian|/etc/apt/sources.list.d/debian.sources:1
Packages|http://security.test/debian-security/|bookworm-security|bookworm-security|main|Debian-Security|/etc/apt/sources.list.d/debian.sources:2
Packages|https://vendor.test/apt/|stable|stable|main|Vendor|/etc/apt/sources.list.d/vendor.list:1
";

fn chosen(suite: &str, listing: &str) -> Option<String> {
    let key = |target: &HostTarget| {
        (target.uri == "http://archive.test/debian").then(|| "/own.gpg".to_string())
    };
    choose(
        suite,
        &parse_targets(listing),
        &key,
        Some("/debian.gpg".into()),
    )
    .map(|sources| to_deb822(&sources))
}

#[test]
fn the_hosts_own_suite_is_taken_as_it_is() {
    assert_eq!(
        chosen("bookworm", BOOKWORM).unwrap(),
        "Types: deb\nURIs: http://archive.test/debian\nSuites: bookworm bookworm-updates\n\
         Components: main\nSigned-By: /own.gpg\n\n\
         Types: deb\nURIs: http://security.test/debian-security\nSuites: bookworm-security\n\
         Components: main\n"
    );
}

#[test]
fn another_suite_comes_from_the_same_archive() {
    let text = chosen("trixie", BOOKWORM).unwrap();
    assert!(text.contains("Suites: trixie trixie-updates\n"), "{text}");
    assert!(text.contains("Suites: trixie-security\nComponents: main\nSigned-By: /debian.gpg"));
    assert!(!text.contains("vendor"));
}

#[test]
fn before_the_first_update_labels_are_unknown() {
    let listing = BOOKWORM
        .replace("|Debian|", "|$(LABEL)|")
        .replace("|Debian-Security|", "|$(LABEL)|");
    assert_eq!(chosen("bookworm", &listing), chosen("bookworm", BOOKWORM));
}

#[test]
fn a_host_without_debian_has_no_source() {
    let listing = "Packages|http://ubuntu.test/ubuntu/|noble|noble|main|Ubuntu|/x:1\nnonsense\n";
    assert_eq!(chosen("bookworm", listing), None);
}

#[test]
fn keys_are_found_in_both_forms() {
    let deb822 = "# comment\nTypes: deb\nURIs: http://a.test/debian/\nSuites: x\n\
                  Signed-By:\n -----BEGIN\n .\n END\nArchitectures: amd64\n\n\
                  Types: deb\nURIs: http://b.test/debian\nSigned-By: /b.gpg\n";
    assert_eq!(
        signed_by_in(deb822, "http://a.test/debian").as_deref(),
        Some("\n -----BEGIN\n .\n END")
    );
    assert_eq!(
        signed_by_in(deb822, "http://b.test/debian").as_deref(),
        Some("/b.gpg")
    );
    assert_eq!(signed_by_in(deb822, "http://c.test"), None);
    let line = "# x\ndeb [arch=amd64 signed-by=/k.gpg] http://a.test/debian x main\n";
    assert_eq!(
        signed_by_in(line, "http://a.test/debian").as_deref(),
        Some("/k.gpg")
    );
}

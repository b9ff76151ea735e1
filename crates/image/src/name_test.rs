use super::*;
use proptest::prelude::*;

#[test]
fn names_read_and_print() {
    for (text, printed) in [
        ("debian:12", "debian:12"),
        ("minimal", "minimal:latest"),
        (
            "example.org/team/app:v1.0_RC+2",
            "example.org/team/app:v1.0_RC+2",
        ),
    ] {
        assert_eq!(text.parse::<ImageName>().unwrap().to_string(), printed);
    }
}

#[test]
fn what_is_no_name_is_refused() {
    for text in [
        "",
        ":",
        "a:",
        ":a",
        "Debian",
        "a b",
        "../x",
        "a/../b",
        "/a",
        "a/",
        "a:b:c",
        "a:b/c",
        ".a",
        "a%b",
        "-a",
        &"a".repeat(129),
    ] {
        assert!(text.parse::<ImageName>().is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn file_names_lead_back(text in "[a-z0-9._/-]{1,20}(:[A-Za-z0-9._+-]{1,9})?") {
        if let Ok(name) = text.parse::<ImageName>() {
            prop_assert!(!name.file_name().contains('/'));
            prop_assert_eq!(ImageName::from_file_name(&name.file_name()), Some(name));
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".*") {
        let _ = text.parse::<ImageName>();
        let _ = ImageName::from_file_name(&text);
    }
}

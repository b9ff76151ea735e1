use super::*;

#[test]
fn names_are_dns_labels() {
    let longest = format!("a{}", "0".repeat(62));
    for text in ["a", "mail", "web-1", "a--b", "x9", &longest] {
        assert_eq!(text.parse::<Name>().expect(text).as_str(), text);
    }
    assert_eq!(
        format!("{:<6}|", "mail".parse::<Name>().unwrap()),
        "mail  |"
    );
}

#[test]
fn what_is_no_name_says_why() {
    let error = |text: &str| text.parse::<Name>().unwrap_err();
    assert_eq!(error(""), NameError::Empty);
    assert_eq!(error("1st"), NameError::Begin("1st".into()));
    assert_eq!(error("-v"), NameError::Begin("-v".into()));
    assert_eq!(error("web-"), NameError::End("web-".into()));
    assert!(matches!(error(&"a".repeat(64)), NameError::TooLong(_)));
    for (text, wrong) in [
        ("Mail", 'M'),
        ("a.b", '.'),
        ("a/b", '/'),
        ("a b", ' '),
        ("größe", 'ö'),
        ("a\u{1b}[2J", '\u{1b}'),
    ] {
        assert!(
            matches!(error(text), NameError::Character { character, .. } if character == wrong),
            "{text:?}"
        );
    }
    // Nothing of a hostile name reaches a terminal.
    let text = error(&format!("a\u{1b}[2J{}", "x".repeat(1000))).to_string();
    assert!(!text.contains('\u{1b}') && text.len() < 250, "{text:?}");
}

#[test]
fn names_in_json_are_checked() {
    let name: Name = serde_json::from_str("\"mail\"").unwrap();
    assert_eq!(serde_json::to_string(&name).unwrap(), "\"mail\"");
    assert!(serde_json::from_str::<Name>("\"../etc\"").is_err());
}

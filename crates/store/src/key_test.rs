use super::*;

#[test]
fn a_key_is_text_of_some_length() {
    assert_eq!(Key::new("instance/mail").unwrap().as_str(), "instance/mail");
    assert_eq!(Key::new(""), Err(KeyError::Empty));
    assert_eq!(Key::new("x".repeat(513)), Err(KeyError::TooLong(513)));
    assert!(Key::new("ü".repeat(256)).is_ok());
    assert!(matches!(Key::new("a\0b"), Err(KeyError::Control(_))));
    assert!(matches!(Prefix::new("a\n"), Err(KeyError::Control(_))));
    assert!(serde_json::from_str::<Key>("\"a\\u0007\"").is_err());
}

#[test]
fn a_prefix_begins_keys() {
    let prefix = Prefix::new("instance/").unwrap();
    let key = prefix.key("mail").unwrap();
    assert!(key.starts_with(&prefix));
    assert!(key.starts_with(&Prefix::ALL));
    assert_eq!(key.strip_prefix(&prefix), Some("mail"));
    assert_eq!(key.strip_prefix(&Prefix::new("pool/").unwrap()), None);
}

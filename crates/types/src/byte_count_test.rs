use super::*;

#[test]
fn reads_the_forms_people_write() {
    for (text, bytes) in [
        ("4096", 4096),
        ("512M", 512 << 20),
        ("2g", 2 << 30),
        ("2GiB", 2 << 30),
        ("1.5G", 3 << 29),
        (" 64 KiB ", 64 << 10),
        ("0", 0),
        ("18446744073709551615", u64::MAX),
    ] {
        assert_eq!(text.parse(), Ok(ByteCount(bytes)), "{text}");
    }
}

#[test]
fn refuses_what_is_no_size() {
    for text in ["", "M", "-1", "1.2.3", "lots", "."] {
        let error = text.parse::<ByteCount>().expect_err(text);
        assert!(error.to_string().contains("not a"), "{text}: {error}");
    }
    assert!(matches!(
        "3X".parse::<ByteCount>(),
        Err(ParseByteCountError::UnknownUnit { .. })
    ));
    for text in ["16777216T", "0.3", "18446744073709551616"] {
        assert!(
            matches!(
                text.parse::<ByteCount>(),
                Err(ParseByteCountError::OutOfRange(_))
            ),
            "{text}"
        );
    }
}

#[test]
fn shows_a_size_shortly() {
    assert_eq!(ByteCount::mib(512).to_string(), "512 MiB");
    assert_eq!(ByteCount(3 << 29).to_string(), "1.5 GiB");
    assert_eq!(ByteCount(317).to_string(), "317 B");
    assert_eq!(format!("{:>8}", ByteCount::kib(4)), "   4 KiB");
}

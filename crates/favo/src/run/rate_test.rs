use super::*;

fn parsed(text: &str) -> RateArgument {
    text.parse().unwrap()
}

#[test]
fn rates_are_read() {
    let rate = |per_second, burst| Some(Rate { per_second, burst });
    let (from_guest, to_guest) = limits(&[
        parsed("out:10M"),
        parsed("in:1M/256K"),
        parsed("out:1000pps"),
        parsed("in:20pps/5"),
    ])
    .unwrap();
    assert_eq!(from_guest.bytes, rate(10 << 20, 1 << 20));
    assert_eq!(from_guest.packets, rate(1000, 100));
    assert_eq!(to_guest.bytes, rate(1 << 20, 256 << 10));
    assert_eq!(to_guest.packets, rate(20, 5));
    // Slow, but a large frame is not more than the bucket.
    assert_eq!(
        limits(&[parsed("in:1K")]).unwrap().1.bytes,
        rate(1024, 64 << 10)
    );
}

#[test]
fn nonsense_is_refused() {
    for text in [
        "",
        "10M",
        "up:10M",
        "out:",
        "out:0",
        "out:1M/0",
        "in:x",
        "in:1.5pps",
        "in:1pps/1M",
    ] {
        assert!(text.parse::<RateArgument>().is_err(), "{text}");
    }
    let twice = limits(&[parsed("in:1M"), parsed("in:2M")]).unwrap_err();
    assert!(twice.contains("second of its kind"), "{twice}");
}

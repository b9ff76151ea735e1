use super::*;

#[test]
fn text_round_trips_and_nonsense_is_refused() {
    let mac: MacAddress = "52:54:00:Ab:cd:ef".parse().unwrap();
    assert_eq!(mac.to_string(), "52:54:00:ab:cd:ef");
    for bad in [
        "",
        "52:54:00:ab:cd",
        "52:54:00:ab:cd:ef:00",
        "5254:00:ab:cd:ef",
        "+1:54:00:ab:cd:ef",
    ] {
        assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
    }
}

#[test]
fn the_autoconfigured_address_follows_rfc_4291() {
    let mac: MacAddress = "34:56:78:9a:bc:de".parse().unwrap();
    assert_eq!(
        mac.eui64("fe80::".parse().unwrap()),
        "fe80::3656:78ff:fe9a:bcde".parse::<Ipv6Addr>().unwrap()
    );
}

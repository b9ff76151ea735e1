use super::*;

#[test]
fn ends_are_addresses_and_names_with_and_without_ports() {
    let end = |text: &str| {
        let end: Endpoint = text.parse().unwrap();
        (end.station, end.port)
    };
    let address = |text: &str| Station::Address(text.parse().unwrap());
    assert_eq!(end("10.0.2.15:1234"), (address("10.0.2.15"), Some(1234)));
    assert_eq!(end("10.0.2.15"), (address("10.0.2.15"), None));
    assert_eq!(end("fd00::1"), (address("fd00::1"), None));
    assert_eq!(end("[fd00::1]"), (address("fd00::1"), None));
    assert_eq!(end("[fd00::1]:53"), (address("fd00::1"), Some(53)));
    assert_eq!(end("guest"), (Station::Guest, None));
    assert_eq!(end("gateway:53"), (Station::Gateway, Some(53)));
    assert_eq!(end("web:22"), (Station::Named("web".into()), Some(22)));
}

#[test]
fn the_protocol_follows_from_the_port_if_it_is_left_out() {
    let protocol = |text: &str| text.parse::<Target>().unwrap().protocol;
    assert_eq!(protocol("1.1.1.1:443"), Transport::Tcp);
    assert_eq!(protocol("1.1.1.1:53/udp"), Transport::Udp);
    assert_eq!(protocol("1.1.1.1"), Transport::Icmp);
    assert_eq!(protocol("[2600::1]/icmp"), Transport::Icmp);
}

#[test]
fn nonsense_is_refused() {
    for text in [
        "",
        "a_b",
        "web:x",
        "web:65536",
        "1.1.1.1/tcp",
        "1.1.1.1:1/icmp",
        "1.1.1.1:1/sctp",
    ] {
        assert!(text.parse::<Target>().is_err(), "{text}");
    }
}

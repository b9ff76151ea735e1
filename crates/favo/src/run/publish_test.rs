use super::*;

#[test]
fn ports_are_published_on_all_addresses_or_on_one() {
    for (text, address, protocol, shown) in [
        ("8080:80", None, ForwardProtocol::Tcp, "8080:80/tcp"),
        (
            "127.0.0.1:8080:80/udp",
            Some("127.0.0.1"),
            ForwardProtocol::Udp,
            "127.0.0.1:8080:80/udp",
        ),
        (
            "[::1]:8080:80/tcp",
            Some("::1"),
            ForwardProtocol::Tcp,
            "[::1]:8080:80/tcp",
        ),
    ] {
        let publish: Publish = text.parse().unwrap();
        let expected = Publish {
            address: address.map(|address| address.parse().unwrap()),
            host_port: 8080,
            guest_port: 80,
            protocol,
        };
        assert_eq!(publish, expected);
        assert_eq!(publish.to_string(), shown);
        assert_eq!(shown.parse(), Ok(publish));
    }
}

#[test]
fn what_is_no_publication_is_refused_with_its_reason() {
    for (text, reason) in [
        ("80", "give the host's port"),
        ("", "give the host's port"),
        ("0:80", "'0' is no port"),
        ("80:65536", "'65536' is no port"),
        ("80:", "'' is no port"),
        ("80:80/sctp", "'sctp' is neither"),
        ("::1:80:80", "'::1' is no address"),
        ("[127.0.0.1]:80:80", "'[127.0.0.1]' is no address"),
        ("localhost:80:80", "'localhost' is no address"),
    ] {
        let error = text.parse::<Publish>().unwrap_err();
        assert!(error.contains(reason), "{text}: {error}");
    }
}

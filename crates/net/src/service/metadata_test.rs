use proptest::prelude::*;

use super::*;
use crate::model::{MacAddress, PortId};

fn server() -> MetadataServer {
    let network = Network::named("lab", 1500);
    let mac = MacAddress([0x52, 0x54, 0, 0, 0, 1]);
    let port = Port::new(
        &network,
        PortId(1),
        "web",
        mac,
        Some("10.0.0.2".parse().unwrap()),
    );
    let metadata = Metadata {
        instance_id: "i-1".into(),
        public_keys: vec!["ssh-ed25519 AAAA me".into(), "ssh-rsa BBBB you".into()],
        user_data: Some(b"#cloud-config\n".to_vec()),
        vendor_data: None,
    };
    MetadataServer::new(&network, &port, &metadata)
}

fn send(server: &mut MetadataServer, request: &str, now: Milliseconds) -> (u16, String) {
    let Response::Whole(bytes) = server.respond(request.as_bytes(), now) else {
        panic!("not whole: {request:?}");
    };
    let text = String::from_utf8(bytes).unwrap();
    let code = text.split(' ').nth(1).unwrap().parse().unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(
        head.contains(&format!("Content-Length: {}", body.len())),
        "{head}"
    );
    (code, body.to_owned())
}

fn token(server: &mut MetadataServer) -> String {
    let request = "PUT /latest/api/token HTTP/1.1\r\nHost: x\r\n\
                   X-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
    let (code, token) = send(server, request, 0);
    assert_eq!(code, 200);
    token
}

fn get(server: &mut MetadataServer, token: &str, path: &str) -> (u16, String) {
    send(
        server,
        &format!("GET {path} HTTP/1.1\r\nx-aws-ec2-metadata-token: {token}\r\n\r\n"),
        1,
    )
}

#[test]
fn a_token_opens_what_is_served() {
    let mut server = server();
    let token = token(&mut server);
    let ok = |body: &str| (200, body.to_owned());
    let path = "/latest/meta-data";
    assert_eq!(
        get(&mut server, &token, &format!("{path}/instance-id")),
        ok("i-1")
    );
    assert_eq!(
        get(&mut server, &token, "/2021-03-23/meta-data/local-hostname"),
        ok("web.lab.internal")
    );
    assert_eq!(
        get(&mut server, &token, "/latest/user-data"),
        ok("#cloud-config\n")
    );
    assert_eq!(
        get(&mut server, &token, &format!("{path}/public-keys/")),
        ok("0=key-0\n1=key-1")
    );
    assert_eq!(
        get(
            &mut server,
            &token,
            &format!("{path}/public-keys/1/openssh-key")
        ),
        ok("ssh-rsa BBBB you\n")
    );
    assert_eq!(get(&mut server, &token, "/latest/vendor-data").0, 404);
    assert_eq!(
        get(&mut server, &token, "/latest/"),
        ok("meta-data/\nuser-data")
    );
    let macs = "network/interfaces/macs/52:54:00:00:00:01";
    assert_eq!(
        get(&mut server, &token, &format!("{path}/{macs}/local-ipv4s")),
        ok("10.0.0.2")
    );
    assert_eq!(get(&mut server, &token, "/../etc/passwd").0, 404);
}

#[test]
fn without_a_good_token_nothing_is_told() {
    let mut server = server();
    let good = token(&mut server);
    let plain = "GET /latest/user-data HTTP/1.1\r\n\r\n";
    assert_eq!(send(&mut server, plain, 0).0, 401);
    assert_eq!(get(&mut server, "guess", "/latest/user-data").0, 401);
    let late = format!("GET /latest/ HTTP/1.1\r\nx-aws-ec2-metadata-token: {good}\r\n\r\n");
    assert_eq!(send(&mut server, &late, 59_999).0, 200);
    assert_eq!(send(&mut server, &late, 60_000).0, 401);
}

#[test]
fn tokens_are_given_to_the_guest_itself_for_a_bounded_time() {
    let mut server = server();
    let put = |extra: &str| format!("PUT /latest/api/token HTTP/1.1\r\n{extra}\r\n");
    let ttl = "X-aws-ec2-metadata-token-ttl-seconds";
    assert_eq!(send(&mut server, &put(""), 0).0, 400);
    assert_eq!(send(&mut server, &put(&format!("{ttl}: 0\r\n")), 0).0, 400);
    assert_eq!(
        send(&mut server, &put(&format!("{ttl}: 21601\r\n")), 0).0,
        400
    );
    let forwarded = format!("{ttl}: 60\r\nX-Forwarded-For: 1.2.3.4\r\n");
    assert_eq!(send(&mut server, &put(&forwarded), 0).0, 403);
    for _ in 0..2 * MAXIMUM_TOKENS {
        token(&mut server);
    }
    assert_eq!(server.tokens.len(), MAXIMUM_TOKENS);
}

#[test]
fn requests_come_in_pieces_and_end() {
    let mut server = server();
    let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    for cut in 0..request.len() {
        assert_eq!(server.respond(&request[..cut], 0), Response::Incomplete);
    }
    let endless = vec![b'a'; MAXIMUM_REQUEST];
    assert!(matches!(server.respond(&endless, 0), Response::Whole(_)));
    assert_eq!(send(&mut server, "POST / HTTP/1.1\r\n\r\n", 0).0, 405);
    assert_eq!(send(&mut server, "what?\r\n\r\n", 0).0, 400);
}

proptest! {
    #[test]
    fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = server().respond(&bytes, 0);
    }
}

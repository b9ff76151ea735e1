use hickory_proto::op::Query;
use proptest::prelude::*;

use super::*;

fn names() -> Names {
    let mut network = Network::named("lab", 1500);
    network.v4.as_mut().unwrap().prefix = "10.0.0.0/24".parse().unwrap();
    network.v6.as_mut().unwrap().prefix = "fd00:1::/64".parse().unwrap();
    let instances = [
        ("web", vec!["10.0.0.2", "fd00:1::2", "fe80::2"]),
        ("Db", vec!["10.0.0.3"]),
        ("", vec!["10.0.0.4"]),
    ];
    Names::new(
        &network,
        instances
            .iter()
            .map(|(name, ips)| (*name, ips.iter().map(|ip| ip.parse().unwrap()).collect())),
    )
}

fn ask(name: &str, kind: RecordType) -> Option<(ResponseCode, Vec<String>)> {
    let mut query = Message::new(0x1234, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    match names().answer(&query.to_vec().unwrap()) {
        Answered::Here(bytes) => {
            let reply = Message::from_vec(&bytes).unwrap();
            assert_eq!(reply.metadata.id, 0x1234);
            assert_eq!(reply.queries, query.queries);
            let answers = reply
                .answers
                .iter()
                .map(|record| record.data.to_string())
                .collect();
            Some((reply.metadata.response_code, answers))
        }
        Answered::Elsewhere => None,
        Answered::Nonsense => panic!("a query taken for nonsense"),
    }
}

#[test]
fn instances_are_found_by_name() {
    let ok = |answers: &[&str]| {
        Some((
            ResponseCode::NoError,
            answers.iter().map(|&a| a.to_owned()).collect::<Vec<_>>(),
        ))
    };
    assert_eq!(ask("web.", RecordType::A), ok(&["10.0.0.2"]));
    assert_eq!(ask("WEB.lab.internal.", RecordType::A), ok(&["10.0.0.2"]));
    assert_eq!(
        ask("web.lab.internal.", RecordType::AAAA),
        ok(&["fd00:1::2"])
    );
    assert_eq!(ask("db.", RecordType::A), ok(&["10.0.0.3"]));
    assert_eq!(
        ask("db.", RecordType::AAAA),
        ok(&[]),
        "no such address, but the name exists"
    );
    assert_eq!(
        ask("2.0.0.10.in-addr.arpa.", RecordType::PTR),
        ok(&["web.lab.internal."])
    );
    let nibbles = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa.";
    assert_eq!(ask(nibbles, RecordType::PTR), ok(&["web.lab.internal."]));
}

#[test]
fn names_nobody_has_are_denied_in_the_domain_and_asked_for_elsewhere() {
    assert_eq!(
        ask("mail.lab.internal.", RecordType::A).unwrap().0,
        ResponseCode::NXDomain
    );
    assert_eq!(
        ask("9.0.0.10.in-addr.arpa.", RecordType::PTR).unwrap().0,
        ResponseCode::NXDomain
    );
    for elsewhere in [
        "example.org.",
        "web.example.org.",
        "xlab.internal.",
        "9.9.9.9.in-addr.arpa.",
    ] {
        assert_eq!(ask(elsewhere, RecordType::A), None, "{elsewhere}");
    }
}

proptest! {
    #[test]
    fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let _ = names().answer(&bytes);
    }
}

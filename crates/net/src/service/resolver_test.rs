use std::net::TcpListener;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::*;

fn query() -> Vec<u8> {
    let mut query = Message::new(0x4242, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(
        Name::from_ascii("example.org.").unwrap(),
        RecordType::A,
    ));
    query.to_vec().unwrap()
}

fn answer_to(query: &[u8]) -> Vec<u8> {
    let query = Message::from_vec(query).unwrap();
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    let name = query.queries[0].name().clone();
    reply.queries = query.queries;
    reply.add_answer(Record::from_rdata(
        name,
        60,
        RData::A(A(Ipv4Addr::new(1, 2, 3, 4))),
    ));
    reply.to_vec().unwrap()
}

fn wait<C>(resolver: &mut Resolver<C>) -> Resolved<C> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(resolved) = resolver.collect(Instant::now()).pop() {
            return resolved;
        }
        assert!(Instant::now() < deadline, "no answer came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_answer_comes_back_with_the_askers_identifier_and_guesses_do_not() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let source = Resolvers::Fixed(vec![server.local_addr().unwrap()]);
    let mut resolver = Resolver::new(source).unwrap();
    assert!(
        resolver
            .ask(Instant::now(), PortId(1), "client", &query(), false)
            .is_none()
    );
    let mut buffer = [0; 512];
    let (length, from) = server.recv_from(&mut buffer).unwrap();
    let mut guess = answer_to(&buffer[..length]);
    guess[0] ^= 1;
    server.send_to(&guess, from).unwrap();
    let mut other = answer_to(&buffer[..length]);
    other[13] ^= 3;
    server.send_to(&other, from).unwrap();
    server.send_to(b"x", from).unwrap();
    server.send_to(&answer_to(&buffer[..length]), from).unwrap();
    let resolved = wait(&mut resolver);
    assert_eq!((resolved.client, resolved.port), ("client", PortId(1)));
    let reply = Message::from_vec(&resolved.answer).unwrap();
    assert_eq!(reply.metadata.id, 0x4242);
    assert_eq!(reply.answers.len(), 1);
    assert!(resolver.deadline().is_none());
}

#[test]
fn a_question_over_tcp_is_asked_over_tcp() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let source = Resolvers::Fixed(vec![server.local_addr().unwrap()]);
    let mut resolver = Resolver::new(source).unwrap();
    assert!(
        resolver
            .ask(Instant::now(), PortId(1), (), &query(), true)
            .is_none()
    );
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut query = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut query).unwrap();
        let answer = answer_to(&query);
        stream
            .write_all(&(answer.len() as u16).to_be_bytes())
            .unwrap();
        for byte in answer {
            stream.write_all(&[byte]).unwrap();
        }
    });
    let reply = Message::from_vec(&wait(&mut resolver).answer).unwrap();
    assert_eq!((reply.metadata.id, reply.answers.len()), (0x4242, 1));
    thread.join().unwrap();
}

#[test]
fn the_next_resolver_is_asked_when_one_is_silent_and_then_it_fails() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let second = UdpSocket::bind("127.0.0.1:0").unwrap();
    let source = Resolvers::Fixed(vec![
        silent.local_addr().unwrap(),
        second.local_addr().unwrap(),
    ]);
    let mut resolver = Resolver::new(source).unwrap();
    let start = Instant::now();
    assert!(
        resolver
            .ask(start, PortId(1), (), &query(), false)
            .is_none()
    );
    assert!(resolver.collect(start).is_empty());
    assert!(resolver.collect(start + PATIENCE).is_empty());
    second.recv_from(&mut [0; 512]).unwrap();
    let failed = resolver.collect(start + PATIENCE * 2).pop().unwrap();
    let reply = Message::from_vec(&failed.answer).unwrap();
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(reply.metadata.id, 0x4242);
}

#[test]
fn one_port_can_not_ask_without_end() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let source = Resolvers::Fixed(vec![silent.local_addr().unwrap()]);
    let mut resolver = Resolver::new(source).unwrap();
    let now = Instant::now();
    for _ in 0..MAXIMUM_PER_PORT {
        assert!(resolver.ask(now, PortId(1), (), &query(), false).is_none());
    }
    assert!(resolver.ask(now, PortId(1), (), &query(), false).is_some());
    assert!(resolver.ask(now, PortId(2), (), &query(), false).is_none());
}

#[test]
fn resolvers_are_read_from_a_file() {
    let path = std::env::temp_dir().join(format!("favo-resolv-{}", std::process::id()));
    std::fs::write(
        &path,
        "# comment\nnonsense\nnameserver 10.1.2.3\nnameserver fd00::53\n",
    )
    .unwrap();
    let servers = read_servers(&path);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(
        servers,
        [
            "10.1.2.3:53".parse().unwrap(),
            "[fd00::53]:53".parse().unwrap()
        ]
    );
    assert_eq!(
        read_servers(Path::new("/nonexistent")),
        ["127.0.0.1:53".parse().unwrap()]
    );
}

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
    let bytes = b"# comment\nnonsense\nnameserver 10.1.2.3\nnameserver fd00::53\n";
    let parsed = ["10.1.2.3:53", "[fd00::53]:53"].map(|server| server.parse().unwrap());
    assert_eq!(servers_in(bytes), parsed);
    assert_eq!(servers_in(b""), ["127.0.0.1:53".parse().unwrap()]);
}

/// The sandbox knows the file that was there when the machine started.
#[test]
fn a_file_that_can_not_be_read_any_more_leaves_the_servers_it_named() {
    let directory = std::env::temp_dir().join(format!("favo-resolv-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("resolv.conf");
    std::fs::write(&path, "nameserver 10.1.2.3\n").unwrap();
    let mut resolver = Resolver::<()>::new(Resolvers::File(path.clone())).unwrap();
    let now = Instant::now();
    resolver.load(now);
    let first = resolver.servers.clone();
    assert_eq!(first, ["10.1.2.3:53".parse().unwrap()]);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    resolver.load(now + 2 * RELOAD_INTERVAL);
    assert_eq!(resolver.servers, first);
    std::fs::remove_dir(&path).unwrap();
    resolver.load(now + 4 * RELOAD_INTERVAL);
    std::fs::remove_dir(&directory).unwrap();
    assert_eq!(resolver.servers, ["127.0.0.1:53".parse().unwrap()]);
}

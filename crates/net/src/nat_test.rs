#[path = "nat/guest_test.rs"]
mod guest;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};

use proptest::prelude::*;
use smoltcp::socket::tcp::State;

use super::*;
use crate::model::ForwardProtocol;
use guest::{ADDRESS, ADDRESS6, GATEWAY, GATEWAY6, Guest, PORT, nat};

fn pattern(length: u32) -> Vec<u8> {
    (0..length).map(|i| ((i * 7) >> 3) as u8).collect()
}

/// A server on the host that says back all it hears, once the client is done.
fn echo_once(address: &str) -> (u16, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind(address).unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    (port, server)
}

/// Nothing is left of any flow: no entry, and no socket watched beside the
/// wake-up, the timer and the listeners.
fn assert_clean(nat: &Nat) {
    assert_eq!(nat.flows(), 0);
    assert!(nat.by_key.is_empty() && nat.timers.is_empty() && nat.counts.is_empty());
    assert!(nat.out.holds_nothing());
    let number = std::os::fd::AsRawFd::as_raw_fd(&nat.epoll);
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
    let watched = info.lines().filter(|line| line.starts_with("tfd:")).count();
    assert_eq!(watched, 2 + nat.listeners.len(), "{info}");
}

#[test]
fn bytes_cross_both_ways_and_both_ends_close() {
    for (host, gateway) in [
        ("127.0.0.1:0", IpAddr::V4(GATEWAY)),
        ("[::1]:0", IpAddr::V6(GATEWAY6)),
    ] {
        let (port, server) = echo_once(host);
        let sent = pattern(3_000_000);
        let mut guest = Guest::new(nat());
        let id = guest.connect(gateway, port, 40_000);
        let got = guest.exchange(id, &sent, sent.len());
        assert!(got == sent);
        server.join().unwrap();
        assert_clean(&guest.nat);
    }
}

#[test]
fn what_a_cable_loses_or_reorders_is_sent_to_the_guest_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let sent = pattern(1_000_000);
    let copy = sent.clone();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&copy).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    let mut guest = Guest::new(nat());
    guest.trouble = 50;
    let id = guest.connect(GATEWAY.into(), port, 40_000);
    let got = guest.exchange(id, &[], sent.len());
    assert!(got == sent);
    assert!(guest.lost > 0);
    server.join().unwrap();
    assert_clean(&guest.nat);
}

#[test]
fn what_a_cable_loses_of_the_guest_is_not_acknowledged() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let mut all = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut all).unwrap();
        all
    });
    let sent = pattern(200_000);
    let mut guest = Guest::new(nat());
    guest.trouble = 20;
    let id = guest.connect(GATEWAY.into(), port, 40_000);
    guest.exchange(id, &sent, 0);
    assert!(guest.lost > 0);
    assert!(server.join().unwrap() == sent);
    assert_clean(&guest.nat);
}

#[test]
fn a_port_nobody_listens_at_resets_the_guest() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut guest = Guest::new(nat());
    let id = guest.connect(GATEWAY.into(), port, 40_000);
    guest.until("refused", |guest| guest.tcp(id).state() == State::Closed);
    assert_eq!(guest.nat.counters().tcp_resets, 1);
    assert_clean(&guest.nat);
}

#[test]
fn resets_cross_both_ways() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut guest = Guest::new(nat());

    let id = guest.connect(GATEWAY.into(), port, 40_000);
    guest.until("open", |guest| guest.tcp(id).state() == State::Established);
    let (stream, _) = listener.accept().unwrap();
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
    guest.until("host's reset", |guest| {
        guest.tcp(id).state() == State::Closed
    });
    assert_clean(&guest.nat);

    let id = guest.connect(GATEWAY.into(), port, 40_001);
    guest.until("open", |guest| guest.tcp(id).state() == State::Established);
    let (mut stream, _) = listener.accept().unwrap();
    guest.tcp(id).abort();
    guest.until("guest's reset", |guest| guest.nat.flows() == 0);
    let error = stream.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert_clean(&guest.nat);
}

#[test]
fn a_closed_window_holds_data_until_it_opens() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let sent = pattern(1_000_000);
    let copy = sent.clone();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&copy).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    let mut guest = Guest::new(nat());
    let id = guest.connect(GATEWAY.into(), port, 40_000);
    // Longer than several probes of the closed window.
    let start = Instant::now();
    guest.until("probes", |_| start.elapsed() > Duration::from_secs(2));
    assert_eq!(guest.tcp(id).recv_queue(), 100_000);
    let got = guest.exchange(id, &[], sent.len());
    assert!(got == sent);
    server.join().unwrap();
    assert_clean(&guest.nat);
}

fn published(protocol: ForwardProtocol, host_port: u16) -> Published {
    Published {
        protocol,
        address: Some(Ipv4Addr::LOCALHOST.into()),
        host_port,
        port: PORT,
        v4: Some(ADDRESS),
        v6: Some(ADDRESS6),
        guest_port: 80,
    }
}

#[test]
fn a_published_port_leads_to_the_guest() {
    let mut guest = Guest::new(nat());
    let at = guest
        .nat
        .publish(published(ForwardProtocol::Tcp, 0))
        .unwrap()[0];
    let id = guest.listen(80);
    let client = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.write_all(b"a question").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    });
    guest.until("a client", |guest| guest.tcp(id).can_recv());
    let from = guest.tcp(id).remote_endpoint().unwrap();
    assert_eq!(IpAddr::from(from.addr), IpAddr::V4(GATEWAY));
    let got = guest.exchange(id, b"an answer", 10);
    assert_eq!(got, b"a question");
    assert_eq!(client.join().unwrap(), b"an answer");
    assert_clean(&guest.nat);
}

const WAVE: usize = 50;
const WAVES: usize = 100;

/// Five thousand connections outward, and as many inward: nothing is left.
#[test]
fn ten_thousand_connections_leave_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        for _ in 0..WAVE * WAVES {
            let (mut stream, _) = listener.accept().unwrap();
            let mut byte = [0; 1];
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(&byte).unwrap();
        }
    });
    let mut guest = Guest::new(nat());
    for wave in 0..WAVES {
        let first = 20_000 + (wave * WAVE) as u16;
        let ids = (first..).take(WAVE);
        let ids: Vec<_> = ids
            .map(|from| guest.connect(GATEWAY.into(), port, from))
            .collect();
        let (mut answers, mut asked) = (0, [false; WAVE]);
        guest.until("outward", |guest| {
            for (id, asked) in ids.iter().zip(&mut asked) {
                let socket = guest.tcp(*id);
                if !*asked && socket.can_send() {
                    socket.send_slice(&[7]).unwrap();
                    *asked = true;
                }
                if socket.can_recv() {
                    let mut bytes = [0; 100];
                    let n = socket.recv_slice(&mut bytes).unwrap();
                    assert_eq!((n, bytes[0]), (1, 7));
                    answers += 1;
                    socket.close();
                }
            }
            answers == WAVE && guest.nat.flows() == 0
        });
        ids.into_iter().for_each(|id| guest.forget(id));
    }
    server.join().unwrap();
    assert_eq!(guest.nat.counters().tcp_opened as usize, WAVE * WAVES);
    assert_clean(&guest.nat);

    let published = published(ForwardProtocol::Tcp, 0);
    let at = guest.nat.publish(published).unwrap()[0];
    for _ in 0..WAVES {
        let ids: Vec<_> = (0..WAVE).map(|_| guest.listen(80)).collect();
        let clients = std::thread::spawn(move || {
            let streams = (0..WAVE).map(|_| TcpStream::connect(at).unwrap());
            let mut streams: Vec<TcpStream> = streams.collect();
            for stream in &mut streams {
                stream.write_all(&[9]).unwrap();
            }
            for stream in &mut streams {
                let mut byte = [0; 1];
                stream.read_exact(&mut byte).unwrap();
                assert_eq!(byte, [9]);
            }
        });
        let mut answers = 0;
        guest.until("inward", |guest| {
            for id in &ids {
                let socket = guest.tcp(*id);
                if socket.can_recv() {
                    let mut bytes = [0; 100];
                    let n = socket.recv_slice(&mut bytes).unwrap();
                    socket.send_slice(&bytes[..n]).unwrap();
                    socket.close();
                    answers += 1;
                }
            }
            answers == WAVE && guest.nat.flows() == 0
        });
        clients.join().unwrap();
        ids.into_iter().for_each(|id| guest.forget(id));
    }
    assert_eq!(guest.nat.counters().tcp_opened as usize, 2 * WAVE * WAVES);
    assert_eq!(guest.nat.counters().tcp_resets, 0);
    assert_clean(&guest.nat);
}

#[test]
fn a_port_in_use_cannot_be_published() {
    let taken = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let _taken = TcpListener::bind(taken).unwrap();
    let error = nat()
        .publish(published(ForwardProtocol::Tcp, taken.port()))
        .unwrap_err();
    assert!(
        matches!(error, PublishError::InUse(at) if at == taken),
        "{error}"
    );
}

/// What the guest's next packet is: its ports, and what UDP carries.
fn next_datagram(nat: &mut Nat) -> (SocketAddr, SocketAddr, Vec<u8>) {
    let end = Instant::now() + Duration::from_secs(20);
    let mut packet = Vec::new();
    while nat.receive(&mut packet).is_none() {
        assert!(Instant::now() < end, "{:?}", nat.counters());
        std::thread::sleep(Duration::from_millis(1));
    }
    let ip = Ip::parse(&packet).unwrap();
    (
        SocketAddr::new(ip.source, ip.ports.0),
        SocketAddr::new(ip.destination, ip.ports.1),
        packet[ip.transport + 8..].to_vec(),
    )
}

fn send_datagram(nat: &mut Nat, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
    let (mut out, mut packet) = (Out::default(), Vec::new());
    out.udp(PORT, from, to, payload);
    out.pop(&mut packet).unwrap();
    nat.send(PORT, &packet, Offload::default());
    nat.flush();
}

#[test]
fn datagrams_leave_and_answers_come_back() {
    for (host, from, to) in [
        ("127.0.0.1:0", IpAddr::V4(ADDRESS), IpAddr::V4(GATEWAY)),
        ("[::1]:0", IpAddr::V6(ADDRESS6), IpAddr::V6(GATEWAY6)),
    ] {
        let server = UdpSocket::bind(host).unwrap();
        let from = SocketAddr::new(from, 5000);
        let to = SocketAddr::new(to, server.local_addr().unwrap().port());
        let mut nat = nat();
        send_datagram(&mut nat, from, to, b"question");
        let mut buffer = [0; 100];
        let (length, client) = server.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"question");
        server.send_to(b"answer", client).unwrap();
        assert_eq!(next_datagram(&mut nat), (to, from, b"answer".to_vec()));
        assert_eq!(nat.flows(), 1);
    }
}

#[test]
fn a_client_of_a_published_datagram_port_gets_its_own_answers_only() {
    let mut nat = nat();
    let at = nat.publish(published(ForwardProtocol::Udp, 0)).unwrap()[0];
    let one = UdpSocket::bind("127.0.0.1:0").unwrap();
    let same_port = ("127.0.0.2", one.local_addr().unwrap().port());
    let other = UdpSocket::bind(same_port).unwrap();
    let mut seen = Vec::new();
    for (socket, payload) in [(&one, b"one"), (&other, b"two")] {
        socket.send_to(payload, at).unwrap();
        let (from, to, got) = next_datagram(&mut nat);
        assert_eq!((from.ip(), got.as_slice()), (GATEWAY.into(), &payload[..]));
        assert_eq!(to, SocketAddr::new(ADDRESS.into(), 80));
        send_datagram(&mut nat, to, from, payload);
        seen.push(from);
    }
    for (socket, payload) in [(&one, b"one"), (&other, b"two")] {
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut buffer = [0; 10];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], payload);
    }
    assert_ne!(seen[0], seen[1]);
}

/// An echo through whatever socket this user gets: ping, raw, or none; then
/// the guest is told.
#[test]
fn an_echo_is_answered_or_prohibited() {
    let (v4, v6) = (
        (ADDRESS.into(), GATEWAY.into()),
        (ADDRESS6.into(), GATEWAY6.into()),
    );
    for ((guest, gateway), request, at, reply, prohibited) in
        [(v4, 8, 20, 0, [3, 13]), (v6, 128, 40, 129, [1, 1])]
    {
        let mut nat = nat();
        let (mut out, mut packet) = (Out::default(), Vec::new());
        let message = [request, 0, 0, 0, 0x12, 0x34, 0, 7, 1, 2];
        out.icmp(PORT, guest, gateway, &message);
        out.pop(&mut packet).unwrap();
        nat.send(PORT, &packet, Offload::default());
        let end = Instant::now() + Duration::from_secs(20);
        packet.clear();
        while nat.receive(&mut packet).is_none() {
            assert!(Instant::now() < end, "{:?}", nat.counters());
        }
        if nat.counters().ping_forbidden == 1 {
            eprintln!("this host forbids ping sockets: only the refusal is tested");
            assert_eq!(packet[at..at + 2], prohibited);
            assert_clean(&nat);
            continue;
        }
        assert_eq!(packet[at], reply);
        assert_eq!(packet[at + 4..], [0x12, 0x34, 0, 7, 1, 2]);
    }
}

#[test]
fn what_is_the_hosts_own_is_not_reachable() {
    let mut nat = nat();
    for address in [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "fe80::1",
        "ff02::1",
    ] {
        assert_eq!(nat.target(address.parse().unwrap()), None, "{address}");
    }
    assert_eq!(nat.target(GATEWAY.into()), Some(Ipv4Addr::LOCALHOST.into()));
    nat.options.host_loopback = false;
    for gateway in [IpAddr::V4(GATEWAY), IpAddr::V6(GATEWAY6)] {
        assert_eq!(nat.target(gateway), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever a guest sends, nothing panics and what is kept is bounded.
    #[test]
    fn hostile_packets_are_survived(
        segments in prop::collection::vec(
            (0..40_u16, -3..3_i32, -3..3_i32, any::<u8>(), any::<u16>(), prop::collection::vec(any::<u8>(), 0..40),
                any::<bool>()),
            1..200,
        ),
        noise in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..20),
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = SocketAddr::new(GATEWAY.into(), listener.local_addr().unwrap().port());
        let mut nat = nat();
        nat.options.descriptors = 20;
        let (mut seq, mut ack) = (1000_u32, 0_u32);
        for (port, ahead, beyond, flags, window, bytes, options) in segments {
            let from = SocketAddr::new(ADDRESS.into(), 1000 + port);
            let header = Header {
                seq: seq.wrapping_add_signed(ahead),
                ack: ack.wrapping_add_signed(beyond),
                flags,
                window,
            };
            let mut options = if options { bytes.clone() } else { Vec::new() };
            options.truncate(options.len() / 4 * 4);
            let (mut out, mut packet) = (Out::default(), Vec::new());
            out.tcp(PORT, from, to, &header, &options, [&bytes, &[]], 1400);
            let (_, offload) = out.pop(&mut packet).unwrap();
            nat.send(PORT, &packet, offload);
            seq = seq.wrapping_add(1);
            packet.clear();
            while nat.receive(&mut packet).is_some() {
                ack = u32::from_be_bytes(packet[24..28].try_into().unwrap()).wrapping_add(1);
                packet.clear();
            }
            prop_assert!(nat.flows() <= 20);
            prop_assert!(nat.out.packets.len() <= OUT_LIMIT);
        }
        for packet in noise {
            nat.send(PORT, &packet, Offload::default());
        }
        nat.flush();
        let flows: Vec<u64> = nat.flows.keys().copied().collect();
        for token in flows {
            nat.remove(token);
        }
        assert_clean(&nat);
    }
}

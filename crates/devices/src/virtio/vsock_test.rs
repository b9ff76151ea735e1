use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Mutex;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use favo_types::ByteCount;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::super::device::{F_EVENT_IDX, F_INDIRECT_DESC};
use super::super::testing::{DriverQueue, PATIENCE, TestDriver};
use super::connection::BUFFER_SIZE;
use super::packet::{
    HEADER_SIZE, HOST_CID, Header, Operation, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM,
};
use super::*;

const CID: u32 = 7;
const RX_BUFFER: u32 = 4096;

/// A guest: enough of AF_VSOCK to be on the other side.
struct Guest {
    device: Vsock,
    rx: DriverQueue,
    tx: DriverQueue,
    driver: TestDriver,
    buffer_size: u32,
    forwarded: u32,
    sent: u32,
    host_forwarded: u32,
}

impl Guest {
    fn new(spec: &VsockSpec) -> Self {
        let mut device = spec.build().unwrap();
        let features = F_EVENT_IDX | F_INDIRECT_DESC;
        let mut driver = TestDriver::new(&mut device, ByteCount::mib(8), features);
        let mut rx = driver.queue(0, 64, false, 1 << 20);
        let tx = driver.queue(1, 64, true, 1 << 21);
        rx.start(&mut device);
        tx.start(&mut device);
        for _ in 0..32 {
            rx.add(&[], &[RX_BUFFER]);
        }
        rx.notify();
        Self {
            device,
            rx,
            tx,
            driver,
            buffer_size: 64 << 10,
            forwarded: 0,
            sent: 0,
            host_forwarded: 0,
        }
    }

    fn header(&self, operation: Operation, guest: u32, host: u32, flags: u32) -> Header {
        Header {
            source_cid: u64::from(CID).into(),
            destination_cid: HOST_CID.into(),
            source_port: guest.into(),
            destination_port: host.into(),
            socket_type: TYPE_STREAM.into(),
            operation: (operation as u16).into(),
            flags: flags.into(),
            buffer_size: self.buffer_size.into(),
            forwarded: self.forwarded.into(),
            ..Header::new_zeroed()
        }
    }

    fn send(&mut self, operation: Operation, guest: u32, host: u32, flags: u32) {
        let header = self.header(operation, guest, host, flags);
        self.tx.request(&[header.as_bytes()], &[]);
    }

    fn send_data(&mut self, guest: u32, host: u32, data: &[u8]) {
        let mut header = self.header(Operation::Data, guest, host, 0);
        header.length = (data.len() as u32).into();
        self.sent = self.sent.wrapping_add(data.len() as u32);
        self.tx.request(&[header.as_bytes(), data], &[]);
    }

    fn try_receive(&mut self, patience: Duration) -> Option<(Header, Vec<u8>)> {
        let completion = self.rx.wait_for(patience)?;
        self.rx.submit(&[], &[RX_BUFFER]);
        let (header, rest) = Header::read_from_prefix(&completion.data).unwrap();
        let length = header.length.get() as usize;
        assert_eq!(completion.written as usize, HEADER_SIZE + length);
        assert_eq!(header.source_cid.get(), HOST_CID);
        assert_eq!(header.destination_cid.get(), u64::from(CID));
        self.host_forwarded = header.forwarded.get();
        Some((header, rest[..length].to_vec()))
    }

    fn receive(&mut self) -> (Operation, Header, Vec<u8>) {
        let (header, data) = self.try_receive(PATIENCE).expect("a packet");
        let operation = Operation::from_number(header.operation.get()).unwrap();
        (operation, header, data)
    }

    fn expect(&mut self, wanted: Operation) -> Header {
        let (operation, header, _) = self.receive();
        assert_eq!(operation, wanted, "{header:?}");
        header
    }

    /// Connects from the guest; returns the host's end.
    fn connect_out(
        &mut self,
        guest: u32,
        host: u32,
        accepted: &Receiver<UnixStream>,
    ) -> UnixStream {
        self.send(Operation::Request, guest, host, 0);
        let response = self.expect(Operation::Response);
        assert_eq!(
            (response.source_port.get(), response.destination_port.get()),
            (host, guest)
        );
        let stream = accepted.recv_timeout(PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn listen(&self, port: u32) -> Receiver<UnixStream> {
        let (sender, accepted) = channel();
        let sender = Mutex::new(sender);
        let accept: Accept = Arc::new(move |stream| {
            let _ = sender.lock().unwrap().send(stream);
        });
        self.device.handle().listen(port, accept);
        accepted
    }

    fn wait_for_connections(&self, count: usize) {
        let until = Instant::now() + PATIENCE;
        while self.device.handle().connection_count().unwrap() != count {
            assert!(Instant::now() < until, "connections do not go away");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn the_guest_connects_and_both_sides_talk_and_half_close() {
    let mut guest = Guest::new(&VsockSpec::new(CID));
    let accepted = guest.listen(80);
    let mut host = guest.connect_out(1000, 80, &accepted);

    guest.send_data(1000, 80, b"question");
    let mut text = [0; 8];
    host.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"question");
    host.write_all(b"answer").unwrap();
    let (operation, header, data) = guest.receive();
    assert_eq!((operation, &data[..]), (Operation::Data, &b"answer"[..]));
    assert_eq!(header.buffer_size.get(), BUFFER_SIZE);

    // The guest sends no more: the host sees the end and can still answer.
    guest.send(Operation::Shutdown, 1000, 80, SHUTDOWN_SEND);
    assert_eq!(host.read(&mut text).unwrap(), 0);
    host.write_all(b"late").unwrap();
    assert_eq!(guest.receive().2, b"late");

    // The host is done too; the guest says goodbye and gets its reset.
    drop(host);
    let header = guest.expect(Operation::Shutdown);
    let flags = if header.flags.get() & SHUTDOWN_SEND == 0 {
        guest.expect(Operation::Shutdown).flags.get()
    } else {
        header.flags.get()
    };
    assert_eq!(flags, SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
    guest.send(
        Operation::Shutdown,
        1000,
        80,
        SHUTDOWN_RECEIVE | SHUTDOWN_SEND,
    );
    guest.expect(Operation::Reset);
    guest.wait_for_connections(0);
}

#[test]
fn the_host_closes_its_sending_half_only() {
    let mut guest = Guest::new(&VsockSpec::new(CID));
    let accepted = guest.listen(80);
    let mut host = guest.connect_out(1000, 80, &accepted);
    host.write_all(b"all I have").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.receive().2, b"all I have");
    assert_eq!(guest.expect(Operation::Shutdown).flags.get(), SHUTDOWN_SEND);
    guest.send_data(1000, 80, b"thanks");
    let mut text = [0; 6];
    host.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"thanks");
}

#[test]
fn nobody_listening_is_a_reset() {
    let mut guest = Guest::new(&VsockSpec::new(CID));
    guest.send(Operation::Request, 1000, 81, 0);
    let reset = guest.expect(Operation::Reset);
    assert_eq!(reset.source_port.get(), 81);
    assert_eq!(reset.destination_port.get(), 1000);
    // Data for no connection: the same. A reset for none: no answer.
    guest.send_data(5, 6, b"?");
    guest.expect(Operation::Reset);
    guest.send(Operation::Reset, 5, 6, 0);
    assert!(guest.try_receive(Duration::from_millis(50)).is_none());
}

#[test]
fn the_host_connects_and_the_guest_accepts_or_refuses() {
    let mut guest = Guest::new(&VsockSpec::new(CID));
    let handle = guest.device.handle();
    let caller = std::thread::spawn(move || handle.connect(22, PATIENCE));
    let request = guest.expect(Operation::Request);
    let host_port = request.source_port.get();
    assert_eq!(request.destination_port.get(), 22);
    guest.send(Operation::Response, 22, host_port, 0);
    let mut stream = caller.join().unwrap().unwrap();
    stream.write_all(b"hello").unwrap();
    assert_eq!(guest.receive().2, b"hello");

    let handle = guest.device.handle();
    let caller = std::thread::spawn(move || handle.connect(23, PATIENCE));
    let request = guest.expect(Operation::Request);
    guest.send(Operation::Reset, 23, request.source_port.get(), 0);
    let error = caller.join().unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_caller_that_gives_up_is_forgotten() {
    let mut guest = Guest::new(&VsockSpec::new(CID));
    let handle = guest.device.handle();
    let error = handle.connect(22, Duration::from_millis(20)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    let request = guest.expect(Operation::Request);
    guest.wait_for_connections(0);
    guest.expect(Operation::Reset);
    // The answer comes too late.
    guest.send(Operation::Response, 22, request.source_port.get(), 0);
    guest.expect(Operation::Reset);
}

#[test]
fn host_to_guest_stops_at_the_guests_credit() {
    let mut guest = Guest::new(&VsockSpec::new(CID));
    guest.buffer_size = 10_000;
    let accepted = guest.listen(80);
    let mut host = guest.connect_out(1000, 80, &accepted);
    let data: Vec<u8> = (0..25_000u32).map(|i| i as u8).collect();
    host.write_all(&data).unwrap();

    let mut got = Vec::new();
    let mut asked = 0;
    while got.len() < data.len() {
        let Some((header, bytes)) = guest.try_receive(Duration::from_millis(100)) else {
            // Out of credit: exactly the window is here. Open it again.
            assert_eq!(got.len() as u32, guest.forwarded + guest.buffer_size);
            guest.forwarded = got.len() as u32;
            guest.send(Operation::CreditUpdate, 1000, 80, 0);
            continue;
        };
        match Operation::from_number(header.operation.get()).unwrap() {
            Operation::Data => got.extend(bytes),
            Operation::CreditRequest => asked += 1,
            other => panic!("{other:?}"),
        }
        assert!(got.len() as u32 - guest.forwarded <= guest.buffer_size);
    }
    assert_eq!(got, data);
    assert!(asked >= 2, "the device never asked for credit");
}

#[test]
fn guest_to_host_is_buffered_up_to_the_window_and_no_further() {
    let mut guest = Guest::new(&VsockSpec::new(CID));
    let accepted = guest.listen(80);
    let mut host = guest.connect_out(1000, 80, &accepted);
    // Fill until the device has taken all it may: nobody reads.
    let chunk: Vec<u8> = (0..8192u32).map(|i| (i * 7) as u8).collect();
    let mut total = 0u32;
    loop {
        while guest.sent.wrapping_sub(guest.host_forwarded) + 8192 <= BUFFER_SIZE {
            guest.send_data(1000, 80, &chunk);
            total += 8192;
        }
        match guest.try_receive(Duration::from_millis(100)) {
            Some((header, _)) => assert_eq!(
                header.operation.get(),
                Operation::CreditUpdate as u16,
                "{header:?}"
            ),
            None => break,
        }
    }
    assert!(total >= BUFFER_SIZE);
    // The host reads: all arrives, in order, and credit comes back.
    let mut bytes = vec![0; total as usize];
    host.read_exact(&mut bytes).unwrap();
    assert!(bytes.chunks(8192).all(|part| part == chunk));
    let header = guest.expect(Operation::CreditUpdate);
    assert!(guest.sent.wrapping_sub(header.forwarded.get()) < BUFFER_SIZE);
}

#[test]
fn a_guest_that_ignores_its_credit_is_reset() {
    let mut guest = Guest::new(&VsockSpec::new(CID));
    let accepted = guest.listen(80);
    let _host = guest.connect_out(1000, 80, &accepted);
    let chunk = vec![1; 32 << 10];
    for _ in 0..64 {
        guest.send_data(1000, 80, &chunk);
    }
    loop {
        match guest.receive().0 {
            Operation::CreditUpdate => {}
            Operation::Reset => break,
            other => panic!("{other:?}"),
        }
    }
    guest.wait_for_connections(0);
}

#[test]
fn what_the_guest_sent_before_it_left_still_arrives() {
    let mut guest = Guest::new(&VsockSpec::new(CID));
    let accepted = guest.listen(80);
    let mut host = guest.connect_out(1000, 80, &accepted);
    let chunk = vec![3; 16 << 10];
    let mut total = 0;
    loop {
        while guest.sent.wrapping_sub(guest.host_forwarded) + (16 << 10) <= BUFFER_SIZE {
            guest.send_data(1000, 80, &chunk);
            total += chunk.len();
        }
        if guest.try_receive(Duration::from_millis(100)).is_none() {
            break;
        }
    }
    guest.send(Operation::Shutdown, 1000, 80, 3);
    guest.send(Operation::Reset, 1000, 80, 0);
    let mut bytes = Vec::new();
    host.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes.len(), total);
    guest.wait_for_connections(0);
}

#[test]
fn the_table_is_bounded() {
    let mut guest = Guest::new(&VsockSpec {
        max_connections: 3,
        ..VsockSpec::new(CID)
    });
    let accepted = guest.listen(80);
    let streams: Vec<_> = (0..3)
        .map(|port| guest.connect_out(1000 + port, 80, &accepted))
        .collect();
    guest.send(Operation::Request, 2000, 80, 0);
    guest.expect(Operation::Reset);
    drop(streams);
}

#[test]
fn resets_do_not_pile_up_while_the_guest_gives_no_buffers() {
    let mut device = VsockSpec::new(CID).build().unwrap();
    let mut driver = TestDriver::new(&mut device, ByteCount::mib(8), F_EVENT_IDX);
    let mut rx = driver.queue(0, 64, false, 1 << 20);
    let mut tx = driver.queue(1, 64, false, 1 << 20);
    rx.start(&mut device);
    tx.start(&mut device);
    let header = Header {
        source_cid: u64::from(CID).into(),
        destination_cid: HOST_CID.into(),
        socket_type: TYPE_STREAM.into(),
        operation: (Operation::CreditRequest as u16).into(),
        ..Header::new_zeroed()
    };
    let mut sent = 0;
    let mut returned = 0;
    while let Some(()) = {
        while tx.free_descriptors() > 0 {
            tx.add(&[header.as_bytes()], &[]);
            sent += 1;
        }
        tx.notify();
        tx.wait_for(Duration::from_millis(100)).map(drop)
    } {
        returned += 1;
    }
    assert_eq!(returned, 256);
    // With buffers, everything moves again.
    let mut resets = 0;
    while resets < sent {
        while rx.free_descriptors() > 0 {
            rx.add(&[], &[RX_BUFFER]);
        }
        rx.notify();
        rx.wait();
        resets += 1;
    }
    while returned < sent {
        tx.wait();
        returned += 1;
    }
}

#[test]
fn connections_go_on_after_all_queues_were_stopped_and_started() {
    let mut guest = Guest::new(&VsockSpec::new(CID));
    let accepted = guest.listen(80);
    let mut host = guest.connect_out(1000, 80, &accepted);
    for round in 0..10u8 {
        host.write_all(&[round; 9000]).unwrap();
        let rx = guest.device.stop_queue(0).unwrap().unwrap();
        let tx = guest.device.stop_queue(1).unwrap().unwrap();
        guest.device.start_queue(0, guest.rx.resources(rx)).unwrap();
        guest.device.start_queue(1, guest.tx.resources(tx)).unwrap();
        let mut got = Vec::new();
        while got.len() < 9000 {
            let (operation, _, data) = guest.receive();
            assert_eq!(operation, Operation::Data);
            got.extend(data);
        }
        assert_eq!(got, [round; 9000]);
        guest.forwarded += 9000;
        guest.send(Operation::CreditUpdate, 1000, 80, 0);
    }
}

#[test]
fn a_restored_guest_is_told_that_its_connections_are_gone() {
    let mut guest = Guest::new(&VsockSpec::new(CID));
    let accepted = guest.listen(80);
    let mut host = guest.connect_out(1000, 80, &accepted);
    guest.device.stop_queue(0).unwrap();
    guest.device.stop_queue(1).unwrap();
    let state = guest.device.save().unwrap();
    guest.device.restore(&state).unwrap();
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    let mut events = guest.driver.queue(2, 4, false, 4096);
    events.start(&mut guest.device);
    let event = events.request(&[], &[8]);
    assert_eq!((event.written, &event.data[..4]), (4, &[0; 4][..]));

    let other = VsockSpec::new(CID + 1).build().unwrap().save().unwrap();
    assert!(guest.device.restore(&other).is_err());
}

#[test]
fn unix_sockets_work_both_ways() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vsock");
    let mut guest = Guest::new(&VsockSpec {
        socket: Some(path.clone()),
        ..VsockSpec::new(CID)
    });

    // Host to guest.
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"CONN").unwrap();
    client.write_all(b"ECT 52\nearly").unwrap();
    let request = guest.expect(Operation::Request);
    assert_eq!(request.destination_port.get(), 52);
    let port = request.source_port.get();
    guest.send(Operation::Response, 52, port, 0);
    let mut line = vec![0; format!("OK {port}\n").len()];
    client.read_exact(&mut line).unwrap();
    assert_eq!(line, format!("OK {port}\n").as_bytes());
    assert_eq!(guest.receive().2, b"early");

    // Nonsense is turned away.
    let mut client = UnixStream::connect(&path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost:").unwrap();
    assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)));

    // Guest to host.
    let listener = std::os::unix::net::UnixListener::bind(host::port_path(&path, 99)).unwrap();
    guest.send(Operation::Request, 1234, 99, 0);
    guest.expect(Operation::Response);
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    guest.send_data(1234, 99, b"to the host");
    let mut text = [0; 11];
    stream.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"to the host");

    drop(guest);
    assert!(!path.exists());
}

#[test]
fn reserved_context_ids_are_refused() {
    for cid in [0, 1, 2, u32::MAX] {
        assert!(VsockSpec::new(cid).build().is_err());
    }
}

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use favo_types::ByteCount;

use super::super::device::{F_EVENT_IDX, F_INDIRECT_DESC};
use super::super::testing::{DriverQueue, PATIENCE, TestDriver};
use super::backend::FdPort;
use super::*;

fn socket_port() -> (Box<dyn PortBackend>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = FdPort::duplex(OwnedFd::from(ours)).unwrap();
    (Box::new(port), theirs)
}

struct Plain {
    device: Console,
    driver: TestDriver,
    rx: DriverQueue,
    tx: DriverQueue,
}

fn plain(backend: Box<dyn PortBackend>) -> Plain {
    let mut device = ConsoleSpec::plain().build(vec![backend]).unwrap();
    assert_eq!(device.features(), F_SIZE);
    let features = F_EVENT_IDX | F_INDIRECT_DESC;
    let mut driver = TestDriver::new(&mut device, ByteCount::mib(4), features);
    let rx = driver.queue(0, 16, false, 1 << 16);
    let tx = driver.queue(1, 16, true, 1 << 20);
    rx.start(&mut device);
    tx.start(&mut device);
    Plain {
        device,
        driver,
        rx,
        tx,
    }
}

#[test]
fn bytes_go_both_ways() {
    let (backend, mut host) = socket_port();
    let mut guest = plain(backend);
    guest.tx.request(&[b"login", b": "], &[]);
    let mut text = [0; 7];
    host.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"login: ");

    // Typed before the guest offers a buffer, and after.
    host.write_all(b"root\n").unwrap();
    let completion = guest.rx.request(&[], &[64]);
    assert_eq!(&completion.data[..completion.written as usize], b"root\n");
    guest.rx.submit(&[], &[3]);
    host.write_all(b"abcde").unwrap();
    assert_eq!(guest.rx.wait().data, b"abc");
    let completion = guest.rx.request(&[], &[3]);
    assert_eq!(&completion.data[..completion.written as usize], b"de");
}

#[test]
fn pipes_and_files_work_too() {
    let directory = tempfile::tempdir().unwrap();
    let input = directory.path().join("input");
    std::fs::write(&input, b"from a file").unwrap();
    let input = std::fs::File::open(input).unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let port = FdPort::new(Some(input.into()), Some(writer.into())).unwrap();
    let mut guest = plain(Box::new(port));
    let completion = guest.rx.request(&[], &[64]);
    assert_eq!(
        &completion.data[..completion.written as usize],
        b"from a file"
    );
    guest.tx.request(&[b"to a pipe"], &[]);
    let mut text = [0; 9];
    reader.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"to a pipe");
}

#[test]
fn a_host_that_does_not_read_holds_the_guest_up_and_loses_nothing() {
    let (backend, mut host) = socket_port();
    let mut guest = plain(backend);
    let data: Vec<u8> = (0..900_000u32).map(|i| (i / 3) as u8).collect();
    guest.tx.submit(&[&data], &[]);
    assert!(guest.tx.wait_for(Duration::from_millis(50)).is_none());
    // Stopped in the middle of a chain, saved, restored, started again.
    let state = guest.device.stop_queue(1).unwrap().unwrap();
    assert_eq!((state.next_avail, state.next_used), (0, 0));
    let saved = guest.device.save().unwrap();
    guest.device.restore(&saved).unwrap();
    let resources = guest.tx.resources(state);
    guest.device.start_queue(1, resources).unwrap();
    let reading = std::thread::spawn(move || {
        let mut got = vec![0; 900_000];
        host.read_exact(&mut got).map(|()| got)
    });
    guest.tx.wait();
    assert!(reading.join().unwrap().unwrap() == data);
}

#[test]
fn a_host_that_is_gone_swallows_bytes() {
    let (backend, host) = socket_port();
    let mut guest = plain(backend);
    drop(host);
    for _ in 0..40 {
        guest.tx.request(&[&[b'x'; 4000]], &[]);
    }
}

#[test]
fn the_size_stands_in_the_configuration_space() {
    let (backend, _host) = socket_port();
    let mut guest = plain(backend);
    let mut config = [0; 4];
    guest.device.read_config(0, &mut config);
    assert_eq!(config, [80, 0, 24, 0]);
    guest.device.handle().resize(300, 50).unwrap();
    guest.device.read_config(0, &mut config);
    assert_eq!(config, [44, 1, 50, 0]);
    guest.device.stop_queue(0).unwrap();
    assert_eq!(guest.driver.interrupt.config_count(), 1);
}

struct Multi {
    device: Console,
    queues: Vec<DriverQueue>,
    hosts: Vec<UnixStream>,
}

impl Multi {
    fn new() -> Self {
        let spec = ConsoleSpec {
            ports: vec![
                PortSpec {
                    name: None,
                    console: true,
                },
                PortSpec {
                    name: Some("org.favo.agent.0".into()),
                    console: false,
                },
            ],
            size: (100, 30),
        };
        let (backends, hosts): (Vec<_>, Vec<_>) = (0..2).map(|_| socket_port()).unzip();
        let mut device = spec.build(backends).unwrap();
        assert_eq!(device.features(), F_SIZE | F_MULTIPORT);
        assert_eq!(device.queue_sizes().len(), 6);
        let mut driver = TestDriver::new(&mut device, ByteCount::mib(8), F_EVENT_IDX);
        let queues: Vec<_> = (0..6)
            .map(|index| driver.queue(index, 32, false, 1 << 17))
            .collect();
        for queue in &queues {
            queue.start(&mut device);
        }
        let mut multi = Self {
            device,
            queues,
            hosts,
        };
        for _ in 0..16 {
            multi.queues[2].add(&[], &[64]);
        }
        multi.queues[2].notify();
        multi
    }

    fn tell(&mut self, id: u32, event: Event, value: u16) {
        let message = Control::new(id, event, value).to_bytes();
        self.queues[3].request(&[&message], &[]);
    }

    fn hear(&mut self) -> (u32, Event, u16, Vec<u8>) {
        let completion = self.queues[2].wait();
        self.queues[2].submit(&[], &[64]);
        let (header, rest) = completion.data.split_at(8);
        let message = Control::from_bytes(header.try_into().unwrap()).unwrap();
        let rest = rest[..completion.written as usize - 8].to_vec();
        (message.id, message.event, message.value, rest)
    }
}

#[test]
fn ports_are_announced_and_named() {
    let mut guest = Multi::new();
    guest.tell(0, Event::DeviceReady, 1);
    assert_eq!(guest.hear(), (0, Event::DeviceAdd, 1, vec![]));
    assert_eq!(guest.hear(), (1, Event::DeviceAdd, 1, vec![]));
    guest.tell(0, Event::PortReady, 1);
    assert_eq!(guest.hear(), (0, Event::ConsolePort, 1, vec![]));
    assert_eq!(guest.hear(), (0, Event::Resize, 0, vec![30, 0, 100, 0]));
    assert_eq!(guest.hear(), (0, Event::PortOpen, 1, vec![]));
    guest.tell(1, Event::PortReady, 1);
    assert_eq!(
        guest.hear(),
        (1, Event::PortName, 1, b"org.favo.agent.0".to_vec())
    );
    assert_eq!(guest.hear(), (1, Event::PortOpen, 1, vec![]));

    // Nothing is sent to a port that nobody in the guest has opened.
    guest.hosts[1].write_all(b"hello agent").unwrap();
    guest.queues[4].submit(&[], &[64]);
    assert!(
        guest.queues[4]
            .wait_for(Duration::from_millis(50))
            .is_none()
    );
    guest.tell(1, Event::PortOpen, 1);
    let completion = guest.queues[4].wait();
    assert_eq!(
        &completion.data[..completion.written as usize],
        b"hello agent"
    );
    guest.queues[5].request(&[b"hello host"], &[]);
    let mut text = [0; 10];
    guest.hosts[1].read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello host");

    // The host's end closes: the guest is told.
    guest.queues[4].submit(&[], &[64]);
    guest.hosts.pop();
    assert_eq!(guest.hear(), (1, Event::PortOpen, 0, vec![]));
    guest.device.handle().resize(1, 2).unwrap();
    assert_eq!(guest.hear(), (0, Event::Resize, 0, vec![2, 0, 1, 0]));
}

#[test]
fn nonsense_in_control_messages_is_counted() {
    let mut guest = Multi::new();
    guest.tell(99, Event::PortReady, 1);
    guest.tell(u32::MAX, Event::PortOpen, 1);
    guest.queues[3].request(&[&[1, 2, 3]], &[]);
    guest.queues[3].request(&[&[0, 0, 0, 0, 77, 0, 0, 0]], &[]);
    let counters = guest.device.counters();
    assert_eq!(counters[0].count, 4);
    // A thousand questions, one answer: flags, not a queue.
    for _ in 0..1000 {
        guest.tell(0, Event::DeviceReady, 0);
    }
}

#[test]
fn wrong_specs_are_refused() {
    assert!(ConsoleSpec::plain().build(vec![]).is_err());
    let (backend, _host) = socket_port();
    let spec = ConsoleSpec {
        ports: vec![PortSpec {
            name: Some("a/b".into()),
            console: false,
        }],
        size: (80, 25),
    };
    assert!(spec.build(vec![backend]).is_err());
}

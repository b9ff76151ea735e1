use std::os::unix::net::UnixStream;
use std::time::Instant;

use favo_accel::AccessSize;
use favo_devices::bus::BusDevice;
use favo_devices::interrupt::Unconnected;

use super::*;

fn port() -> Arc<SerialPort> {
    Arc::new(SerialPort::new(Arc::new(Unconnected)))
}

#[test]
fn the_tail_keeps_the_last_lines() {
    let mut tail = ConsoleTail::default();
    for line in 0..20_000 {
        tail.write_all(format!("line {line}\r\n\x1b").as_bytes())
            .unwrap();
    }
    assert_eq!(tail.lines(2), "line 19998\nline 19999");
    assert!(tail.0.lock().unwrap().len() <= 2 * ConsoleTail::KEPT);
}

#[test]
fn threads_end_although_nobody_reads_or_writes() {
    let (input, _silent) = UnixStream::pair().unwrap();
    let (output, _unread) = UnixStream::pair().unwrap();
    let stop = Arc::new(EventFd::new().unwrap());
    let port = port();
    let io = SerialIo {
        input: Some(SerialInput {
            fd: input.into(),
            escape: None,
        }),
        output: SerialOutput::Fd(output.into()),
    };
    let threads = SerialThreads::start(port.clone(), io, stop.clone(), || ()).unwrap();
    // More than a socket's buffer holds.
    for _ in 0..1 << 20 {
        port.write(0, AccessSize::Byte, u64::from(b'x'));
    }
    stop.signal();
    let begin = Instant::now();
    drop(threads);
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn bytes_reach_the_guest_until_the_escape_byte() {
    let (input, mut user) = UnixStream::pair().unwrap();
    let port = port();
    let (sender, escaped) = std::sync::mpsc::channel();
    let io = SerialIo {
        input: Some(SerialInput {
            fd: input.into(),
            escape: Some(0x1d),
        }),
        output: SerialOutput::Tail(ConsoleTail::default()),
    };
    let stop = Arc::new(EventFd::new().unwrap());
    let _threads = SerialThreads::start(port.clone(), io, stop, move || {
        let _ = sender.send(());
    })
    .unwrap();
    user.write_all(b"hi\x1dlost").unwrap();
    escaped.recv_timeout(Duration::from_secs(10)).unwrap();
    let mut seen = Vec::new();
    while port.read(5, AccessSize::Byte) & 1 != 0 {
        seen.push(port.read(0, AccessSize::Byte) as u8);
    }
    assert_eq!(seen, b"hi");
}

use std::thread;

use proptest::prelude::*;

use super::*;
use crate::interrupt::recorder::LineRecorder;
use AccessSize::Byte;

fn serial() -> (Arc<SerialPort>, Arc<LineRecorder>) {
    let line = LineRecorder::new();
    (Arc::new(SerialPort::new(line.clone())), line)
}

fn read(serial: &SerialPort, register: u64) -> u8 {
    serial.read(register, Byte) as u8
}

fn write(serial: &SerialPort, register: u64, value: u8) {
    serial.write(register, Byte, u64::from(value));
}

/// FIFOs on with trigger level 8, receive interrupts on: as Linux does.
fn open(serial: &SerialPort) {
    write(serial, 2, 0x81);
    write(serial, 1, 0x05);
}

#[test]
fn output_is_what_was_written() {
    let (serial, _) = serial();
    for byte in 0..=255 {
        assert_eq!(read(&serial, 5), 0x60);
        write(&serial, 0, byte);
    }
    assert_eq!(serial.take_output(), (0..=255).collect::<Vec<u8>>());
    assert!(serial.take_output().is_empty());
}

#[test]
fn a_driver_recognizes_a_16550a() {
    let (serial, _) = serial();
    // Linux's autoconfig: the interrupt enable register holds four bits.
    write(&serial, 1, 0xff);
    assert_eq!(read(&serial, 1), 0x0f);
    write(&serial, 1, 0);
    // Loop mode turns outputs into inputs.
    write(&serial, 4, 0x10 | 0x0a);
    assert_eq!(read(&serial, 6) & 0xf0, 0x90);
    write(&serial, 4, 0);
    // FIFOs.
    assert_eq!(read(&serial, 2), 0x01);
    write(&serial, 2, 1);
    assert_eq!(read(&serial, 2), 0xc1);
    write(&serial, 7, 0xa5);
    assert_eq!(read(&serial, 7), 0xa5);
    // The divisor latch.
    write(&serial, 3, 0x83);
    write(&serial, 0, 1);
    write(&serial, 1, 2);
    assert_eq!((read(&serial, 0), read(&serial, 1)), (1, 2));
    write(&serial, 3, 0x03);
    assert_eq!(read(&serial, 1), 0);
    assert!(serial.take_output().is_empty());
}

#[test]
fn loop_mode_returns_what_is_sent() {
    let (serial, _) = serial();
    open(&serial);
    write(&serial, 4, 0x10);
    write(&serial, 0, 0x42);
    assert_eq!(serial.push_input(b"x"), 0, "cut off from the line");
    assert_eq!(read(&serial, 5) & 1, 1);
    assert_eq!(read(&serial, 0), 0x42);
    assert!(serial.take_output().is_empty());
    write(&serial, 4, 0x0b);
    assert_ne!(read(&serial, 6) & 0x0f, 0, "the lines changed");
    assert_eq!(read(&serial, 6) & 0x0f, 0);
}

#[test]
fn input_waits_for_a_listener_and_for_room() {
    let (serial, line) = serial();
    assert_eq!(serial.push_input(b"early"), 0);
    open(&serial);
    let text: Vec<u8> = (0..40).collect();
    assert_eq!(serial.push_input(&text), 16);
    assert_eq!(serial.push_input(&text[16..]), 0);
    assert!(!serial.wait_input_room(Duration::ZERO));
    assert_eq!((line.take_edges(), line.level()), (1, true));
    assert_eq!(read(&serial, 2), 0xc4, "received data");
    for expected in 0..9 {
        assert_eq!(read(&serial, 0), expected);
    }
    assert!(serial.wait_input_room(Duration::ZERO));
    assert_eq!(read(&serial, 2), 0xcc, "time-out: below the trigger level");
    assert_eq!(serial.push_input(&text[16..]), 9);
    for expected in 9..25 {
        assert_eq!(read(&serial, 5) & 1, 1);
        assert_eq!(read(&serial, 0), expected);
    }
    assert_eq!(read(&serial, 5) & 1, 0);
    assert_eq!(read(&serial, 2), 0xc1);
    assert!(!line.level());
}

#[test]
fn clearing_and_toggling_fifos_empties_the_receiver() {
    let (serial, line) = serial();
    open(&serial);
    for control in [0x83, 0x00] {
        write(&serial, 2, 0x81);
        assert_eq!(serial.push_input(b"old"), 3);
        write(&serial, 0, b'o');
        write(&serial, 2, control);
        assert_eq!((read(&serial, 5), line.level()), (0x60, false));
        assert_eq!(serial.take_output(), b"o", "what was sent was sent");
    }
}

#[test]
fn a_polling_driver_gets_input_too() {
    let (serial, line) = serial();
    for _ in 0..63 {
        read(&serial, 5);
    }
    assert_eq!(serial.push_input(b"ab"), 0);
    read(&serial, 5);
    assert_eq!(
        serial.push_input(b"ab"),
        1,
        "without FIFOs there is room for one"
    );
    assert_eq!(read(&serial, 0), b'a');
    assert_eq!(serial.push_input(b"b"), 1);
    assert_eq!(line.take_edges(), 0);
}

#[test]
fn the_transmitters_interrupt_comes_and_goes_as_linux_expects() {
    let (serial, line) = serial();
    write(&serial, 1, 2);
    assert!(line.level());
    assert_eq!(read(&serial, 2), 0x02);
    assert!(!line.level());
    assert_eq!(read(&serial, 2), 0x01);
    // Off and on again raises it anew.
    write(&serial, 1, 0);
    write(&serial, 1, 2);
    assert_eq!(read(&serial, 2), 0x02);
    line.take_edges();
    write(&serial, 0, b'x');
    assert_eq!(line.take_edges(), 1);
}

#[test]
fn enabling_an_interrupt_that_pends_makes_an_edge() {
    let (serial, line) = serial();
    open(&serial);
    serial.push_input(b"x");
    assert_eq!(line.take_edges(), 1);
    write(&serial, 1, 5);
    assert_eq!(line.take_edges(), 1);
}

#[test]
fn a_host_that_does_not_read_makes_the_transmitter_busy() {
    let (serial, line) = serial();
    write(&serial, 1, 2);
    for _ in 0..OUTPUT_SOFT_LIMIT - 1 {
        write(&serial, 0, b'x');
    }
    assert_eq!(read(&serial, 5), 0x60);
    write(&serial, 0, b'y');
    assert_eq!(read(&serial, 5), 0);
    assert!(!line.level());
    line.take_edges();
    let output = serial.take_output();
    assert_eq!(
        (output.len(), output.last()),
        (OUTPUT_SOFT_LIMIT, Some(&b'y'))
    );
    assert_eq!(read(&serial, 5), 0x60);
    assert_eq!(line.take_edges(), 1, "it tells when it is free again");
    // One that never looks loses only what is beyond the hard limit.
    for _ in 0..OUTPUT_HARD_LIMIT + 3 {
        write(&serial, 0, b'z');
    }
    assert_eq!(serial.lost_output(), 3);
    assert_eq!(serial.take_output().len(), OUTPUT_HARD_LIMIT);
}

#[test]
fn the_pump_writes_everything_and_ends_when_closed() {
    let (serial, _) = serial();
    let pump = thread::spawn({
        let serial = serial.clone();
        move || {
            let mut output = Vec::new();
            serial.pump_output(&mut output).map(|()| output)
        }
    });
    let text: Vec<u8> = (0..200_000u32).map(|n| (n * 7) as u8).collect();
    for byte in &text {
        while read(&serial, 5) & 0x20 == 0 {
            thread::yield_now();
        }
        write(&serial, 0, *byte);
    }
    serial.close();
    assert_eq!(pump.join().unwrap().unwrap(), text);
    assert_eq!(serial.push_input(b"x"), 0);
    assert!(
        !serial.wait_input_room(Duration::from_secs(60)),
        "ends at once"
    );
}

#[test]
fn the_pump_returns_the_writers_error() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (serial, _) = serial();
    write(&serial, 0, b'x');
    let error = serial.pump_output(&mut Full).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn a_reader_of_the_host_is_woken_when_there_is_room() {
    let (serial, _) = serial();
    let waits = thread::spawn({
        let serial = serial.clone();
        move || serial.wait_input_room(Duration::from_secs(60))
    });
    open(&serial);
    assert!(waits.join().unwrap());
}

#[test]
fn state_survives_and_is_checked() {
    let (first, _) = serial();
    open(&first);
    first.push_input(b"input");
    write(&first, 0, b'o');
    write(&first, 4, 0x0b);
    let text = serde_json::to_string(&first.save()).unwrap();
    let state: SerialState = serde_json::from_str(&text).unwrap();
    let (second, line) = serial();
    second.restore(&state).unwrap();
    assert_eq!(second.save(), first.save());
    assert!(line.level());
    assert_eq!(second.take_output(), b"o");
    assert_eq!(read(&second, 0), b'i');
    let bad: [&dyn Fn(&mut SerialState); 6] = [
        &|state| state.version = 7,
        &|state| state.interrupt_enable = 0x10,
        &|state| state.fifo_control = 0x80,
        &|state| state.modem_control = 0x20,
        &|state| state.input = vec![0; 17],
        &|state| state.output = vec![0; OUTPUT_HARD_LIMIT + 1],
    ];
    let before = second.save();
    for change in bad {
        let mut state = state.clone();
        change(&mut state);
        assert!(second.restore(&state).is_err());
        assert_eq!(second.save(), before);
    }
    second.reset();
    assert!(!line.level());
}

proptest! {
    /// Nothing panics or blocks; input arrives in order; the wire follows the
    /// registers; every state can be saved and restored.
    #[test]
    fn garbage_does_no_harm(accesses in prop::collection::vec((any::<u8>(), any::<u64>(), any::<u8>()), 0..200)) {
        let (serial, line) = serial();
        for (what, offset, value) in accesses {
            let size = AccessSize::from_bytes(1 << (what & 3)).unwrap();
            let offset = if what & 4 == 0 { offset % 8 } else { offset };
            match what >> 6 {
                0 => serial.write(offset, size, u64::from(value)),
                1 => _ = serial.read(offset, size),
                2 => _ = serial.push_input(&[value; 20][..usize::from(value % 20)]),
                _ => serial.write(offset % 4, size, u64::from(value)),
            }
            let pending = serial.lock().registers.interrupt_pending();
            prop_assert_eq!(line.level(), pending);
        }
        let state = serial.save();
        serial.restore(&state).unwrap();
        prop_assert_eq!(serial.save(), state);
    }

    /// Whatever a guest that is listening does in between, the bytes it reads
    /// are those that were pushed.
    #[test]
    fn input_is_transparent(text in prop::collection::vec(any::<u8>(), 0..300), steps in prop::collection::vec(0usize..20, 1..40)) {
        let (serial, _) = serial();
        open(&serial);
        let (mut sent, mut received) = (0, Vec::new());
        for reads in steps.iter().cycle().take(2000) {
            sent += serial.push_input(&text[sent..]);
            for _ in 0..*reads {
                if read(&serial, 5) & 1 != 0 {
                    received.push(read(&serial, 0));
                }
            }
        }
        while read(&serial, 5) & 1 != 0 {
            received.push(read(&serial, 0));
        }
        prop_assert_eq!(&received[..], &text[..sent]);
    }
}

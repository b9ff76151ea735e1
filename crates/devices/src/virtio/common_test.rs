use favo_types::ByteCount;

use super::super::rng::RngSpec;
use super::super::testing::test_memory;
use super::*;
use crate::interrupt::recorder::MsiRecorder;
use crate::pci::Msix;

const OFFERED_HIGH: u32 = ((F_VERSION_1 | F_RING_RESET) >> 32) as u32;

fn transport() -> Transport {
    let device = Box::new(RngSpec {}.build().unwrap());
    let msix = Msix::new(2, MsiRecorder::new());
    let interrupt = Arc::new(TransportInterrupt::new(1, msix));
    let kicks = [Arc::new(EventFd::new().unwrap())];
    let mut transport = Transport::new(device, test_memory(ByteCount::mib(1)), interrupt, &kicks);
    transport.set_bus_master(true);
    transport
}

fn status(transport: &Transport) -> u8 {
    transport.read_common(20, AccessSize::Byte) as u8
}

fn set_features(transport: &mut Transport, low: u32, high: u32) {
    for (select, value) in [(0, low), (1, high)] {
        transport.write_common(8, AccessSize::Dword, select);
        transport.write_common(12, AccessSize::Dword, value.into());
    }
}

fn negotiate(transport: &mut Transport) {
    for bits in [1, 3] {
        transport.write_common(20, AccessSize::Byte, bits);
    }
    set_features(transport, F_EVENT_IDX as u32, OFFERED_HIGH);
    transport.write_common(20, AccessSize::Byte, 11);
    assert_eq!(status(transport), 11);
}

fn set_up_queue(transport: &mut Transport) {
    transport.write_common(24, AccessSize::Word, 16);
    transport.write_common(32, AccessSize::Dword, 0x1000);
    transport.write_common(40, AccessSize::Qword, 0x2000);
    transport.write_common(48, AccessSize::Dword, 0x3000);
    transport.write_common(28, AccessSize::Word, 1);
}

#[test]
fn features_not_offered_or_legacy_are_not_accepted() {
    for (low, high) in [(1, OFFERED_HIGH), (0, 0), (0, OFFERED_HIGH | 1 << 31)] {
        let mut transport = transport();
        transport.write_common(20, AccessSize::Byte, 3);
        set_features(&mut transport, low, high);
        transport.write_common(20, AccessSize::Byte, 11);
        assert_eq!(status(&transport), 3, "{low:#x} {high:#x}");
        // And so the device can't be made to run.
        transport.write_common(20, AccessSize::Byte, 15);
        assert_eq!(status(&transport), 3);
    }
}

#[test]
fn features_are_fixed_once_agreed() {
    let mut transport = transport();
    negotiate(&mut transport);
    let before = transport.driver_features;
    set_features(&mut transport, 0, 0);
    assert_eq!(transport.driver_features, before);
}

#[test]
fn a_queue_runs_only_while_everything_allows_it() {
    let mut transport = transport();
    // Not before features are agreed.
    set_up_queue(&mut transport);
    assert!(!transport.queues[0].enabled);
    negotiate(&mut transport);
    set_up_queue(&mut transport);
    assert!(transport.queues[0].enabled && !transport.queues[0].running);
    transport.write_common(20, AccessSize::Byte, 15);
    assert!(transport.queues[0].running);
    // Locked while it runs.
    transport.write_common(24, AccessSize::Word, 8);
    transport.write_common(32, AccessSize::Dword, 0x8000);
    assert_eq!(transport.read_common(24, AccessSize::Word), 16);
    assert_eq!(transport.read_common(32, AccessSize::Dword), 0x1000);

    transport.set_bus_master(false);
    assert!(!transport.queues[0].running);
    transport.set_bus_master(true);
    assert!(transport.queues[0].running);
    transport.pause();
    assert!(!transport.queues[0].running);
    transport.resume();
    assert!(transport.queues[0].running);

    transport.write_common(20, AccessSize::Byte, 0);
    assert!(!transport.queues[0].running && !transport.queues[0].enabled);
    assert_eq!(status(&transport), 0);
    assert_eq!(transport.read_common(24, AccessSize::Word), 64);
}

#[test]
fn a_queue_is_reset_alone_and_set_up_anew() {
    let mut transport = transport();
    negotiate(&mut transport);
    set_up_queue(&mut transport);
    transport.write_common(20, AccessSize::Byte, 15);
    transport.write_common(58, AccessSize::Word, 1);
    assert_eq!(transport.read_common(58, AccessSize::Word), 0);
    assert_eq!(transport.read_common(28, AccessSize::Word), 0);
    assert!(!transport.queues[0].running);
    set_up_queue(&mut transport);
    assert!(transport.queues[0].running);
}

#[test]
fn rings_outside_ram_need_a_reset() {
    let mut transport = transport();
    negotiate(&mut transport);
    transport.write_common(32, AccessSize::Qword, 1 << 40);
    transport.write_common(28, AccessSize::Word, 1);
    transport.write_common(20, AccessSize::Byte, 15);
    assert_eq!(status(&transport), 15 | STATUS_NEEDS_RESET);
    transport.write_common(20, AccessSize::Byte, 0);
    assert_eq!(status(&transport), 0);
}

#[test]
fn a_queue_that_does_not_exist_has_size_0() {
    let mut transport = transport();
    transport.write_common(22, AccessSize::Word, 1);
    assert_eq!(transport.read_common(24, AccessSize::Word), 0);
    assert_eq!(transport.read_common(18, AccessSize::Word), 1);
    assert_eq!(transport.read_common(60, AccessSize::Qword), 0);
}

#[test]
fn vectors_that_do_not_exist_read_back_as_none() {
    let mut transport = transport();
    for (offset, vector, read) in [(16, 1, 1), (16, 2, 0xffff), (26, 0, 0), (26, 9, 0xffff)] {
        transport.write_common(offset, AccessSize::Word, vector);
        assert_eq!(transport.read_common(offset, AccessSize::Word), read);
    }
}

#[test]
fn a_saved_transport_is_the_same_after_restore() {
    let mut transport1 = transport();
    negotiate(&mut transport1);
    set_up_queue(&mut transport1);
    transport1.write_common(20, AccessSize::Byte, 15);
    assert!(transport1.save().is_err(), "saved while running");
    transport1.pause();
    let state = transport1.save().unwrap();

    let mut transport2 = transport();
    transport2.restore(&state).unwrap();
    assert_eq!(transport2.save().unwrap(), state);
    transport2.resume();
    assert!(transport2.queues[0].running);
    assert_eq!(status(&transport2), 15);

    let mut bad = state.clone();
    bad.driver_features |= 1;
    assert!(transport2.restore(&bad).is_err());
    let mut bad = state.clone();
    bad.queues[0].state.size = 3;
    assert!(transport2.restore(&bad).is_err());
    let mut bad = state;
    bad.queues.clear();
    assert!(transport2.restore(&bad).is_err());
}

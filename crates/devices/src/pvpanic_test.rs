use super::*;
use crate::power::recorder::EventRecorder;
use AccessSize::Byte;

#[test]
fn a_panic_is_told() {
    let events = EventRecorder::new();
    let device = Pvpanic::new(events.clone());
    assert_eq!(device.read(0, Byte), 3);
    device.write(0, Byte, 1);
    assert_eq!(events.take(), [MachineEvent::GuestPanicked]);
    device.write(0, Byte, 2);
    assert_eq!(events.take(), [MachineEvent::GuestCrashLoaded]);
}

#[test]
fn every_other_value_is_harmless() {
    let events = EventRecorder::new();
    let device = Pvpanic::new(events.clone());
    for value in 0..=255 {
        device.write(0, Byte, value);
        assert_eq!(events.take().is_empty(), value & 3 == 0, "{value}");
    }
}

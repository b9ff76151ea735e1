use proptest::prelude::*;

use super::recorder::EventRecorder;
use super::*;
use crate::interrupt::recorder::LineRecorder;
use AccessSize::{Byte, Dword};

fn power() -> (Power, Arc<EventRecorder>, Arc<LineRecorder>) {
    let (events, line) = (EventRecorder::new(), LineRecorder::new());
    (Power::new(events.clone(), line.clone()), events, line)
}

#[test]
fn s5_powers_off_and_nothing_else_does() {
    let (power, events, _) = power();
    // Without the enable bit; another sleep state; the status register; a
    // width the register has not.
    power.write(0, Byte, 5 << 2);
    power.write(0, Byte, 1 << 2 | 1 << 5);
    power.write(1, Byte, 5 << 2 | 1 << 5);
    power.write(0, Dword, 5 << 2 | 1 << 5);
    assert_eq!(events.take(), []);
    power.write(0, Byte, 5 << 2 | 1 << 5);
    assert_eq!(events.take(), [MachineEvent::PowerOff]);
    assert_eq!(power.read(1, Byte), 0);
}

#[test]
fn the_power_button_interrupts_and_is_read_once() {
    let (power, _, line) = power();
    power.press_power_button();
    power.press_power_button();
    assert_eq!((line.take_edges(), line.level()), (2, false));
    let state = power.save();
    assert_eq!(power.read(2, Byte), 1);
    assert_eq!(power.read(2, Byte), 0);
    power.restore(&state).unwrap();
    assert_eq!(power.read(2, Byte), 1);
    for bad in [
        PowerState {
            version: 9,
            ..state
        },
        PowerState {
            pending: 4,
            ..state
        },
    ] {
        assert!(power.restore(&bad).is_err());
    }
    power.press_power_button();
    power.reset();
    assert_eq!(power.read(2, Byte), 0);
}

#[test]
fn resets_as_pcs_do_them() {
    let events = EventRecorder::new();
    let control = ResetControl::new(events.clone());
    control.write(0, Byte, 0x02);
    assert_eq!(control.read(0, Byte), 0x02);
    assert_eq!(events.take(), []);
    control.write(0, Byte, 0x06);
    assert_eq!(events.take(), [MachineEvent::Reset]);
    control.write(0, Byte, u64::from(ResetControl::RESET_VALUE));
    assert_eq!(events.take(), [MachineEvent::Reset]);

    let keyboard = KeyboardReset::new(events.clone());
    assert_eq!(keyboard.read(0, Byte) & 2, 0, "ready for a command");
    keyboard.write(0, Byte, 0xad);
    assert_eq!(events.take(), []);
    keyboard.write(0, Byte, 0xfe);
    assert_eq!(events.take(), [MachineEvent::Reset]);
}

proptest! {
    #[test]
    fn garbage_does_no_harm(accesses in prop::collection::vec((any::<u64>(), 0usize..4, any::<u64>()), 0..60)) {
        let (power, events, _) = power();
        let devices: [Arc<dyn BusDevice>; 3] = [
            Arc::new(power),
            Arc::new(ResetControl::new(events.clone())),
            Arc::new(KeyboardReset::new(events)),
        ];
        for (offset, size, value) in accesses {
            let size = AccessSize::from_bytes(1 << size).unwrap();
            let offset = if value & 1 == 0 { offset % 4 } else { offset };
            for device in &devices {
                device.write(offset, size, value >> 1);
                device.read(offset, size);
            }
        }
    }
}

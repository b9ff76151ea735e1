use proptest::prelude::*;

use super::*;
use AccessSize::Dword;

/// Remembers messages and what was reported.
#[derive(Default)]
struct Output(Mutex<(Vec<Msi>, Vec<Option<Msi>>)>);

impl Output {
    fn take(&self) -> Vec<Msi> {
        std::mem::take(&mut self.0.lock().unwrap().0)
    }

    /// The pins whose EOI must come back.
    fn level_pins(&self) -> Vec<usize> {
        let output = self.0.lock().unwrap();
        let pins = output.1.iter().enumerate();
        pins.filter(|(_, pin)| pin.is_some())
            .map(|(pin, _)| pin)
            .collect()
    }
}

impl MsiSender for Output {
    fn send(&self, msi: Msi) {
        self.0.lock().unwrap().0.push(msi);
    }
}

impl IoApicOutput for Output {
    fn set_level_triggered_pins(&self, pins: &[Option<Msi>]) {
        self.0.lock().unwrap().1 = pins.to_vec();
    }
}

fn ioapic() -> (Arc<IoApic>, Arc<Output>) {
    let output = Arc::new(Output::default());
    (IoApic::new(output.clone()), output)
}

fn write(ioapic: &IoApic, register: u8, value: u32) {
    BusDevice::write(ioapic, SELECT, Dword, register.into());
    BusDevice::write(ioapic, WINDOW, Dword, value.into());
}

fn read(ioapic: &IoApic, register: u8) -> u32 {
    BusDevice::write(ioapic, SELECT, Dword, register.into());
    BusDevice::read(ioapic, WINDOW, Dword) as u32
}

fn program(ioapic: &IoApic, pin: u8, entry: u64) {
    write(ioapic, 0x11 + 2 * pin, (entry >> 32) as u32);
    write(ioapic, 0x10 + 2 * pin, entry as u32);
}

fn entry(ioapic: &IoApic, pin: u8) -> u64 {
    u64::from(read(ioapic, 0x11 + 2 * pin)) << 32 | u64::from(read(ioapic, 0x10 + 2 * pin))
}

#[test]
fn it_introduces_itself() {
    let (ioapic, _) = ioapic();
    assert_eq!(read(&ioapic, 1), 0x0017_0020);
    write(&ioapic, 0, 0x0500_0000);
    assert_eq!(read(&ioapic, 0), 0x0500_0000);
    assert_eq!(entry(&ioapic, 23), MASKED);
    assert_eq!(read(&ioapic, 0x40), 0);
    assert!(ioapic.pin(23).is_some() && ioapic.pin(24).is_none());
}

#[test]
fn an_edge_sends_one_message() {
    let (ioapic, output) = ioapic();
    let pin = ioapic.pin(4).unwrap();
    pin.pulse();
    assert_eq!(output.take(), [], "masked edges are lost");
    // Fixed, physical, to processor 3, vector 0x31.
    program(&ioapic, 4, 3 << 56 | 0x31);
    pin.set_level(true);
    pin.set_level(true);
    assert_eq!(
        output.take(),
        [Msi {
            address: 0xfee0_3000,
            data: 0x31
        }]
    );
    pin.set_level(false);
    pin.pulse();
    assert_eq!(output.take().len(), 1);
    assert!(output.level_pins().is_empty());
}

#[test]
fn the_message_carries_mode_and_destination() {
    let (ioapic, output) = ioapic();
    // Lowest priority, logical, extended destination 0x2a03.
    program(&ioapic, 0, 3 << 56 | 0x2a << 49 | LOGICAL | 1 << 8 | 0x55);
    ioapic.pin(0).unwrap().pulse();
    assert_eq!(
        output.take(),
        [Msi {
            address: 0x2a << 40 | 0xfee0_3004,
            data: 0x155
        }]
    );
}

#[test]
fn a_level_is_sent_again_after_eoi_while_it_is_up() {
    let (ioapic, output) = ioapic();
    let pin = ioapic.pin(10).unwrap();
    pin.set_level(true);
    program(&ioapic, 10, LEVEL | 0x60);
    assert_eq!(output.level_pins(), [10]);
    let message = Msi {
        address: 0xfee0_0000,
        data: 0xc060,
    };
    assert_eq!(output.take(), [message]);
    assert_ne!(entry(&ioapic, 10) & REMOTE_IRR, 0);
    pin.set_level(false);
    pin.set_level(true);
    assert_eq!(output.take(), [], "waits for the EOI");
    ioapic.end_of_interrupt(0x61);
    assert_eq!(output.take(), []);
    ioapic.end_of_interrupt(0x60);
    assert_eq!(output.take(), [message]);
    pin.set_level(false);
    BusDevice::write(&*ioapic, EOI, Dword, 0x60);
    assert_eq!(output.take(), []);
    assert_eq!(entry(&ioapic, 10) & REMOTE_IRR, 0);
}

#[test]
fn masking_a_level_in_service_still_takes_its_eoi() {
    let (ioapic, output) = ioapic();
    let pin = ioapic.pin(5).unwrap();
    program(&ioapic, 5, LEVEL | 0x60);
    pin.set_level(true);
    program(&ioapic, 5, LEVEL | MASKED | 0x60);
    assert_eq!(output.take().len(), 1);
    assert_eq!(output.level_pins(), [5]);
    ioapic.end_of_interrupt(0x60);
    assert_eq!(output.take(), []);
    assert!(output.level_pins().is_empty());
    program(&ioapic, 5, LEVEL | 0x60);
    assert_eq!(output.take().len(), 1, "still up when unmasked");
    // Linux's recovery of a stuck pin: to edge and back.
    program(&ioapic, 5, MASKED | 0x60);
    assert_eq!(entry(&ioapic, 5) & REMOTE_IRR, 0);
}

#[test]
fn state_survives_and_is_checked() {
    let (first, _) = ioapic();
    program(&first, 5, LEVEL | 0x60);
    program(&first, 4, 0x31);
    first.pin(5).unwrap().set_level(true);
    let text = serde_json::to_string(&first.save()).unwrap();
    let state: IoApicState = serde_json::from_str(&text).unwrap();

    let (second, output) = ioapic();
    second.restore(&state).unwrap();
    assert_eq!(second.save(), first.save());
    assert_eq!(output.take(), []);
    assert_eq!(output.level_pins(), [5]);
    second.end_of_interrupt(0x60);
    assert_eq!(output.take().len(), 1);

    let bad: [&dyn Fn(&mut IoApicState); 5] = [
        &|state| state.version = 2,
        &|state| state.entries[3] |= 1 << 20,
        &|state| state.entries[3] = REMOTE_IRR,
        &|state| state.lines = 1 << 24,
        &|state| state.id = 16,
    ];
    let before = second.save();
    for change in bad {
        let mut state = state.clone();
        change(&mut state);
        assert!(second.restore(&state).is_err());
        assert_eq!(second.save(), before);
    }
    second.reset();
    assert!(output.level_pins().is_empty());
    assert_eq!(second.save().lines, 1 << 5, "lines are the devices'");
}

proptest! {
    /// Nothing panics; the engine always knows exactly the pins that wait for
    /// an EOI or may come to; remote IRR is only set on level pins; every
    /// state can be saved and restored.
    #[test]
    fn garbage_does_no_harm(accesses in prop::collection::vec((any::<u8>(), any::<u8>(), any::<u64>()), 0..200)) {
        let (ioapic, output) = ioapic();
        for (what, offset, value) in accesses {
            let size = AccessSize::from_bytes(1 << (what >> 6)).unwrap();
            let offset = u64::from(offset);
            match what & 7 {
                0 => BusDevice::write(&*ioapic, offset, size, value),
                1 => _ = BusDevice::read(&*ioapic, offset, size),
                2 | 3 => write(&ioapic, offset as u8 % 0x48, value as u32 & !(MASKED as u32)),
                4 => _ = read(&ioapic, offset as u8),
                5 => ioapic.end_of_interrupt(value as u8),
                _ => if let Some(pin) = ioapic.pin(offset as u8 % 32) {
                    pin.set_level(value & 1 != 0);
                },
            }
            let state = ioapic.save();
            let waiting: Vec<usize> = (0..IoApic::PINS).filter(|&pin| {
                let entry = state.entries[pin];
                entry & LEVEL != 0 && (entry & MASKED == 0 || entry & REMOTE_IRR != 0)
            }).collect();
            prop_assert_eq!(output.level_pins(), waiting);
        }
        let state = ioapic.save();
        ioapic.restore(&state).unwrap();
        prop_assert_eq!(ioapic.save(), state);
    }
}

use super::super::{BarKind, Capability, Msix, PciIdentity};
use super::*;
use crate::interrupt::recorder::MsiRecorder;

/// A device with a 64-bit and a 32-bit BAR, MSI-X, and a dynamic capability.
pub(in super::super) struct TestDevice {
    pub(in super::super) name: &'static str,
    pub(in super::super) msix: Arc<Msix>,
    pub(in super::super) log: Mutex<Vec<String>>,
}

impl TestDevice {
    pub(in super::super) fn new(name: &'static str) -> (Arc<Self>, Arc<MsiRecorder>) {
        let sent = MsiRecorder::new();
        let device = Self {
            name,
            msix: Msix::new(3, sent.clone()),
            log: Mutex::default(),
        };
        (Arc::new(device), sent)
    }

    pub(in super::super) fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    fn note(&self, text: String) {
        self.log.lock().unwrap().push(text);
    }
}

pub(in super::super) const LOW: BarIndex = BarIndex::new(2).unwrap();
pub(in super::super) const HIGH: BarIndex = BarIndex::new(0).unwrap();

impl PciDevice for TestDevice {
    fn spec(&self) -> PciSpec {
        PciSpec {
            name: self.name.to_owned(),
            identity: PciIdentity {
                vendor: 0x1af4,
                device: 0x1042,
                revision: 1,
                class: 0x01_80_00,
                subsystem_vendor: 0x1af4,
                subsystem: 0x40,
            },
            bars: vec![
                BarSpec {
                    index: HIGH,
                    kind: BarKind::Memory64,
                    prefetchable: true,
                    size: 0x4000,
                },
                BarSpec {
                    index: LOW,
                    kind: BarKind::Memory32,
                    prefetchable: false,
                    size: 0x1000,
                },
            ],
            capabilities: vec![
                Capability {
                    id: 9,
                    body: vec![16, 1, 2, 3],
                    dynamic: false,
                },
                Capability {
                    id: 9,
                    body: vec![0; 18],
                    dynamic: true,
                },
            ],
            msix: Some(MsixSpec {
                msix: self.msix.clone(),
                bar: HIGH,
                table_offset: 0x2000,
                pending_offset: 0x3000,
            }),
        }
    }

    fn read_bar(&self, bar: BarIndex, offset: u64, size: AccessSize) -> u64 {
        self.note(format!("read {} {offset:#x} {size:?}", bar.get()));
        offset
    }

    fn write_bar(&self, bar: BarIndex, offset: u64, size: AccessSize, value: u64) {
        self.note(format!(
            "write {} {offset:#x} {size:?} {value:#x}",
            bar.get()
        ));
    }

    fn read_capability(&self, index: usize, offset: u16, size: AccessSize) -> u32 {
        self.note(format!("capability {index} {offset} {size:?}"));
        0x1234_5678
    }

    fn write_capability(&self, index: usize, offset: u16, size: AccessSize, value: u32) {
        self.note(format!("capability {index} {offset} {size:?} {value:#x}"));
    }

    fn set_bus_master(&self, enabled: bool) {
        self.note(format!("bus master {enabled}"));
    }

    fn bar_moved(&self, bar: BarIndex, address: Option<GuestAddress>) {
        self.note(match address {
            Some(address) => format!("BAR {} at {address}", bar.get()),
            None => format!("BAR {} nowhere", bar.get()),
        });
    }

    fn reset(&self) {
        self.note("reset".to_owned());
    }
}

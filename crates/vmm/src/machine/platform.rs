//! The devices of a machine, each where `favo_devices::platform` says.

use std::sync::Arc;

use favo_accel::state::VcpuState;
use favo_accel::{EventCounter, GuestMemory, Partition};
use favo_devices::acpi::{self, AcpiTables};
use favo_devices::bus::{Bus, BusDevice};
use favo_devices::interrupt::{InterruptLine, MsiSender, PartitionMsiSender, Unconnected};
use favo_devices::ioapic::{IoApic, IoApicState};
use favo_devices::pci::{PciRoot, PciRootState};
use favo_devices::platform::{self as layout, MemoryMap};
use favo_devices::power::{KeyboardReset, Power, PowerState, ResetControl};
use favo_devices::pvpanic::Pvpanic;
use favo_devices::rtc::{Rtc, RtcState};
use favo_devices::serial::{SerialPort, SerialState};
use favo_devices::state::StateError;
use favo_devices::virtio::balloon::BalloonSpec;
use favo_devices::virtio::blk::BlkSpec;
use favo_devices::virtio::common::TransportState;
use favo_devices::virtio::console::ConsoleSpec;
use favo_devices::virtio::console::backend::FdPort;
use favo_devices::virtio::net::NetHandle;
use favo_devices::virtio::pci::VirtioPci;
use favo_devices::virtio::rng::RngSpec;
use favo_devices::virtio::vsock::{VsockHandle, VsockSpec};
use favo_devices::virtio::{DeviceError, VirtioDevice};
use favo_types::GuestAddress;

use super::{CardSpec, DirectBoot, Ending, MachineError, MachineSpec, MachineState, host};
use crate::linux_boot::{Boot, MapEntry, RangeKind};
use crate::processors::Buses;

/// More queues than this gain nothing on one disk.
const MOST_DISK_QUEUES: u32 = 8;

/// A machine's buses and devices.
pub struct Platform {
    pub buses: Buses,
    pub serial: Arc<SerialPort>,
    pub power: Arc<Power>,
    pub vsock: Option<VsockHandle>,
    pub cards: Vec<NetHandle>,
    rtc: Arc<Rtc>,
    ioapic: Arc<IoApic>,
    virtio: Vec<(String, Arc<VirtioPci>)>,
    /// Keeps the functions; the memory bus only knows where they are.
    pci: Arc<PciRoot>,
}

impl Platform {
    /// Makes every device and puts it in its place. Takes the network cards'
    /// cables out of `spec`.
    pub fn build(
        spec: &mut MachineSpec,
        map: &MemoryMap,
        memory: &GuestMemory,
        partition: &Arc<dyn Partition>,
        ending: Arc<Ending>,
    ) -> Result<Self, MachineError> {
        let ports = Arc::new(Bus::ports());
        let mmio = Arc::new(Bus::mmio());
        let sender = Arc::new(PartitionMsiSender::new(partition.clone()));
        let ioapic = IoApic::new(sender.clone());
        let pin = |pin: u8| -> Arc<dyn InterruptLine> {
            ioapic.pin(pin).unwrap_or_else(|| Arc::new(Unconnected))
        };

        let serial = Arc::new(SerialPort::new(pin(layout::SERIAL_PIN)));
        let power = Arc::new(Power::new(ending.clone(), pin(layout::POWER_PIN)));
        let port = |name: &str, at: u16, length: u64, device: Arc<dyn BusDevice>| {
            ports.insert(name, at.into(), length, device)
        };
        port(
            "serial",
            layout::SERIAL_PORT,
            SerialPort::PORTS,
            serial.clone(),
        )?;
        let rtc = Arc::new(Rtc::new());
        port("rtc", layout::RTC_PORT, 2, rtc.clone())?;
        port("power", layout::POWER_PORT, Power::PORTS, power.clone())?;
        let reset = Arc::new(ResetControl::new(ending.clone()));
        port("reset", layout::RESET_CONTROL_PORT, 1, reset)?;
        let keyboard = Arc::new(KeyboardReset::new(ending.clone()));
        port("keyboard", layout::KEYBOARD_COMMAND_PORT, 1, keyboard)?;
        port(
            "pvpanic",
            layout::PVPANIC_PORT,
            1,
            Arc::new(Pvpanic::new(ending)),
        )?;

        let (start, size) = layout::IOAPIC;
        mmio.insert("I/O APIC", start.0, size.bytes(), ioapic.clone())?;
        let pci = PciRoot::new(&mmio, map.pci_windows());
        let (start, size) = layout::ECAM;
        mmio.insert("ECAM", start.0, size.bytes(), pci.clone())?;

        let ends = ioapic.clone();
        let mut platform = Self {
            buses: Buses {
                ports,
                mmio,
                end_of_interrupt: Arc::new(move |vector| ends.end_of_interrupt(vector)),
            },
            rtc,
            ioapic,
            serial,
            power,
            vsock: None,
            cards: Vec::new(),
            virtio: Vec::new(),
            pci: pci.clone(),
        };
        let mut attach =
            |name: String, device: Box<dyn VirtioDevice>| -> Result<(), MachineError> {
                let sender: Arc<dyn MsiSender> = sender.clone();
                let device = VirtioPci::new(name.clone(), device, memory.clone(), sender)?;
                pci.attach(None, device.clone())?;
                platform.virtio.push((name, device));
                Ok(())
            };
        for (index, disk) in spec.disks.iter().enumerate() {
            let queues = spec.cpus.min(MOST_DISK_QUEUES) as u16;
            let serial = disk.serial.clone();
            let device = BlkSpec { queues, serial }.build(disk.disk.clone())?;
            attach(format!("disk{index}"), Box::new(device))?;
        }
        let mut cards = Vec::new();
        for (index, CardSpec { card, links }) in spec.cards.drain(..).enumerate() {
            let device = card.build(links)?;
            cards.push(device.handle());
            attach(format!("net{index}"), Box::new(device))?;
        }
        if spec.rng {
            attach("rng".into(), Box::new(RngSpec::default().build()?))?;
        }
        if spec.balloon {
            attach("balloon".into(), Box::new(balloon().build()?))?;
        }
        if let Some(console) = &spec.console {
            let clone = |fd: &Option<std::os::fd::OwnedFd>| {
                fd.as_ref().map(std::os::fd::OwnedFd::try_clone).transpose()
            };
            let port = clone(&console.input)
                .and_then(|input| FdPort::new(input, clone(&console.output)?))
                .map_err(host("connecting the console"))?;
            attach(
                "console".into(),
                Box::new(ConsoleSpec::plain().build(vec![Box::new(port)])?),
            )?;
        }
        let mut vsock = None;
        if let Some(cid) = spec.vsock_cid {
            let device = VsockSpec::new(cid).build()?;
            vsock = Some(device.handle());
            attach("vsock".into(), Box::new(device))?;
        }
        platform.vsock = vsock;
        platform.cards = cards;
        Ok(platform)
    }

    /// Has every device stand still. The processors do already: what a device
    /// still has to tell them is told when this returns.
    pub fn pause(&self) {
        self.serial.set_paused(true);
        for (_, device) in &self.virtio {
            device.pause();
        }
    }

    /// Undoes [`Platform::pause`].
    pub fn resume(&self) {
        for (_, device) in &self.virtio {
            device.resume();
        }
        self.serial.set_paused(false);
    }

    /// The state of every device, while they stand still.
    pub fn save(&self) -> Result<PlatformState, DeviceError> {
        let virtio = self.virtio.iter();
        let virtio = virtio.map(|(name, device)| Ok((name.clone(), device.save()?)));
        Ok(PlatformState {
            virtio: virtio.collect::<Result<_, DeviceError>>()?,
            ioapic: self.ioapic.save(),
            serial: self.serial.save(),
            rtc: self.rtc.save(),
            power: self.power.save(),
            pci: self.pci.save(),
        })
    }

    /// Loads a saved state into devices that were just built; they stand still
    /// afterwards. What fails leaves a machine that must not run.
    pub fn restore(&self, state: &MachineState) -> Result<(), MachineError> {
        let here = self.virtio.iter().map(|(name, _)| name);
        if !here.eq(state.virtio.iter().map(|(name, _)| name)) {
            let names = |names: Vec<&String>| {
                let names: Vec<&str> = names.into_iter().map(String::as_str).collect();
                names.join(", ")
            };
            let reason = format!(
                "it has {}; this machine has {}",
                names(state.virtio.iter().map(|(name, _)| name).collect()),
                names(self.virtio.iter().map(|(name, _)| name).collect()),
            );
            return Err(StateError::invalid("the machine's devices", reason).into());
        }
        self.pause();
        // Lines first: a device that drives one as it is sends nothing again.
        self.ioapic.restore(&state.ioapic)?;
        self.serial.restore(&state.serial)?;
        self.rtc.restore(&state.rtc)?;
        self.power.restore(&state.power)?;
        self.pci.restore(&state.pci)?;
        for ((_, device), (_, state)) in self.virtio.iter().zip(&state.virtio) {
            device.restore(state)?;
        }
        Ok(())
    }

    /// What the devices counted.
    pub fn counters(&self) -> Vec<(String, EventCounter)> {
        self.virtio
            .iter()
            .flat_map(|(name, device)| {
                let counters = device.counters().into_iter();
                counters.map(move |counter| (name.clone(), counter))
            })
            .collect()
    }
}

/// The devices' part of a [`MachineState`].
pub struct PlatformState {
    pub ioapic: IoApicState,
    pub serial: SerialState,
    pub rtc: RtcState,
    pub power: PowerState,
    pub pci: PciRootState,
    pub virtio: Vec<(String, TransportState)>,
}

/// Free memory goes back to the host by itself.
fn balloon() -> BalloonSpec {
    BalloonSpec {
        free_page_reporting: true,
        deflate_on_oom: true,
        ..BalloonSpec::default()
    }
}

/// Where a PC's firmware starts, and where an operating system jumps that
/// wants a reset from it in real mode, as Linux does when all else failed.
const RESET_VECTOR: GuestAddress = GuestAddress(0xf_fff0);
/// All the firmware there is: `mov dx, 0cf9h; mov al, 6; out dx, al`, which
/// resets the machine, and a halt.
const RESET_CODE: [u8; 9] = [0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4, 0xeb, 0xfd];

/// Makes this machine another one than any before, to its guest.
pub fn renew_generation(memory: &GuestMemory) -> Result<(), MachineError> {
    let mut id = [0; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| host("reading random bytes")(error.into()))?;
    memory.write(layout::GENERATION_ID, &id)?;
    Ok(())
}

/// Puts the ACPI tables and what is booted into memory, and the boot
/// processor at its entry.
pub fn place(
    boot: &DirectBoot,
    map: &MemoryMap,
    memory: &GuestMemory,
    vcpus: u32,
    state: &mut VcpuState,
) -> Result<(), MachineError> {
    let pci = map.pci_windows();
    let tables = AcpiTables::new(&acpi::Platform { vcpus, pci })?;
    memory.write(tables.address, &tables.bytes)?;
    memory.write(RESET_VECTOR, &RESET_CODE)?;
    Boot {
        kernel: &boot.kernel,
        initrd: &boot.initrd,
        command_line: &boot.command_line,
        memory_map: &memory_map(map),
        acpi_rsdp: Some(tables.rsdp),
    }
    .place(memory, state)?;
    Ok(())
}

/// The kernel's memory map: RAM without what is reserved in it, and the
/// reserved ranges, ascending.
fn memory_map(map: &MemoryMap) -> Vec<MapEntry> {
    let mut reserved: Vec<_> = layout::RESERVED
        .iter()
        .map(|(start, size)| start.0..start.0 + size.bytes())
        .collect();
    reserved.sort_by_key(|range| range.start);
    let mut entries: Vec<MapEntry> = Vec::new();
    for (start, size) in &map.ram {
        let end = start.0 + size.bytes();
        let mut at = start.0;
        for taken in reserved.iter().filter(|taken| taken.end > start.0) {
            if at < taken.start.min(end) {
                entries.push((at..taken.start.min(end), RangeKind::Ram));
            }
            at = at.max(taken.end.min(end));
        }
        if at < end {
            entries.push((at..end, RangeKind::Ram));
        }
    }
    entries.extend(
        reserved
            .into_iter()
            .map(|range| (range, RangeKind::Reserved)),
    );
    entries.sort_by_key(|(range, _)| range.start);
    entries
}

#[cfg(test)]
#[path = "platform_test.rs"]
mod test;

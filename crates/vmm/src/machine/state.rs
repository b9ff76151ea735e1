//! Everything a machine remembers beside its RAM and its disks, as a value.

use favo_accel::cpuid::CpuidTable;
use favo_accel::memory::Layer;
use favo_accel::state::{ClockState, VcpuState};
use favo_devices::ioapic::IoApicState;
use favo_devices::pci::PciRootState;
use favo_devices::power::PowerState;
use favo_devices::rtc::RtcState;
use favo_devices::serial::SerialState;
use favo_devices::virtio::common::TransportState;
use serde::{Deserialize, Serialize};

/// The state of a machine that stands still, the same whichever engine ran it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// [`MachineState::VERSION`] when it was written.
    pub version: u32,
    /// The frequency of the guest's time stamp counter.
    pub tsc_khz: u32,
    /// The paravirtual clock.
    pub clock: ClockState,
    /// The processors, in order.
    pub processors: Vec<ProcessorState>,
    /// The I/O APIC.
    pub ioapic: IoApicState,
    /// The serial port.
    pub serial: SerialState,
    /// The real-time clock.
    pub rtc: RtcState,
    /// ACPI's event register.
    pub power: PowerState,
    /// What the guest programmed on PCI.
    pub pci: PciRootState,
    /// The virtio devices by name, in the order they lie on PCI.
    pub virtio: Vec<(String, TransportState)>,
}

/// A processor: what it says of itself, and what it holds.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ProcessorState {
    /// Its CPUID leaves.
    pub cpuid: CpuidTable,
    /// Its registers.
    pub state: VcpuState,
}

impl MachineState {
    /// The version of the layout described here.
    pub const VERSION: u32 = 1;
}

/// A machine to go on with instead of one to boot.
#[derive(Debug)]
pub struct SavedMachine {
    /// What its RAM begins as, the lowest layer first.
    pub memory: Vec<Layer>,
    /// The rest.
    pub state: MachineState,
    /// How its clocks go on.
    pub clock: ClockStep,
}

/// How a machine's clocks go on where it was stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClockStep {
    /// Where they stood: no time has passed for the guest, but for its
    /// real-time clock. For a machine that was away for long; a step of hours
    /// would overflow older guests' arithmetic.
    Stand,
    /// Ahead by the time that has passed. For one that was away for moments.
    Follow,
}

impl SavedMachine {
    /// Sets the clocks forward, if they are to be.
    pub(super) fn step(&mut self, now_ns: u64) {
        if self.clock == ClockStep::Stand {
            return;
        }
        let state = &mut self.state;
        let passed = now_ns.saturating_sub(state.clock.realtime_ns);
        state.clock.kvmclock_ns = state.clock.kvmclock_ns.saturating_add(passed);
        state.clock.realtime_ns = now_ns;
        let ticks = u128::from(passed) * u128::from(state.tsc_khz) / 1_000_000;
        for processor in &mut state.processors {
            let tsc = &mut processor.state.msrs.tsc;
            *tsc = tsc.wrapping_add(ticks as u64);
        }
    }
}

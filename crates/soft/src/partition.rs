//! One machine's processors as a whole: interrupts between them and to them,
//! and the clock they share.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use favo_accel::cpuid::CpuidTable;
use favo_accel::memory::pages::barrier_on_every_thread;
use favo_accel::state::{ClockState, VcpuState};
use favo_accel::{
    AccelError, DirtyLog, EngineKind, GuestMemory, Msi, PAGE_SIZE, Partition, PartitionConfig,
    Vcpu, VcpuId,
};
use favo_types::GuestAddress;

use crate::alarm::Alarm;
use crate::clock::{Scale, host_tsc, tsc_khz};
use crate::low::LowBox;
use crate::mailbox::{Mailbox, attention};
use crate::mmu::RamPlace;
use crate::vcpu::SoftVcpu;

/// What all processors of a machine share.
pub(crate) struct Shared {
    pub(crate) memory: GuestMemory,
    mailboxes: Vec<LowBox<Mailbox>>,
    alarm: Alarm,
    pub(crate) tsc_khz: u32,
    pub(crate) scale: Scale,
    clock: Mutex<ClockBase>,
    /// Where lowest-priority interrupts go next.
    next_lowest: AtomicU32,
    /// Held while a page is armed: once it is free, everybody knows.
    arming: Mutex<()>,
    /// How often the clock was set: processors then rewrite their pages.
    pub(crate) clock_generation: AtomicU64,
    /// The processor whose TSC was set last, and its offset.
    tsc_offset: Mutex<Option<(u32, u64)>>,
}

/// kvmclock read `nanoseconds` when the host TSC read `host_tsc`.
#[derive(Clone, Copy)]
struct ClockBase {
    host_tsc: u64,
    nanoseconds: u64,
}

/// An interrupt on its way (SDM vol. 3, 11.6.1).
#[derive(Clone, Copy, Debug)]
struct Message {
    vector: u8,
    mode: u8,
    level: bool,
    destination: u32,
    logical: bool,
}

/// Delivery modes.
mod mode {
    pub const FIXED: u8 = 0;
    pub const LOWEST: u8 = 1;
    pub const NMI: u8 = 4;
    pub const INIT: u8 = 5;
    pub const STARTUP: u8 = 6;
    pub const EXTINT: u8 = 7;
}

impl Shared {
    /// A machine's shared part, listening.
    pub(crate) fn start(config: PartitionConfig) -> std::io::Result<Arc<Self>> {
        let shared = Arc::new(Self::new(config)?);
        shared.listen();
        Ok(shared)
    }

    fn new(config: PartitionConfig) -> std::io::Result<Self> {
        let khz = tsc_khz();
        let mailboxes = (0..config.vcpus)
            .map(|_| LowBox::new(Mailbox::default()))
            .collect::<std::io::Result<_>>()?;
        Ok(Self {
            memory: config.memory,
            mailboxes,
            alarm: Alarm::new(config.vcpus),
            tsc_khz: khz,
            scale: Scale::for_khz(khz),
            clock: Mutex::new(ClockBase {
                host_tsc: host_tsc(),
                nanoseconds: 0,
            }),
            next_lowest: AtomicU32::new(0),
            arming: Mutex::new(()),
            clock_generation: AtomicU64::new(0),
            tsc_offset: Mutex::new(None),
        })
    }

    /// Has processor `id` told when the host TSC reaches `deadline`, at the
    /// latest; u64::MAX for never.
    pub(crate) fn set_alarm(self: &Arc<Self>, id: u32, deadline: u64) {
        self.alarm.set(self, id, deadline);
    }

    pub(crate) fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    /// Has every processor hear of code that changes under it.
    fn listen(self: &Arc<Self>) {
        for region in self.memory.regions() {
            let start = region.start.0;
            let machine = Arc::downgrade(self);
            region.pages.listen(Box::new(move |page| {
                if let Some(machine) = machine.upgrade() {
                    let physical = start + page as u64 * PAGE_SIZE;
                    machine
                        .mailboxes
                        .iter()
                        .for_each(|mailbox| mailbox.code_changed(physical));
                }
            }));
        }
    }

    /// What must happen before code of a page is read into the cache of
    /// processor `id`, which must have given up the page itself if the answer's
    /// second half is true. Returns the page's version.
    pub(crate) fn arm_code(&self, id: u32, place: &RamPlace<'_>, physical: u64) -> (u32, bool) {
        if self.mailboxes.len() == 1 {
            return place.pages.arm_code(place.page);
        }
        let own = self.mailbox(id);
        // Another processor may be waiting for this one.
        own.set_running(false);
        let armed = {
            let _arming = self.arming.lock().unwrap_or_else(PoisonError::into_inner);
            let armed = place.pages.arm_code(place.page);
            if armed.1 {
                self.revoke_writes(Some(id), Some(physical));
            }
            armed
        };
        own.set_running(true);
        armed
    }

    /// Makes every processor but `except` notice writes to a page, or to all,
    /// from here on.
    fn revoke_writes(&self, except: Option<u32>, physical: Option<u64>) {
        let tickets: Vec<(&Mailbox, u32)> = self
            .mailboxes
            .iter()
            .enumerate()
            .filter(|(id, _)| Some(*id as u32) != except)
            .map(|(_, mailbox)| (&**mailbox, mailbox.revoke(physical)))
            .collect();
        barrier_on_every_thread();
        for (mailbox, ticket) in tickets {
            let mut spins = 0;
            while !mailbox.is_revoked(ticket) {
                spins += 1;
                if spins % 256 == 0 {
                    std::thread::yield_now();
                }
                std::hint::spin_loop();
            }
        }
    }

    /// The TSC offset processor `id` shall have, which on its own would be
    /// `offset`. Processors are exported and imported one after the other, so
    /// their counters seem to differ by the time in between: the first that is
    /// imported decides, and the others follow unless they are more than a
    /// second away.
    pub(crate) fn agree_tsc(&self, id: u32, offset: u64) -> u64 {
        let second = u64::from(self.tsc_khz) * 1000;
        let mut machine = self
            .tsc_offset
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match *machine {
            Some((other, agreed))
                if other != id && (offset.wrapping_sub(agreed) as i64).unsigned_abs() < second =>
            {
                agreed
            }
            _ => {
                *machine = Some((id, offset));
                offset
            }
        }
    }

    /// How many processors the machine has.
    pub(crate) fn processors(&self) -> usize {
        self.mailboxes.len()
    }

    pub(crate) fn mailbox(&self, id: u32) -> &Mailbox {
        &self.mailboxes[id as usize]
    }

    /// kvmclock at a host TSC, with the pair it is computed from.
    pub(crate) fn clock_base(&self) -> (u64, u64) {
        let base = *self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        (base.host_tsc, base.nanoseconds)
    }

    pub(crate) fn kvmclock(&self, host_tsc: u64) -> u64 {
        let (tsc, nanoseconds) = self.clock_base();
        nanoseconds + self.scale.nanoseconds(host_tsc.saturating_sub(tsc))
    }

    fn send(&self, message: Message, skip: Option<u32>) {
        let addressed = |id: &u32| {
            Some(*id) != skip
                && self
                    .mailbox(*id)
                    .is_addressed(*id, message.destination, message.logical)
        };
        let all = 0..self.mailboxes.len() as u32;
        if message.mode == mode::LOWEST {
            // Any of them will do: take turns.
            let targets: Vec<u32> = all.filter(addressed).collect();
            if let Some(turn) = (self.next_lowest.fetch_add(1, Ordering::Relaxed) as usize)
                .checked_rem(targets.len())
            {
                self.deliver(targets[turn], message);
            }
            return;
        }
        all.filter(addressed)
            .for_each(|id| self.deliver(id, message));
    }

    fn deliver(&self, id: u32, message: Message) {
        let mailbox = self.mailbox(id);
        match message.mode {
            mode::FIXED | mode::LOWEST | mode::EXTINT => {
                mailbox.interrupt(message.vector, message.level);
            }
            mode::NMI => mailbox.raise(attention::NMI),
            mode::INIT => mailbox.raise(attention::INIT),
            mode::STARTUP => mailbox.startup(message.vector),
            _ => {}
        }
    }

    /// Sends what processor `from` wrote to its interrupt command register.
    pub(crate) fn send_ipi(&self, from: u32, icr: u64, x2apic: bool) {
        let level_assert = icr >> 14 & 1 != 0;
        let message = Message {
            vector: icr as u8,
            mode: (icr >> 8 & 7) as u8,
            level: false,
            destination: if x2apic {
                (icr >> 32) as u32
            } else {
                (icr >> 56) as u32
            },
            logical: icr >> 11 & 1 != 0,
        };
        // INIT level de-assert does nothing on processors of this century.
        if message.mode == mode::INIT && !level_assert && icr >> 15 & 1 != 0 {
            return;
        }
        match icr >> 18 & 3 {
            0 => self.send(message, None),
            1 => self.deliver(from, message),
            shorthand => {
                let everyone = 0..self.mailboxes.len() as u32;
                for id in everyone.filter(|id| shorthand == 2 || *id != from) {
                    self.deliver(id, message);
                }
            }
        }
    }

    fn signal_msi(&self, msi: Msi) {
        // FEEx_xxxxH is where local APICs listen.
        if msi.address & 0xfff0_0000 != 0xfee0_0000 {
            return;
        }
        let high = (msi.address >> 40 & 0xff_ffff) as u32;
        self.send(
            Message {
                vector: msi.data as u8,
                mode: (msi.data >> 8 & 7) as u8,
                level: msi.data >> 15 & 1 != 0,
                destination: (msi.address >> 12 & 0xff) as u32 | high << 8,
                logical: msi.address >> 2 & 1 != 0,
            },
            None,
        );
    }
}

/// A machine on the software engine.
pub(crate) struct SoftPartition {
    shared: Arc<Shared>,
}

impl SoftPartition {
    pub(crate) fn new(config: PartitionConfig) -> std::io::Result<Self> {
        Ok(Self {
            shared: Shared::start(config)?,
        })
    }
}

impl Partition for SoftPartition {
    fn kind(&self) -> EngineKind {
        EngineKind::Soft
    }

    fn memory(&self) -> &GuestMemory {
        &self.shared.memory
    }

    fn create_vcpu(&self, id: VcpuId, cpuid: CpuidTable) -> Result<Box<dyn Vcpu>, AccelError> {
        if id.0 as usize >= self.shared.mailboxes.len() {
            return Err(AccelError::Unsupported(format!(
                "processor {id} was asked for; this machine was made for {}",
                self.shared.mailboxes.len()
            )));
        }
        let state = VcpuState::power_on(id.0, cpuid.get(1, 0).eax);
        Ok(Box::new(SoftVcpu::new(
            id,
            cpuid,
            state,
            self.shared.clone(),
        )?))
    }

    fn signal_msi(&self, msi: Msi) -> Result<(), AccelError> {
        self.shared.signal_msi(msi);
        Ok(())
    }

    /// Every EOI of a level-triggered interrupt exits; nothing to prepare.
    fn set_level_triggered_pins(&self, _pins: &[Option<Msi>]) -> Result<(), AccelError> {
        Ok(())
    }

    fn tsc_khz(&self) -> u32 {
        self.shared.tsc_khz
    }

    fn export_clock(&self) -> Result<ClockState, AccelError> {
        Ok(ClockState {
            kvmclock_ns: self.shared.kvmclock(host_tsc()),
            realtime_ns: realtime(),
        })
    }

    fn import_clock(&self, clock: &ClockState) -> Result<(), AccelError> {
        let base = ClockBase {
            host_tsc: host_tsc(),
            nanoseconds: clock.kvmclock_ns,
        };
        *self
            .shared
            .clock
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = base;
        self.shared.clock_generation.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn dirty_log(&self) -> Option<&dyn DirtyLog> {
        Some(self)
    }
}

impl DirtyLog for SoftPartition {
    fn start(&self) -> Result<(), AccelError> {
        self.shared
            .memory
            .regions()
            .iter()
            .for_each(|region| region.pages.start_log());
        self.shared.revoke_writes(None, None);
        Ok(())
    }

    fn take(&self) -> Result<Vec<GuestAddress>, AccelError> {
        let pages = self.shared.memory.regions().iter().flat_map(|region| {
            let dirty = region.pages.take_log().into_iter();
            dirty.map(|page| GuestAddress(region.start.0 + page as u64 * PAGE_SIZE))
        });
        let pages: Vec<GuestAddress> = pages.collect();
        if !pages.is_empty() {
            self.shared.revoke_writes(None, None);
        }
        Ok(pages)
    }

    fn stop(&self) -> Result<(), AccelError> {
        self.shared
            .memory
            .regions()
            .iter()
            .for_each(|region| region.pages.stop_log());
        Ok(())
    }
}

/// The host's real-time clock, nanoseconds since 1970.
pub(crate) fn realtime() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos() as u64)
}

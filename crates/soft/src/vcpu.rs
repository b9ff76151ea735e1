//! The run loop of one virtual processor.
//!
//! [`SoftVcpu::run`] goes round: take what others put into the mailbox, fire
//! the timer, deliver one event if one can be delivered, then run blocks until
//! something needs attention. Exits and halts leave the round.

use std::sync::Arc;
use std::time::Duration;

use favo_accel::cpuid::CpuidTable;
use favo_accel::state::{
    Activity, InterruptShadow, PendingEvents, PendingException, PendingInterrupt, VcpuState,
};
use favo_accel::{AccelError, EventCounter, Vcpu, VcpuEntry, VcpuExit, VcpuId, VcpuKicker};

use crate::apic::base;
use crate::clock::host_tsc;
use crate::cpu::{Cpu, rflags};
use crate::interrupt::Source;
use crate::low::LowBox;
use crate::mailbox::attention;
use crate::partition::Shared;
use crate::trap::{Exception, Trap};

/// A halted processor watches its mailbox for this long before it sleeps.
const SPIN_TICKS_PER_KHZ: u64 = 20;

/// One processor of a machine on the software engine.
pub(crate) struct SoftVcpu {
    id: VcpuId,
    cpu: LowBox<Cpu>,
    shared: Arc<Shared>,
    activity: Activity,
    nmi_pending: bool,
    sipi_vector: Option<u8>,
    init_pending: bool,
    /// Events imported with a state whose delivery had not finished.
    imported: PendingEvents,
    /// A triple fault happened: only INIT or a new state end it.
    shut_down: bool,
    /// The last exit wants an answer.
    unanswered: Option<Answer>,
    clock_generation: u64,
}

/// What an exit wants when the next run begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// A value.
    Data,
    /// Nothing, but the instruction must hear that it happened.
    Done,
    /// A value for the local APIC was read or written: nothing.
    Nothing,
}

impl SoftVcpu {
    pub(crate) fn new(
        id: VcpuId,
        cpuid: CpuidTable,
        state: VcpuState,
        shared: Arc<Shared>,
    ) -> Result<Self, AccelError> {
        crate::native::initialize().map_err(|error| AccelError::Unsupported(error.to_string()))?;
        let cpu = Cpu::new(id.0, cpuid, shared.clone()).map_err(crate::low_memory)?;
        let mut vcpu = Self {
            id,
            cpu,
            shared,
            activity: Activity::Running,
            nmi_pending: false,
            sipi_vector: None,
            init_pending: false,
            imported: PendingEvents::default(),
            shut_down: false,
            unanswered: None,
            clock_generation: 0,
        };
        vcpu.load(&state);
        Ok(vcpu)
    }

    fn load(&mut self, state: &VcpuState) {
        self.cpu.load(state);
        self.cpu
            .apic
            .load(&state.local_apic, state.msrs.apic_base, host_tsc());
        self.cpu.arm_deadline();
        self.cpu.publish_apic();
        self.activity = state.activity;
        self.nmi_pending = state.events.nmi_pending;
        self.sipi_vector = state.events.sipi_vector;
        self.init_pending = state.events.init_pending;
        self.imported = state.events;
        self.shut_down = false;
        self.unanswered = None;
        self.cpu.write_system_time();
    }

    /// Takes what others put into the mailbox. True if somebody wants `run`
    /// to return.
    fn collect(&mut self) -> bool {
        let mailbox = self.shared.mailbox(self.id.0);
        let raised = mailbox.take(!attention::CACHES);
        if raised & attention::INTERRUPT != 0 {
            let apic = &mut self.cpu.apic;
            mailbox.take_interrupts(|vector, level| apic.accept(vector, level));
        }
        self.nmi_pending |= raised & attention::NMI != 0;
        self.init_pending |= raised & attention::INIT != 0;
        if raised & attention::STARTUP != 0 {
            self.sipi_vector = Some(mailbox.startup_vector());
        }
        raised & attention::KICK != 0
    }

    /// INIT and start-up IPIs (SDM vol. 3, 9.4).
    fn reset_if_asked(&mut self) {
        if std::mem::take(&mut self.init_pending) {
            let bootstrap = self.cpu.msrs.apic_base & base::BOOTSTRAP != 0;
            let mut state = VcpuState::power_on(self.id.0, self.cpu.cpuid.get(1, 0).eax);
            let mut kept = state.clone();
            self.cpu.save(&mut kept);
            // INIT leaves alone what RESET does not: the TSC, XCR0, the x87
            // and SSE registers, the memory type ranges, and the APIC's base
            // and id.
            state.fpu = kept.fpu;
            state.control.xcr0 = kept.control.xcr0;
            state.msrs.tsc = kept.msrs.tsc;
            state.msrs.tsc_adjust = kept.msrs.tsc_adjust;
            state.msrs.mtrr = kept.msrs.mtrr;
            state.msrs.apic_base = kept.msrs.apic_base;
            let x2apic = kept.msrs.apic_base & base::X2APIC != 0;
            if x2apic {
                state.local_apic.id = self.id.0;
                state.local_apic.ldr = (self.id.0 >> 4) << 16 | 1 << (self.id.0 & 15);
            }
            state.activity = if bootstrap {
                Activity::Running
            } else {
                Activity::WaitForSipi
            };
            let sipi = self.sipi_vector;
            self.load(&state);
            self.sipi_vector = sipi;
        }
        if let Some(vector) = self.sipi_vector.take()
            && self.activity == Activity::WaitForSipi
        {
            let cs = &mut self.cpu.segments[1];
            cs.selector = u16::from(vector) << 8;
            cs.base = u64::from(vector) << 12;
            self.cpu.rip = 0;
            self.cpu.update_mode();
            self.activity = Activity::Running;
        }
    }

    /// Delivers what can be delivered now. An error is a triple fault.
    fn deliver_events(&mut self) -> Result<(), Trap> {
        self.finish_imported()?;
        if self.cpu.shadow != InterruptShadow::None {
            return Ok(());
        }
        if self.nmi_pending && !self.cpu.nmi_masked {
            self.nmi_pending = false;
            self.cpu.nmi_masked = true;
            self.activity = Activity::Running;
            return self.cpu.deliver_interrupt(2, Source::External);
        }
        if self.cpu.system_flags & rflags::IF != 0
            && let Some(vector) = self.cpu.apic.deliverable()
        {
            self.cpu.apic.acknowledge(vector);
            self.activity = Activity::Running;
            return self.cpu.deliver_interrupt(vector, Source::External);
        }
        Ok(())
    }

    /// Delivers events that came with an imported state.
    fn finish_imported(&mut self) -> Result<(), Trap> {
        if let Some(PendingException { vector, error_code }) = self.imported.exception.take() {
            return self.cpu.deliver_again(vector, error_code);
        }
        if let Some(PendingInterrupt { vector, software }) = self.imported.interrupt.take() {
            let source = if software {
                Source::Software
            } else {
                Source::External
            };
            self.activity = Activity::Running;
            return self.cpu.deliver_interrupt(vector, source);
        }
        Ok(())
    }

    /// Sleeps while the processor is halted or not started.
    fn wait(&mut self) {
        let mailbox = self.shared.mailbox(self.id.0);
        let expires = match self.activity {
            Activity::Halted => self.cpu.apic.expires(),
            _ => None,
        };
        let khz = u64::from(self.shared.tsc_khz);
        let spin_until = host_tsc() + khz * SPIN_TICKS_PER_KHZ / 1000;
        loop {
            if mailbox.wants_caller() {
                return;
            }
            let now = host_tsc();
            if expires.is_some_and(|expires| now >= expires) {
                return;
            }
            if now >= spin_until {
                break;
            }
            std::hint::spin_loop();
        }
        let timeout = expires.map(|expires| {
            let left = expires.saturating_sub(host_tsc());
            Duration::from_nanos(self.shared.scale.nanoseconds(left))
        });
        mailbox.sleep(timeout);
    }

    /// One round; `Some` ends the run.
    fn round(&mut self) -> Result<Option<VcpuExit>, AccelError> {
        let kicked = self.collect();
        self.reset_if_asked();
        if kicked {
            return Ok(Some(VcpuExit::Interrupted));
        }
        if self.shut_down {
            return Ok(Some(VcpuExit::Shutdown));
        }
        self.cpu.apic.advance(host_tsc());
        self.follow_clock();
        if !matches!(self.activity, Activity::WaitForInit | Activity::WaitForSipi)
            && self.cpu.log.is_empty()
            && let Err(trap) = self.deliver_events()
        {
            return self.handle(trap);
        }
        if self.activity != Activity::Running {
            let began = host_tsc();
            self.wait();
            self.cpu.counters.halted += host_tsc().saturating_sub(began);
            return Ok(None);
        }
        let trap = self.cpu.run(None);
        self.handle(trap)
    }

    /// Rewrites the guest's clock page after the machine's clock was set.
    fn follow_clock(&mut self) {
        let generation = self
            .shared
            .clock_generation
            .load(std::sync::atomic::Ordering::Relaxed);
        if generation != self.clock_generation {
            self.clock_generation = generation;
            self.cpu.write_system_time();
        }
    }

    fn handle(&mut self, trap: Trap) -> Result<Option<VcpuExit>, AccelError> {
        match trap {
            Trap::EndBlock => {
                if let Some(vector) = self.cpu.end_of_level.take() {
                    self.unanswered = Some(Answer::Nothing);
                    return Ok(Some(VcpuExit::IoapicEoi { vector }));
                }
                Ok(None)
            }
            Trap::Halt => {
                self.activity = Activity::Halted;
                Ok(None)
            }
            Trap::Exception(exception) => match self.cpu.deliver_exception(exception) {
                Ok(()) => Ok(None),
                Err(trap) => self.handle(trap),
            },
            Trap::TripleFault => {
                tracing::debug!(rip = self.cpu.rip, "triple fault");
                self.shut_down = true;
                Ok(Some(VcpuExit::Shutdown))
            }
            Trap::Exit => Ok(self.leave()),
        }
    }

    /// An access outside RAM: the local APIC's page is ours, the rest is the
    /// caller's.
    fn leave(&mut self) -> Option<VcpuExit> {
        let exit = self.cpu.exit;
        if let Some(answer) = self.access_apic(exit) {
            self.cpu.log.answer(answer);
            return self.cpu.end_of_level.take().map(|vector| {
                self.unanswered = Some(Answer::Nothing);
                VcpuExit::IoapicEoi { vector }
            });
        }
        self.unanswered = Some(match exit {
            VcpuExit::PortRead { .. } | VcpuExit::MmioRead { .. } => Answer::Data,
            _ => Answer::Done,
        });
        Some(exit)
    }

    /// Answers an access to the xAPIC's page.
    fn access_apic(&mut self, exit: VcpuExit) -> Option<u64> {
        let (address, write) = match exit {
            VcpuExit::MmioRead { address, .. } => (address.0, None),
            VcpuExit::MmioWrite { address, value, .. } => (address.0, Some(value)),
            _ => return None,
        };
        let page = self.cpu.msrs.apic_base & base::ADDRESS;
        if address & !0xfff != page || !self.cpu.apic.is_enabled() || self.cpu.apic.is_x2apic() {
            return None;
        }
        let (offset, now) = (address - page, host_tsc());
        Some(match write {
            None => self.cpu.apic.read_xapic(offset, now).into(),
            Some(value) => {
                let effect = self.cpu.apic.write_xapic(offset, value as u32, now);
                self.cpu.apply(effect);
                self.cpu.publish_apic();
                0
            }
        })
    }
}

impl Vcpu for SoftVcpu {
    fn id(&self) -> VcpuId {
        self.id
    }

    fn run(&mut self, entry: VcpuEntry) -> Result<VcpuExit, AccelError> {
        match (self.unanswered.take(), entry) {
            (Some(Answer::Data), VcpuEntry::Data(value)) => self.cpu.log.answer(value),
            (Some(Answer::Data), VcpuEntry::Resume) => {
                self.unanswered = Some(Answer::Data);
                return Err(AccelError::InvalidState(
                    "the last exit was a read and its answer is missing".to_owned(),
                ));
            }
            (Some(Answer::Done), _) => self.cpu.log.answer(0),
            (Some(Answer::Nothing) | None, _) => {}
        }
        loop {
            if let Some(exit) = self.round()? {
                return Ok(exit);
            }
        }
    }

    fn kicker(&self) -> Arc<dyn VcpuKicker> {
        Arc::new(Kicker {
            shared: self.shared.clone(),
            id: self.id.0,
        })
    }

    fn export_state(&mut self) -> Result<VcpuState, AccelError> {
        if self.unanswered == Some(Answer::Data) {
            return Err(AccelError::InvalidState(
                "the last exit was a read and its answer is missing".to_owned(),
            ));
        }
        if self.unanswered.take() == Some(Answer::Done) {
            self.cpu.log.answer(0);
        }
        self.finish_instruction()?;
        let kicked = self.collect();
        self.reset_if_asked();
        if kicked {
            self.shared.mailbox(self.id.0).raise(attention::KICK);
        }
        let mut state = VcpuState::power_on(self.id.0, 0);
        self.cpu.save(&mut state);
        state.local_apic = self.cpu.apic.save(host_tsc());
        state.activity = self.activity;
        state.events.nmi_pending = self.nmi_pending;
        state.events.sipi_vector = self.sipi_vector;
        state.events.init_pending = self.init_pending;
        state.events.exception = self.imported.exception;
        state.events.interrupt = self.imported.interrupt;
        Ok(state)
    }

    fn import_state(&mut self, state: &VcpuState) -> Result<(), AccelError> {
        crate::state::check(state, &self.cpu.cpuid)?;
        self.load(state);
        Ok(())
    }

    fn counters(&self) -> Vec<EventCounter> {
        let mut list = self.cpu.counters.list();
        list.push(EventCounter {
            name: "code-bytes",
            detail: None,
            count: self.cpu.translator.code_bytes() as u64,
        });
        list
    }
}

impl SoftVcpu {
    /// Completes an instruction whose last access was just answered, so that
    /// the state is one between instructions.
    fn finish_instruction(&mut self) -> Result<(), AccelError> {
        if self.cpu.log.is_empty() {
            return Ok(());
        }
        match self.cpu.run_one() {
            Ok(()) | Err(Trap::EndBlock) => Ok(()),
            Err(Trap::Exit) => {
                self.cpu.log.rewind();
                Err(AccelError::InvalidState(
                    "an instruction has more device accesses to make; run the processor once more"
                        .to_owned(),
                ))
            }
            Err(trap) => {
                self.handle(trap)?;
                Ok(())
            }
        }
    }
}

struct Kicker {
    shared: Arc<Shared>,
    id: u32,
}

impl VcpuKicker for Kicker {
    fn kick(&self) {
        self.shared.mailbox(self.id).raise(attention::KICK);
    }
}

impl Cpu {
    /// Delivers an exception that was on its way when the state was saved.
    fn deliver_again(&mut self, vector: u8, error_code: Option<u32>) -> Result<(), Trap> {
        let code = error_code.unwrap_or(0);
        let selector = code as u16;
        let exception = match vector {
            0 => Exception::DivideError,
            1 => Exception::Debug(0),
            3 => Exception::Breakpoint,
            4 => Exception::Overflow,
            5 => Exception::BoundRange,
            7 => Exception::DeviceNotAvailable,
            8 => Exception::DoubleFault,
            10 => Exception::InvalidTss(selector),
            11 => Exception::SegmentNotPresent(selector),
            12 => Exception::Stack(selector),
            13 => Exception::GeneralProtection(selector),
            14 => {
                self.fault_address = self.cr2;
                Exception::PageFault { error_code: code }
            }
            16 => Exception::X87FloatingPoint,
            17 => Exception::AlignmentCheck,
            19 => Exception::SimdFloatingPoint,
            _ => Exception::InvalidOpcode,
        };
        self.deliver_exception(exception)
    }
}

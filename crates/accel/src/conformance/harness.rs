//! Runs processors in threads of their own, each call with a deadline.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::guest::{DONE, Guest, IDLE, REPORT, SYNC};
use super::{DEADLINE, Failure};
use crate::cpuid::CpuidTable;
use crate::engine::{
    Accelerator, Partition, PartitionConfig, Vcpu, VcpuEntry, VcpuExit, VcpuId, VcpuKicker,
};
use crate::state::VcpuState;

/// How long a kick may take to work before the engine counts as stuck.
const KICK_PATIENCE: Duration = Duration::from_secs(5);

/// No guest reports this often; one that faults in a loop does.
const MANY_REPORTS: usize = 1000;

type Job = Box<dyn FnOnce(&mut dyn Vcpu) + Send>;

/// One processor, owned by its thread. A thread that never comes back is left
/// behind.
pub(super) struct Cpu {
    jobs: Sender<Job>,
    pub(super) kicker: Arc<dyn VcpuKicker>,
}

/// A call that is under way.
pub(super) struct Call<R> {
    result: Receiver<R>,
    kicker: Arc<dyn VcpuKicker>,
}

impl<R> Call<R> {
    /// Its result, if it comes in time; otherwise the processor is kicked and
    /// the failure says whether that helped.
    pub(super) fn wait(self, deadline: Duration) -> Result<R, Failure> {
        match self.result.recv_timeout(deadline) {
            Ok(result) => Ok(result),
            Err(RecvTimeoutError::Disconnected) => Err(Failure::Hang("the engine panicked".into())),
            Err(RecvTimeoutError::Timeout) => {
                self.kicker.kick();
                let text = match self.result.recv_timeout(KICK_PATIENCE) {
                    Ok(_) => "the guest did not exit in time",
                    Err(_) => "the guest did not exit in time, nor after a kick",
                };
                Err(Failure::Hang(text.into()))
            }
        }
    }

    /// Its result if it comes within `patience`; the call goes on if not.
    pub(super) fn poll(&self, patience: Duration) -> Option<R> {
        self.result.recv_timeout(patience).ok()
    }
}

impl Cpu {
    fn spawn(mut vcpu: Box<dyn Vcpu>) -> Self {
        let kicker = vcpu.kicker();
        let (jobs, received) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for job in received {
                job(vcpu.as_mut());
            }
        });
        Self { jobs, kicker }
    }

    /// Begins `job` on the processor's thread.
    pub(super) fn begin<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut dyn Vcpu) -> R + Send + 'static,
    ) -> Call<R> {
        let (sender, result) = mpsc::channel();
        let job: Job = Box::new(move |vcpu| {
            let _ = sender.send(job(vcpu));
        });
        // A thread that panicked shows as a disconnected result.
        let _ = self.jobs.send(job);
        Call {
            result,
            kicker: self.kicker.clone(),
        }
    }

    /// Runs `job` on the processor's thread.
    pub(super) fn call<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut dyn Vcpu) -> R + Send + 'static,
    ) -> Result<R, Failure> {
        self.begin(job).wait(DEADLINE)
    }

    pub(super) fn run(&self, entry: VcpuEntry) -> Result<VcpuExit, Failure> {
        Ok(self.call(move |vcpu| vcpu.run(entry))??)
    }

    pub(super) fn begin_run(
        &self,
        entry: VcpuEntry,
    ) -> Call<Result<VcpuExit, crate::engine::AccelError>> {
        self.begin(move |vcpu| vcpu.run(entry))
    }

    pub(super) fn export(&self) -> Result<VcpuState, Failure> {
        Ok(self.call(|vcpu| vcpu.export_state())??)
    }

    pub(super) fn import(&self, state: &VcpuState) -> Result<(), Failure> {
        let state = state.clone();
        Ok(self.call(move |vcpu| vcpu.import_state(&state))??)
    }

    /// Kicks, runs on until the kick returns, and exports. The guest must not
    /// be at an access.
    pub(super) fn stop_and_export(&self) -> Result<VcpuState, Failure> {
        self.kicker.kick();
        match self.run(VcpuEntry::Resume)? {
            VcpuExit::Interrupted => self.export(),
            other => Err(Failure::mismatch(
                "the exit after a kick",
                VcpuExit::Interrupted,
                other,
            )),
        }
    }
}

/// What a case answers to an exit of its guest.
pub(super) enum Answer {
    /// Goes on.
    Entry(VcpuEntry),
    /// Ends [`Machine::run_with`].
    Stop,
}

pub(super) const RESUME: Answer = Answer::Entry(VcpuEntry::Resume);

pub(super) fn data(value: u64) -> Answer {
    Answer::Entry(VcpuEntry::Data(value))
}

/// A guest on an engine.
pub(super) struct Machine {
    pub(super) partition: Arc<dyn Partition>,
    pub(super) cpus: Vec<Cpu>,
    /// What the guest wrote to `REPORT` so far.
    pub(super) reports: Vec<u32>,
}

impl Machine {
    /// A machine with one processor, at the guest's start.
    pub(super) fn new(accelerator: &dyn Accelerator, guest: &Guest) -> Result<Self, Failure> {
        let machine = Self::with_processors(accelerator, guest, 1)?;
        machine.cpus[0].import(&guest.state)?;
        Ok(machine)
    }

    /// A machine with several processors, all in their power-on state.
    pub(super) fn with_processors(
        accelerator: &dyn Accelerator,
        guest: &Guest,
        count: u32,
    ) -> Result<Self, Failure> {
        let partition = accelerator.create_partition(PartitionConfig {
            vcpus: count,
            memory: guest.memory.clone(),
        })?;
        let mut cpus = Vec::new();
        for id in 0..count {
            let cpuid = cpuid_of(accelerator, id, count);
            cpus.push(Cpu::spawn(partition.create_vcpu(VcpuId(id), cpuid)?));
        }
        Ok(Self {
            partition,
            cpus,
            reports: Vec::new(),
        })
    }

    /// Runs processor 0 to the guest's end and compares what it reported.
    pub(super) fn expect_reports(&mut self, expected: &[u32]) -> Result<(), Failure> {
        self.run_with(|_, exit| Err(unexpected(exit)))?;
        self.compare_reports(expected)
    }

    pub(super) fn compare_reports(&self, expected: &[u32]) -> Result<(), Failure> {
        super::expect("what the guest reported", expected, &self.reports[..])
    }

    /// Runs processor 0 until the guest's end or until `answer` stops it.
    /// Reports are collected; every other exit goes to `answer`, `SYNC`
    /// included.
    pub(super) fn run_with(
        &mut self,
        mut answer: impl FnMut(&dyn Partition, VcpuExit) -> Result<Answer, Failure>,
    ) -> Result<(), Failure> {
        let begin = Instant::now();
        let mut entry = VcpuEntry::Resume;
        loop {
            if begin.elapsed() > DEADLINE || self.reports.len() > MANY_REPORTS {
                return Err(Failure::Hang(format!(
                    "the guest is busy without an end; it reported {:x?}",
                    self.reports.iter().take(64).collect::<Vec<_>>()
                )));
            }
            let exit = self.cpus[0].run(entry).map_err(|failure| match failure {
                Failure::Hang(text) => Failure::Hang(format!(
                    "{text}; it had reported {:x?}",
                    self.reports.iter().take(64).collect::<Vec<_>>()
                )),
                other => other,
            })?;
            entry = VcpuEntry::Resume;
            match exit {
                VcpuExit::PortWrite {
                    port: REPORT,
                    value,
                    ..
                } => self.reports.push(value),
                VcpuExit::PortWrite { port: IDLE, .. } => {}
                VcpuExit::PortWrite { port: DONE, .. } => return Ok(()),
                exit => match answer(&*self.partition, exit)? {
                    Answer::Entry(next) => entry = next,
                    Answer::Stop => return Ok(()),
                },
            }
        }
    }

    /// Runs processor 0 up to its next `SYNC` and returns the value.
    pub(super) fn run_to_sync(&mut self) -> Result<u32, Failure> {
        let mut reached = None;
        self.run_with(|_, exit| match exit {
            VcpuExit::PortWrite {
                port: SYNC, value, ..
            } => {
                reached = Some(value);
                Ok(Answer::Stop)
            }
            other => Err(unexpected(other)),
        })?;
        reached.ok_or_else(|| Failure::mismatch("the guest", "a sync", self.reports.clone()))
    }
}

pub(super) fn unexpected(exit: VcpuExit) -> Failure {
    Failure::mismatch("an exit of the guest", "its end", exit)
}

/// Everything the engine offers, with the ids of processor `id`.
pub(super) fn cpuid_of(accelerator: &dyn Accelerator, id: u32, count: u32) -> CpuidTable {
    let mut cpuid = accelerator.supported_cpuid().clone();
    cpuid.update(1, None, |leaf| {
        leaf.ebx = leaf.ebx & 0xffff | count << 16 | id << 24;
    });
    for index in 0..2 {
        cpuid.update(0xb, Some(index), |leaf| leaf.edx = id);
    }
    cpuid
}

/// A feature bit of CPUID.
#[derive(Clone, Copy)]
pub(super) struct Feature {
    pub(super) name: &'static str,
    pub(super) function: u32,
    pub(super) register: Register,
    pub(super) bit: u32,
}

#[derive(Clone, Copy)]
pub(super) enum Register {
    Ebx,
    Ecx,
    Edx,
}

impl Feature {
    pub(super) fn is_offered(self, accelerator: &dyn Accelerator) -> bool {
        let leaf = accelerator.supported_cpuid().get(self.function, 0);
        let register = match self.register {
            Register::Ebx => leaf.ebx,
            Register::Ecx => leaf.ecx,
            Register::Edx => leaf.edx,
        };
        register >> self.bit & 1 != 0
    }

    /// Skips the case if the engine does not offer the feature here.
    pub(super) fn require(self, accelerator: &dyn Accelerator) -> Result<(), Failure> {
        if self.is_offered(accelerator) {
            Ok(())
        } else {
            Err(Failure::Skipped(format!(
                "the engine does not offer {} in CPUID",
                self.name
            )))
        }
    }
}

macro_rules! features {
    ($($constant:ident = $name:literal $function:literal $register:ident $bit:literal;)*) => {
        $(pub(super) const $constant: Feature = Feature {
            name: $name,
            function: $function,
            register: Register::$register,
            bit: $bit,
        };)*
    };
}

features! {
    PCID = "PCID" 1 Ecx 17;
    X2APIC = "x2APIC" 1 Ecx 21;
    TSC_DEADLINE = "the TSC deadline timer" 1 Ecx 24;
    XSAVE = "XSAVE" 1 Ecx 26;
    AVX = "AVX" 1 Ecx 28;
    SMEP = "SMEP" 7 Ebx 7;
    SMAP = "SMAP" 7 Ebx 20;
    NX = "NX" 0x8000_0001 Edx 20;
    GIGABYTE_PAGES = "1 GiB pages" 0x8000_0001 Edx 26;
}

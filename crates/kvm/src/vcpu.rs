//! One virtual processor on KVM: the run loop and its exits.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use favo_accel::cpuid::CpuidTable;
use favo_accel::state::VcpuState;
use favo_accel::{AccelError, AccessSize, Vcpu, VcpuEntry, VcpuExit, VcpuId, VcpuKicker};
use favo_types::GuestAddress;
use kvm_ioctls::VcpuFd;

use crate::error::host;
use crate::exits::{self, RawExit};
use crate::kick::Kicker;
use crate::partition::PartitionInner;
use crate::state;

pub(crate) struct KvmVcpu {
    pub(crate) fd: VcpuFd,
    pub(crate) id: VcpuId,
    pub(crate) partition: Arc<PartitionInner>,
    kicker: Arc<Kicker>,
    /// Size of the page shared with the kernel and what follows it.
    page_bytes: usize,
    /// The access KVM exited for, until all of it is done.
    access: Option<Access>,
    /// KVM finishes the instruction of the last exit on its next run only.
    unfinished: bool,
    /// An exit KVM made while it was only asked to finish an instruction.
    queued: Option<RawExit>,
    shut_down: bool,
}

/// An access that reaches the caller in one piece or several: KVM reports
/// string I/O many elements at a time, and memory in lengths that are no
/// [`AccessSize`] where an access crosses a page.
#[derive(Clone, Copy, Debug)]
struct Access {
    target: Target,
    write: bool,
    /// Elements of a port access, bytes of a memory access.
    total: usize,
    done: usize,
    /// Memory only: what is written, or what was read so far.
    data: [u8; 8],
    /// The piece whose answer is awaited.
    asked: Option<AccessSize>,
}

#[derive(Clone, Copy, Debug)]
enum Target {
    Port { port: u16, size: AccessSize },
    Mmio { address: u64 },
}

impl KvmVcpu {
    pub(crate) fn new(
        partition: Arc<PartitionInner>,
        id: VcpuId,
        cpuid: &CpuidTable,
    ) -> Result<Self, AccelError> {
        let kvm_cpuid = crate::cpuid::to_kvm(cpuid)?;
        let fd = partition
            .vm
            .create_vcpu(id.0.into())
            .map_err(host("creating a processor (KVM_CREATE_VCPU)"))?;
        fd.set_cpuid2(&kvm_cpuid)
            .map_err(host("setting a processor's CPUID (KVM_SET_CPUID2)"))?;
        let kicker = Kicker::new(fd.as_raw_fd())?;
        Ok(Self {
            page_bytes: partition.vm.run_size(),
            fd,
            id,
            partition,
            kicker,
            access: None,
            unfinished: false,
            queued: None,
            shut_down: false,
        })
    }

    /// Takes the caller's answer to the last exit.
    fn answer(&mut self, entry: VcpuEntry) -> Result<(), AccelError> {
        let asked = self.access.as_mut().and_then(|access| {
            let size = access.asked.take()?;
            Some((access, size))
        });
        match (asked, entry) {
            (None, VcpuEntry::Resume) => Ok(()),
            (None, VcpuEntry::Data(_)) => Err(AccelError::InvalidState(
                "an answer was given to an exit that asked for none".into(),
            )),
            (Some((access, size)), VcpuEntry::Resume) => {
                access.asked = Some(size);
                Err(AccelError::InvalidState(
                    "the last exit was a read and must be answered with its data".into(),
                ))
            }
            (Some((access, size)), VcpuEntry::Data(value)) => {
                match access.target {
                    Target::Port { .. } => {
                        let value = size.truncate(value) as u32;
                        let index = access.done;
                        access.done += 1;
                        exits::set_port_data(&mut self.fd, self.page_bytes, index, value);
                    }
                    Target::Mmio { .. } => {
                        let (begin, end) = (access.done, access.done + size.bytes());
                        access.data[begin..end]
                            .copy_from_slice(&value.to_le_bytes()[..size.bytes()]);
                        access.done = end;
                        exits::set_mmio_data(&mut self.fd, access.data);
                    }
                }
                Ok(())
            }
        }
    }

    /// The next piece of the access at hand.
    fn next_piece(&mut self) -> Option<VcpuExit> {
        let access = self.access.as_mut()?;
        let rest = access.total - access.done;
        if rest == 0 {
            self.access = None;
            return None;
        }
        match (access.target, access.write) {
            (Target::Port { port, size }, false) => {
                access.asked = Some(size);
                Some(VcpuExit::PortRead { port, size })
            }
            (Target::Port { port, size }, true) => {
                let index = access.done;
                access.done += 1;
                let value = exits::port_data(&mut self.fd, self.page_bytes, index);
                Some(VcpuExit::PortWrite { port, size, value })
            }
            (Target::Mmio { address }, write) => {
                let size = [
                    AccessSize::Qword,
                    AccessSize::Dword,
                    AccessSize::Word,
                    AccessSize::Byte,
                ]
                .into_iter()
                .find(|size| size.bytes() <= rest)?;
                let address = GuestAddress(address.wrapping_add(access.done as u64));
                if !write {
                    access.asked = Some(size);
                    return Some(VcpuExit::MmioRead { address, size });
                }
                let mut value = [0; 8];
                value[..size.bytes()]
                    .copy_from_slice(&access.data[access.done..access.done + size.bytes()]);
                access.done += size.bytes();
                Some(VcpuExit::MmioWrite {
                    address,
                    size,
                    value: u64::from_le_bytes(value),
                })
            }
        }
    }

    fn run_until_exit(&mut self) -> Result<VcpuExit, AccelError> {
        loop {
            let raw = match self.queued.take() {
                Some(raw) => raw,
                None => match exits::run(&mut self.fd) {
                    Ok(raw) => raw,
                    Err(error) if error.errno() == libc::EINTR => {
                        // In this order: see `kick`.
                        self.fd.set_kvm_immediate_exit(0);
                        self.unfinished = false;
                        if self.kicker.take() {
                            return Ok(VcpuExit::Interrupted);
                        }
                        continue;
                    }
                    // The processor was waiting and something woke it.
                    Err(error) if error.errno() == libc::EAGAIN => continue,
                    Err(error) => {
                        return Err(host("running a processor (KVM_RUN)")(error));
                    }
                },
            };
            if let Some(exit) = self.accept(raw)? {
                return Ok(exit);
            }
        }
    }

    /// Turns KVM's exit into the caller's, or the first piece of it.
    fn accept(&mut self, raw: RawExit) -> Result<Option<VcpuExit>, AccelError> {
        self.unfinished = true;
        match raw {
            RawExit::Port {
                port,
                write,
                size,
                count,
            } => {
                let Some(size) = AccessSize::from_bytes(size) else {
                    return Err(self.gave_up(format!("a port access of {size} bytes")));
                };
                self.access = Some(Access {
                    target: Target::Port { port, size },
                    write,
                    total: count,
                    done: 0,
                    data: [0; 8],
                    asked: None,
                });
                Ok(self.next_piece())
            }
            RawExit::MmioRead { address, length } => {
                self.begin_mmio(address, length, None)?;
                Ok(self.next_piece())
            }
            RawExit::MmioWrite {
                address,
                length,
                data,
            } => {
                self.begin_mmio(address, length, Some(data))?;
                Ok(self.next_piece())
            }
            RawExit::IoapicEoi { vector } => Ok(Some(VcpuExit::IoapicEoi { vector })),
            RawExit::Shutdown => {
                self.shut_down = true;
                Ok(Some(VcpuExit::Shutdown))
            }
            RawExit::InternalError { suberror } => {
                // KVM_INTERNAL_ERROR_EMULATION and its like.
                let what = match suberror {
                    1 => "an instruction it can't emulate".to_owned(),
                    3 => "an event during an event's delivery it can't unwind".to_owned(),
                    other => format!("internal error {other}"),
                };
                Err(self.gave_up(what))
            }
            RawExit::EntryFailed { reason } => Err(self.gave_up(format!(
                "the processor refused the guest's state ({reason:#x})"
            ))),
            RawExit::Unexpected { reason } => {
                Err(self.gave_up(format!("exit {reason}, which favo did not ask for")))
            }
        }
    }

    fn begin_mmio(
        &mut self,
        address: u64,
        length: usize,
        written: Option<[u8; 8]>,
    ) -> Result<(), AccelError> {
        if length > 8 {
            return Err(self.gave_up(format!("a memory access of {length} bytes")));
        }
        self.access = Some(Access {
            target: Target::Mmio { address },
            write: written.is_some(),
            total: length,
            done: 0,
            data: written.unwrap_or_default(),
            asked: None,
        });
        Ok(())
    }

    fn gave_up(&self, what: String) -> AccelError {
        let rip = self.fd.get_regs().map_or(0, |regs| regs.rip);
        AccelError::Host {
            operation: "running a processor (KVM_RUN)",
            source: io::Error::other(format!(
                "KVM gave up on processor {} at rip {rip:#x}: {what}",
                self.id
            )),
        }
    }

    /// Makes KVM finish the instruction of the last exit without running the
    /// guest any further. True if that was all; false if it led to a new exit.
    fn finish_instruction(&mut self) -> Result<bool, AccelError> {
        if self.queued.is_some() {
            return Ok(false);
        }
        if !self.unfinished {
            return Ok(true);
        }
        self.fd.set_kvm_immediate_exit(1);
        let outcome = exits::run(&mut self.fd);
        self.fd.set_kvm_immediate_exit(0);
        if self.kicker.is_kicked() {
            // It may have been this kick's flag that was just cleared.
            self.fd.set_kvm_immediate_exit(1);
        }
        match outcome {
            Ok(raw) => {
                self.queued = Some(raw);
                Ok(false)
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                self.unfinished = false;
                Ok(true)
            }
            Err(error) => Err(host("finishing an instruction (KVM_RUN)")(error)),
        }
    }

    /// Forgets the access at hand, whose state is about to be replaced.
    fn abandon_access(&mut self) -> Result<(), AccelError> {
        // A string instruction may have thousands of elements left.
        for _ in 0..1 << 16 {
            self.access = None;
            self.queued = None;
            if self.finish_instruction()? {
                self.shut_down = false;
                return Ok(());
            }
        }
        Err(AccelError::InvalidState(
            "the processor is inside an instruction that does not end".into(),
        ))
    }
}

impl Vcpu for KvmVcpu {
    fn id(&self) -> VcpuId {
        self.id
    }

    fn run(&mut self, entry: VcpuEntry) -> Result<VcpuExit, AccelError> {
        self.answer(entry)?;
        if let Some(exit) = self.next_piece() {
            return Ok(exit);
        }
        if self.shut_down {
            return Ok(VcpuExit::Shutdown);
        }
        self.kicker.enter();
        let result = self.run_until_exit();
        self.kicker.leave();
        result
    }

    fn kicker(&self) -> Arc<dyn VcpuKicker> {
        self.kicker.clone()
    }

    fn export_state(&mut self) -> Result<VcpuState, AccelError> {
        let unanswered = self.access.is_some_and(|access| access.done < access.total);
        if unanswered || !self.finish_instruction()? {
            return Err(AccelError::InvalidState(format!(
                "processor {} is inside an instruction; run it on until a kick returns",
                self.id
            )));
        }
        if self.shut_down {
            return Err(AccelError::InvalidState(format!(
                "processor {} has shut down and has no state to continue from",
                self.id
            )));
        }
        state::export(self)
    }

    fn import_state(&mut self, state: &VcpuState) -> Result<(), AccelError> {
        state.validate()?;
        self.abandon_access()?;
        // KVM checks again, piece by piece, against what this host can do: if
        // it refuses a late piece, the earlier ones are taken back.
        let before = state::export(self)?;
        state::import(self, state).map_err(|error| {
            let error = refusal(error);
            match state::import(self, &before) {
                Ok(()) => error,
                Err(_) => AccelError::InvalidState(format!(
                    "{error}; and the state before could not be put back"
                )),
            }
        })
    }
}

/// What KVM calls invalid while a state is loaded is the state's fault, not
/// the host's.
fn refusal(error: AccelError) -> AccelError {
    match error {
        AccelError::Host { operation, source } if source.raw_os_error() == Some(libc::EINVAL) => {
            AccelError::InvalidState(format!("this host's KVM refuses it in {operation}"))
        }
        other => other,
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        self.kicker.retire();
    }
}

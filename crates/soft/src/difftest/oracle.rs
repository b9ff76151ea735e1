//! Runs instructions on the host's CPU, from any state, and reports all of
//! what they did.
//!
//! A signal handler is the whole mechanism: a breakpoint enters it, it replaces
//! the interrupted state by the case's, and the return from the signal starts
//! the case. The case ends in another breakpoint or in a fault; the handler
//! then copies the state out and puts the first one back.
//!
//! The code under test can do to this process whatever its addresses allow.
//! The generator gives it only addresses of the test's own pages, addresses
//! where nothing is mapped, and non-canonical ones.

use std::cell::UnsafeCell;
use std::sync::{Mutex, MutexGuard, PoisonError};

use favo_accel::state::FpuState;

use super::{
    CODE, CODE_SIZE, DATA, DATA_SIZE, Fault, MARGIN, MachineState, READ_ONLY, READ_WRITE, START,
    surrounded,
};

/// How a case ended, as the signal frame tells.
#[derive(Clone, Copy, Debug, Default)]
struct Ending {
    vector: u64,
    error_code: u64,
    address: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Start,
    Running,
}

/// What the handler works on.
struct Shared {
    phase: Phase,
    state: MachineState,
    ending: Ending,
    registers: [i64; 23],
    extended: Vec<u8>,
}

struct Global(UnsafeCell<Option<Shared>>);

// SAFETY: accessed only by the holder of ORACLE and by the signal handler it
// triggers synchronously on its own thread.
unsafe impl Sync for Global {}

static SHARED: Global = Global(UnsafeCell::new(None));
static ORACLE: Mutex<()> = Mutex::new(());

/// The host's CPU as an oracle. One exists at a time: the addresses of code
/// and data are fixed.
pub struct Oracle {
    /// The writable view of the code pages.
    code: *mut u8,
    _only: MutexGuard<'static, ()>,
}

/// XSAVE area in a signal frame: offsets (SDM vol. 1, 13.4).
mod xsave {
    pub const MXCSR: usize = 24;
    pub const ST: usize = 32;
    pub const XMM: usize = 160;
    /// Linux: size of the frame's area, in the software-reserved bytes.
    pub const SIZE: usize = 464 + 16;
    pub const XSTATE_BV: usize = 512;
    pub const YMM_HIGH: usize = 576;
}

impl Oracle {
    /// Maps the pages, installs the handlers.
    pub fn new() -> std::io::Result<Self> {
        let only = ORACLE.lock().unwrap_or_else(PoisonError::into_inner);
        let code = map_code()?;
        map(DATA, DATA_SIZE, libc::PROT_NONE)?;
        for (start, end) in READ_WRITE.into_iter().chain([READ_ONLY]) {
            protect(start, end - start, libc::PROT_READ | libc::PROT_WRITE)?;
        }
        let stack = Box::leak(vec![0u8; 1 << 20].into_boxed_slice());
        let stack = libc::stack_t {
            ss_sp: stack.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: stack.len(),
        };
        // SAFETY: the stack was leaked, so it outlives every signal.
        if unsafe { libc::sigaltstack(&stack, std::ptr::null_mut()) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
        for signal in [
            libc::SIGTRAP,
            libc::SIGSEGV,
            libc::SIGILL,
            libc::SIGFPE,
            libc::SIGBUS,
        ] {
            // SAFETY: all zeros is a valid sigaction.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            // SAFETY: a valid action; the handler keeps to what is said above.
            if unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } != 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        // SAFETY: we hold the lock.
        unsafe {
            *SHARED.0.get() = Some(Shared {
                phase: Phase::Idle,
                state: MachineState::default(),
                ending: Ending::default(),
                registers: [0; 23],
                extended: Vec::with_capacity(16384),
            });
        }
        Ok(Self { code, _only: only })
    }

    /// Writes data pages, read-only one included, and code.
    pub fn load(&mut self, code: &[u8], data: &[u8]) {
        let (start, end) = READ_ONLY;
        let _ = protect(start, end - start, libc::PROT_READ | libc::PROT_WRITE);
        let mut offset = 0;
        for (start, end) in READ_WRITE.into_iter().chain([READ_ONLY]) {
            let size = (end - start) as usize;
            let from = &data[offset..offset + size];
            // SAFETY: the pages are ours and mapped writable.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), start as *mut u8, size) };
            offset += size;
        }
        let _ = protect(start, end - start, libc::PROT_READ);
        self.load_code(code);
    }

    /// Puts `code` at [`super::START`], among breakpoints.
    pub fn load_code(&mut self, code: &[u8]) {
        let bytes = surrounded(code);
        let offset = (START - CODE) as usize - MARGIN;
        // SAFETY: inside the writable view of the code pages.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.code.add(offset), bytes.len());
        }
    }

    /// Overwrites a part of the writable data.
    pub fn write(&mut self, address: u64, bytes: &[u8]) {
        let end = address + bytes.len() as u64;
        assert!(READ_WRITE.iter().any(|r| r.0 <= address && end <= r.1));
        // SAFETY: inside a writable page of ours.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len());
        }
    }

    /// A part of the data as it is now.
    pub fn read(&self, address: u64, size: usize) -> &[u8] {
        let end = address + size as u64;
        let mut ranges = READ_WRITE.iter().chain([&READ_ONLY]);
        assert!(ranges.any(|r| r.0 <= address && end <= r.1));
        // SAFETY: inside a mapped page of ours, which nobody writes while the
        // borrow lasts.
        unsafe { std::slice::from_raw_parts(address as *const u8, size) }
    }

    /// Runs from `state` to the first breakpoint or fault.
    pub fn run(&mut self, state: &MachineState) -> (MachineState, Option<Fault>) {
        // SAFETY: we hold the lock; the handler runs on this thread between
        // these accesses. The breakpoint's handler returns here with every
        // register as it was.
        unsafe {
            let shared = SHARED.0.get();
            if let Some(shared) = &mut *shared {
                shared.state = state.clone();
                shared.phase = Phase::Start;
            }
            std::arch::asm!("int3");
            let Some(shared) = &mut *shared else {
                unreachable!("made by new")
            };
            let fault = shared.ending.fault();
            (shared.state.clone(), fault)
        }
    }
}

impl Ending {
    fn fault(&self) -> Option<Fault> {
        match self.vector {
            3 => None,
            vector => Some(Fault {
                vector: vector as u8,
                error_code: match vector {
                    13 | 14 => self.error_code as u32,
                    _ => 0,
                },
                address: if vector == 14 { self.address } else { 0 },
            }),
        }
    }
}

/// Maps the code pages: executable at their address, for the code must not be
/// able to change itself, and writable wherever the kernel likes.
fn map_code() -> std::io::Result<*mut u8> {
    let size = CODE_SIZE as usize;
    let error = || Err(std::io::Error::last_os_error());
    // SAFETY: plain system calls. MAP_FIXED replaces at most the mapping that
    // an earlier oracle made at this address, which is gone: there is one at
    // a time.
    unsafe {
        let fd = libc::memfd_create(c"favo-oracle".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 || libc::ftruncate(fd, size as libc::off_t) != 0 {
            return error();
        }
        let view = |address: u64, protection, flags| {
            libc::mmap(
                address as *mut _,
                size,
                protection,
                libc::MAP_SHARED | flags,
                fd,
                0,
            )
        };
        let execute = view(
            CODE,
            libc::PROT_READ | libc::PROT_EXEC,
            libc::MAP_FIXED | libc::MAP_POPULATE,
        );
        let write = view(0, libc::PROT_READ | libc::PROT_WRITE, 0);
        libc::close(fd);
        if execute == libc::MAP_FAILED || write == libc::MAP_FAILED {
            return error();
        }
        std::ptr::write_bytes(write.cast::<u8>(), 0xcc, size);
        Ok(write.cast())
    }
}

fn map(address: u64, size: u64, protection: i32) -> std::io::Result<()> {
    // SAFETY: MAP_FIXED_NOREPLACE never replaces a mapping; EEXIST means that
    // an earlier oracle made it, and the protection is set below.
    let result = unsafe {
        libc::mmap(
            address as *mut libc::c_void,
            size as usize,
            protection,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    if result == libc::MAP_FAILED {
        let error = std::io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EEXIST) {
            return Err(error);
        }
        return protect(address, size, protection);
    }
    Ok(())
}

fn protect(address: u64, size: u64, protection: i32) -> std::io::Result<()> {
    // SAFETY: only called for the test's own pages.
    match unsafe { libc::mprotect(address as *mut _, size as usize, protection) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Order of Linux' gregs: the general registers by encoding.
const GPR: [usize; 16] = [
    libc::REG_RAX as usize,
    libc::REG_RCX as usize,
    libc::REG_RDX as usize,
    libc::REG_RBX as usize,
    libc::REG_RSP as usize,
    libc::REG_RBP as usize,
    libc::REG_RSI as usize,
    libc::REG_RDI as usize,
    libc::REG_R8 as usize,
    libc::REG_R9 as usize,
    libc::REG_R10 as usize,
    libc::REG_R11 as usize,
    libc::REG_R12 as usize,
    libc::REG_R13 as usize,
    libc::REG_R14 as usize,
    libc::REG_R15 as usize,
];

extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a ucontext; SHARED is ours on this thread as
    // described above.
    unsafe {
        let context = &mut *context.cast::<libc::ucontext_t>();
        let registers = &mut context.uc_mcontext.gregs;
        let area = context.uc_mcontext.fpregs.cast::<u8>();
        let size = area.add(xsave::SIZE).cast::<u32>().read_unaligned() as usize;
        let size = if size < 832 { 512 } else { size };
        let area = std::slice::from_raw_parts_mut(area, size);
        let Some(shared) = &mut *SHARED.0.get() else {
            return die(signal);
        };
        match (shared.phase, signal) {
            (Phase::Start, libc::SIGTRAP) => {
                shared.registers = *registers;
                shared.extended.clear();
                shared.extended.extend_from_slice(area);
                enter(&shared.state, registers, area);
                shared.phase = Phase::Running;
            }
            (Phase::Running, _) => {
                shared.ending = Ending {
                    vector: registers[libc::REG_TRAPNO as usize] as u64,
                    error_code: registers[libc::REG_ERR as usize] as u64,
                    address: registers[libc::REG_CR2 as usize] as u64,
                };
                let _ = info;
                leave(&mut shared.state, registers, area);
                if shared.ending.vector == 3 {
                    shared.state.rip = shared.state.rip.wrapping_sub(1);
                }
                *registers = shared.registers;
                area.copy_from_slice(&shared.extended);
                shared.phase = Phase::Idle;
            }
            _ => {
                eprintln!(
                    "oracle: signal {signal} outside a case, rip {:#x}, address {:#x}, code {:02x?}",
                    registers[libc::REG_RIP as usize],
                    registers[libc::REG_CR2 as usize],
                    std::slice::from_raw_parts(START as *const u8, 16),
                );
                die(signal);
            }
        }
    }
}

/// A real bug of this process: let it die of it.
fn die(signal: i32) {
    // SAFETY: restores the default; the instruction repeats and ends us.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        if signal == libc::SIGTRAP {
            libc::abort();
        }
    }
}

fn enter(state: &MachineState, registers: &mut [i64; 23], area: &mut [u8]) {
    for (register, value) in GPR.iter().zip(state.gpr) {
        registers[*register] = value as i64;
    }
    registers[libc::REG_RIP as usize] = state.rip as i64;
    registers[libc::REG_EFL as usize] = state.flags as i64;
    let fpu = &state.fpu;
    area[0..2].copy_from_slice(&fpu.fcw.to_le_bytes());
    area[2..4].copy_from_slice(&fpu.fsw.to_le_bytes());
    area[4] = fpu.ftw;
    area[6..8].copy_from_slice(&fpu.fop.to_le_bytes());
    area[8..16].copy_from_slice(&fpu.fip.to_le_bytes());
    area[16..24].copy_from_slice(&fpu.fdp.to_le_bytes());
    area[xsave::MXCSR..][..4].copy_from_slice(&fpu.mxcsr.to_le_bytes());
    for (n, st) in fpu.st.iter().enumerate() {
        area[xsave::ST + 16 * n..][..10].copy_from_slice(st);
    }
    for (n, ymm) in fpu.ymm.iter().enumerate() {
        area[xsave::XMM + 16 * n..][..16].copy_from_slice(&ymm[..16]);
        if area.len() > 512 {
            area[xsave::YMM_HIGH + 16 * n..][..16].copy_from_slice(&ymm[16..]);
        }
    }
    if area.len() > 512 {
        area[xsave::XSTATE_BV] |= 7;
    }
}

fn leave(state: &mut MachineState, registers: &[i64; 23], area: &[u8]) {
    for (register, value) in GPR.iter().zip(&mut state.gpr) {
        *value = registers[*register] as u64;
    }
    state.rip = registers[libc::REG_RIP as usize] as u64;
    state.flags = registers[libc::REG_EFL as usize] as u64;
    let u16_at = |n: usize| u16::from_le_bytes([area[n], area[n + 1]]);
    let bytes = |n: usize, size: usize| &area[n..n + size];
    let u64_at = |n: usize| u64::from_le_bytes(bytes(n, 8).try_into().unwrap_or_default());
    let present = if area.len() > 512 {
        area[xsave::XSTATE_BV]
    } else {
        3
    };
    let defaults = FpuState::default();
    let fpu = &mut state.fpu;
    *fpu = defaults;
    // Linux fills in the parts that XSAVE left out for being initial, except
    // for the upper halves.
    fpu.fcw = u16_at(0);
    fpu.fsw = u16_at(2);
    fpu.ftw = area[4];
    fpu.fop = u16_at(6);
    fpu.fip = u64_at(8);
    fpu.fdp = u64_at(16);
    fpu.mxcsr = u64_at(xsave::MXCSR) as u32;
    for (n, st) in fpu.st.iter_mut().enumerate() {
        st.copy_from_slice(bytes(xsave::ST + 16 * n, 10));
    }
    for (n, ymm) in fpu.ymm.iter_mut().enumerate() {
        if present & 2 != 0 {
            ymm[..16].copy_from_slice(bytes(xsave::XMM + 16 * n, 16));
        }
        if area.len() > 512 && present & 4 != 0 {
            ymm[16..].copy_from_slice(bytes(xsave::YMM_HIGH + 16 * n, 16));
        }
    }
    if present & 1 == 0 {
        fpu.fcw = defaults.fcw;
        fpu.fsw = 0;
        fpu.ftw = 0;
        fpu.st = defaults.st;
    }
}

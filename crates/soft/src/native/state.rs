//! x87, SSE and AVX state in the layout the stubs use.

use favo_accel::state::FpuState;

/// The x87 part, laid out as FXSAVE64 does (SDM vol. 1, table 10-2), because
/// x87 stubs hand it to FXRSTOR64 and FXSAVE64.
///
/// FOP, FIP and FDP in here belong to the host: they hold addresses of stubs.
/// The guest's are in [`ExtendedState`].
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct X87Image {
    /// Control word.
    pub fcw: u16,
    /// Status word.
    pub fsw: u16,
    /// Abridged tags: bit n set when physical register n is not empty.
    pub ftw: u8,
    reserved: u8,
    host_fop: u16,
    host_fip: u64,
    host_fdp: u64,
    /// What the host runs with while a stub executes x87; never the guest's.
    host_mxcsr: u32,
    host_mxcsr_mask: u32,
    /// ST(0) to ST(7), relative to TOP; each 10 bytes and 6 unused.
    pub st: [[u8; 16]; 8],
    scratch: [u8; 352],
}

const _: () = assert!(size_of::<X87Image>() == 512);

/// x87, MMX, SSE and AVX registers of one guest processor.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct ExtendedState {
    /// x87 and MMX.
    pub x87: X87Image,
    /// The header of an XSAVE area that ends here, for XSAVE and XRSTOR of
    /// nothing but x87.
    pub(crate) header: [u64; 8],
    /// YMM0 to YMM15; the low halves are XMM0 to XMM15.
    pub ymm: [[u8; 32]; 16],
    /// The guest's MXCSR.
    pub mxcsr: u32,
    /// MXCSR a stub loads before its instruction.
    pub(super) mxcsr_in: u32,
    /// MXCSR a stub found after its instruction.
    pub(super) mxcsr_out: u32,
    /// Selectors that go with `fip` and `fdp` in the 32-bit layouts.
    pub fcs: u16,
    /// See `fcs`.
    pub fds: u16,
    /// RFLAGS a stub loads before its instruction, if it reads them.
    pub(super) flags_in: u64,
    /// Address of the last x87 instruction that was not a control instruction.
    pub fip: u64,
    /// Address of its operand.
    pub fdp: u64,
    /// Its opcode: bits 10:8 from the first byte, 7:0 the second.
    pub fop: u16,
}

/// Exception flags of MXCSR and of the x87 status word.
pub const EXCEPTION_FLAGS: u32 = 0x3f;
/// Exception masks of MXCSR.
pub const MXCSR_MASKS: u32 = EXCEPTION_FLAGS << 7;
/// MXCSR after RESET.
pub const MXCSR_DEFAULT: u32 = 0x1f80;
/// The bits of MXCSR that exist: no misaligned mode (AMD's bit 17), which is
/// not offered.
pub const MXCSR_VALID: u32 = 0xffff;
/// x87 status word: an unmasked exception is pending.
pub const FSW_ES: u16 = 1 << 7;
/// x87 status word: busy, a copy of ES.
pub const FSW_B: u16 = 1 << 15;

impl Default for ExtendedState {
    fn default() -> Self {
        Self::from(&FpuState::default())
    }
}

impl From<&FpuState> for ExtendedState {
    fn from(state: &FpuState) -> Self {
        let mut st = [[0; 16]; 8];
        for (to, from) in st.iter_mut().zip(&state.st) {
            to[..10].copy_from_slice(from);
        }
        let mut new = Self {
            x87: X87Image {
                fcw: state.fcw,
                fsw: state.fsw,
                ftw: state.ftw,
                reserved: 0,
                host_fop: 0,
                host_fip: 0,
                host_fdp: 0,
                host_mxcsr: MXCSR_DEFAULT,
                host_mxcsr_mask: 0,
                st,
                scratch: [0; 352],
            },
            header: [1, 0, 0, 0, 0, 0, 0, 0],
            ymm: state.ymm,
            mxcsr: state.mxcsr & MXCSR_VALID,
            mxcsr_in: MXCSR_DEFAULT,
            mxcsr_out: MXCSR_DEFAULT,
            fcs: 0,
            fds: 0,
            flags_in: 0,
            fip: state.fip,
            fdp: state.fdp,
            fop: state.fop & 0x7ff,
        };
        new.x87.normalize();
        new
    }
}

impl From<&ExtendedState> for FpuState {
    fn from(state: &ExtendedState) -> Self {
        let mut st = [[0; 10]; 8];
        for (to, from) in st.iter_mut().zip(&state.x87.st) {
            to.copy_from_slice(&from[..10]);
        }
        Self {
            fcw: state.x87.fcw,
            fsw: state.x87.fsw,
            ftw: state.x87.ftw,
            fop: state.fop,
            fip: state.fip,
            fdp: state.fdp,
            st,
            mxcsr: state.mxcsr,
            ymm: state.ymm,
        }
    }
}

impl X87Image {
    /// TOP: the physical register that is ST(0).
    pub const fn top(&self) -> usize {
        (self.fsw >> 11 & 7) as usize
    }

    /// An unmasked exception waits for the next waiting instruction.
    pub const fn exception_pending(&self) -> bool {
        self.fsw & FSW_ES != 0
    }

    /// Makes ES and B follow from the flags and masks, and the control word's
    /// fixed bits what they always are. After anything but the processor
    /// wrote FCW or FSW.
    pub fn normalize(&mut self) {
        self.fcw = self.fcw & 0x1f3f | 0x40;
        let unmasked = self.fsw & !self.fcw & EXCEPTION_FLAGS as u16 != 0;
        self.fsw = self.fsw & !(FSW_ES | FSW_B) | if unmasked { FSW_ES | FSW_B } else { 0 };
    }

    /// FNINIT. The data registers keep their contents.
    pub fn initialize(&mut self) {
        self.rotate_to(0);
        self.fcw = 0x37f;
        self.fsw = 0;
        self.ftw = 0;
    }

    /// What an MMX instruction other than EMMS does to the x87 state: TOP is
    /// 0, so that MMn is `st[n]`, and every register is in use (SDM vol. 3,
    /// 13.2).
    pub fn enter_mmx(&mut self) {
        self.rotate_to(0);
        self.ftw = 0xff;
    }

    /// Changes TOP; physical registers keep their contents.
    pub fn rotate_to(&mut self, top: usize) {
        let old = self.top();
        if old != top {
            self.st.rotate_left((top + 8 - old) & 7);
            self.fsw = self.fsw & !(7 << 11) | (top as u16 & 7) << 11;
        }
    }
}

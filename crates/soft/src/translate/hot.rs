//! The words translated code and Rust share.

use crate::native::MXCSR_DEFAULT;

/// What translated code and Rust tell each other, beside the registers.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Hot {
    /// Where `enter` goes.
    pub entry: u64,
    /// The linear page of the running code.
    pub page: u64,
    /// RAX, while flags are moved.
    pub(super) spill: u64,
    /// RCX, while a jump is looked up.
    pub(super) spill_count: u64,
    /// The target of a call, while its return address is pushed.
    pub(super) target: u64,
    /// The arithmetic flags as LAHF and SETO leave them in AX.
    pub(super) flags: u64,
    /// Flags put aside inside a block, in the same form.
    pub(super) aside: u64,
    /// The window into the stack: host address less linear address.
    pub(super) window: u64,
    /// The linear page the window shows.
    pub(super) window_tag: u64,
    /// Offsets in the page below this may begin a window; 0 if there is none.
    pub window_limit: u64,
    /// Which edge was left by.
    pub edge: u32,
    /// What an indirect jump did before its target was found: see
    /// [`super::flow::Undo`].
    pub undo: u32,
    /// Vector registers are in the host's.
    pub(super) vectors: u32,
    /// So are the x87 registers.
    pub(super) x87: u32,
    /// MXCSR for Rust.
    pub(super) mxcsr: u32,
}

/// For [`Hot::undo`]: unknown.
pub(super) const NO_UNDO: u32 = u32::MAX;

/// Nothing loaded, nothing known.
pub(crate) const fn initial() -> Hot {
    Hot {
        entry: 0,
        page: 0,
        spill: 0,
        spill_count: 0,
        target: 0,
        flags: 0,
        aside: 0,
        window: 0,
        window_tag: 0,
        window_limit: 0,
        edge: 0,
        undo: 0,
        vectors: 0,
        x87: 0,
        mxcsr: MXCSR_DEFAULT,
    }
}

impl Hot {
    /// RFLAGS bits from LAHF and SETO.
    pub(crate) fn arithmetic(&self) -> u64 {
        self.flags >> 8 & 0xd5 | (self.flags & 1) << 11
    }

    /// The other way round.
    pub(crate) fn set_arithmetic(&mut self, bits: u64) {
        self.flags = (bits & 0xd5 | 2) << 8 | bits >> 11 & 1;
    }
}

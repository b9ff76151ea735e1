//! Why an operation did not complete.

/// What an operation returns.
pub type Exec<T = ()> = Result<T, Trap>;

/// Why an operation did not complete. It has changed nothing the guest can
/// see, and its RIP is still that of the instruction, unless said otherwise.
///
/// Eight bytes, so that an operation's result travels in a register; what does
/// not fit lies in the processor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trap {
    /// The guest gets an exception.
    Exception(Exception),
    /// The caller of the virtual processor must do what [`crate::cpu::Cpu::exit`]
    /// says first; then the instruction runs again (see [`crate::mmio`]).
    Exit,
    /// The instruction is complete, RIP has moved, and the block must end:
    /// the mode, the page tables, or the code itself may have changed, or
    /// interrupts may have become deliverable.
    EndBlock,
    /// HLT: complete, RIP has moved; the processor now waits.
    Halt,
    /// An exception while delivering a double fault.
    TripleFault,
}

impl From<Exception> for Trap {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

/// An exception (SDM vol. 3, 6.15), with what the handler gets to see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exception {
    /// #DE, vector 0.
    DivideError,
    /// #DB, vector 1, behind the instruction, with the bits to set in DR6.
    Debug(u16),
    /// #DB, vector 1, instead of the instruction: a breakpoint on it, or a
    /// debug register that is guarded.
    DebugFault(u16),
    /// #BP, vector 3. RIP is already behind the INT3.
    Breakpoint,
    /// #OF, vector 4. RIP is already behind the INTO.
    Overflow,
    /// #BR, vector 5.
    BoundRange,
    /// #UD, vector 6.
    InvalidOpcode,
    /// #NM, vector 7.
    DeviceNotAvailable,
    /// #DF, vector 8.
    DoubleFault,
    /// #TS, vector 10, with a selector error code.
    InvalidTss(u16),
    /// #NP, vector 11, with a selector error code.
    SegmentNotPresent(u16),
    /// #SS, vector 12, with a selector error code or 0.
    Stack(u16),
    /// #GP, vector 13, with a selector error code or 0.
    GeneralProtection(u16),
    /// #PF, vector 14. The address is [`crate::cpu::Cpu::fault_address`].
    PageFault {
        /// P, W, U, RSVD, I as pushed (SDM vol. 3, 4.7).
        error_code: u32,
    },
    /// #MF, vector 16.
    X87FloatingPoint,
    /// #AC, vector 17.
    AlignmentCheck,
    /// #XM, vector 19.
    SimdFloatingPoint,
}

impl Exception {
    /// The vector.
    pub const fn vector(self) -> u8 {
        match self {
            Self::DivideError => 0,
            Self::Debug(_) | Self::DebugFault(_) => 1,
            Self::Breakpoint => 3,
            Self::Overflow => 4,
            Self::BoundRange => 5,
            Self::InvalidOpcode => 6,
            Self::DeviceNotAvailable => 7,
            Self::DoubleFault => 8,
            Self::InvalidTss(_) => 10,
            Self::SegmentNotPresent(_) => 11,
            Self::Stack(_) => 12,
            Self::GeneralProtection(_) => 13,
            Self::PageFault { .. } => 14,
            Self::X87FloatingPoint => 16,
            Self::AlignmentCheck => 17,
            Self::SimdFloatingPoint => 19,
        }
    }

    /// What is pushed behind the return address, for vectors that have it.
    pub const fn error_code(self) -> Option<u32> {
        match self {
            Self::DoubleFault | Self::AlignmentCheck => Some(0),
            Self::InvalidTss(code)
            | Self::SegmentNotPresent(code)
            | Self::Stack(code)
            | Self::GeneralProtection(code) => Some(code as u32),
            Self::PageFault { error_code } => Some(error_code),
            _ => None,
        }
    }

    /// Faults restart the instruction with RF set in the saved flags; traps
    /// (#BP, #OF and a #DB that is no instruction breakpoint) do not.
    pub const fn is_fault(self) -> bool {
        !matches!(self, Self::Debug(_) | Self::Breakpoint | Self::Overflow)
    }
}

/// #GP(0), by far the most frequent.
pub const GP0: Trap = Trap::Exception(Exception::GeneralProtection(0));
/// #UD.
pub const UD: Trap = Trap::Exception(Exception::InvalidOpcode);

const _: () = assert!(size_of::<Exec>() == 8);

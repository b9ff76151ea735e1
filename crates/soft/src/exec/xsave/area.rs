//! The layout of FXSAVE and XSAVE areas (SDM vol. 1, 10.5.1 and 13.4).

use crate::native::{self, ExtendedState, MXCSR_VALID};
use crate::trap::{Exec, GP0};

use super::COMPACT;

/// Offset of the XSAVE header.
pub(super) const HEADER: usize = 512;
/// Offset of the upper halves of the YMM registers, also in the compacted
/// format, for nothing comes before them.
pub(super) const YMM_HIGH: usize = 576;

const MXCSR: usize = 24;
const ST: usize = 32;
const XMM: usize = 160;

/// An XSAVE area with components 0 to 2.
pub(super) struct Area {
    pub bytes: [u8; YMM_HIGH + 256],
}

impl Default for Area {
    fn default() -> Self {
        Self {
            bytes: [0; YMM_HIGH + 256],
        }
    }
}

impl Area {
    /// The initial state of every component (SDM vol. 1, 13.6).
    pub(super) fn initial() -> Self {
        let mut area = Self::default();
        area.put(0, &0x37fu16.to_le_bytes());
        area
    }

    fn put(&mut self, offset: usize, value: &[u8]) {
        self.bytes[offset..offset + value.len()].copy_from_slice(value);
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes([self.bytes[offset], self.bytes[offset + 1]])
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from(self.u16(offset)) | u32::from(self.u16(offset + 2)) << 16
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from(self.u32(offset)) | u64::from(self.u32(offset + 4)) << 32
    }

    /// Bytes 0 to 23 and the data registers. `wide`: 64-bit pointers.
    pub(super) fn put_x87(&mut self, state: &ExtendedState, wide: bool) {
        let x87 = &state.x87;
        self.put(0, &x87.fcw.to_le_bytes());
        self.put(2, &x87.fsw.to_le_bytes());
        self.put(4, &[x87.ftw]);
        // AMD's processors save the pointers only for a pending exception
        // (APM vol. 2, 11.4.4); a guest sees what the host would show.
        if !native::host_is_amd() || x87.exception_pending() {
            self.put(6, &state.fop.to_le_bytes());
            if wide {
                self.put(8, &state.fip.to_le_bytes());
                self.put(16, &state.fdp.to_le_bytes());
            } else {
                self.put(8, &(state.fip as u32).to_le_bytes());
                self.put(12, &state.fcs.to_le_bytes());
                self.put(16, &(state.fdp as u32).to_le_bytes());
                self.put(20, &state.fds.to_le_bytes());
            }
        }
        for (n, st) in x87.st.iter().enumerate() {
            self.put(ST + 16 * n, &st[..10]);
        }
    }

    pub(super) fn take_x87(&self, state: &mut ExtendedState, wide: bool) {
        let x87 = &mut state.x87;
        x87.fcw = self.u16(0);
        x87.fsw = self.u16(2);
        x87.ftw = self.bytes[4];
        x87.normalize();
        for (n, st) in x87.st.iter_mut().enumerate() {
            st[..10].copy_from_slice(&self.bytes[ST + 16 * n..][..10]);
        }
        state.fop = self.u16(6) & 0x7ff;
        if wide {
            state.fip = self.u64(8);
            state.fdp = self.u64(16);
            state.fcs = 0;
            state.fds = 0;
        } else {
            state.fip = self.u32(8).into();
            state.fcs = self.u16(12);
            state.fdp = self.u32(16).into();
            state.fds = self.u16(20);
        }
    }

    /// MXCSR and its mask.
    pub(super) fn put_mxcsr(&mut self, state: &ExtendedState) {
        self.put(MXCSR, &state.mxcsr.to_le_bytes());
        self.put(MXCSR + 4, &MXCSR_VALID.to_le_bytes());
    }

    pub(super) fn mxcsr(&self) -> u32 {
        self.u32(MXCSR)
    }

    pub(super) fn put_sse(&mut self, state: &ExtendedState, count: usize) {
        for (n, ymm) in state.ymm[..count].iter().enumerate() {
            self.put(XMM + 16 * n, &ymm[..16]);
        }
    }

    pub(super) fn take_sse(&self, state: &mut ExtendedState, count: usize) {
        for (n, ymm) in state.ymm[..count].iter_mut().enumerate() {
            ymm[..16].copy_from_slice(&self.bytes[XMM + 16 * n..][..16]);
        }
    }

    pub(super) fn put_avx(&mut self, state: &ExtendedState, count: usize) {
        for (n, ymm) in state.ymm[..count].iter().enumerate() {
            self.put(YMM_HIGH + 16 * n, &ymm[16..]);
        }
    }

    pub(super) fn take_avx(&self, state: &mut ExtendedState, count: usize) {
        for (n, ymm) in state.ymm[..count].iter_mut().enumerate() {
            ymm[16..].copy_from_slice(&self.bytes[YMM_HIGH + 16 * n..][..16]);
        }
    }

    /// XSTATE_BV and XCOMP_BV.
    pub(super) fn header(&self) -> (u64, u64) {
        (self.u64(HEADER), self.u64(HEADER + 8))
    }

    /// #GP(0) for a header that XRSTOR refuses (SDM vol. 1, 13.8.1, 13.8.2).
    pub(super) fn check_header(&self, xcr0: u64) -> Exec {
        let (present, compaction) = self.header();
        let rest = &self.bytes[HEADER + 16..HEADER + 64];
        let valid = if compaction & COMPACT != 0 {
            let components = compaction & !COMPACT;
            components & !xcr0 == 0
                && present & !components == 0
                && rest.iter().all(|byte| *byte == 0)
        } else {
            present & !xcr0 == 0 && compaction == 0 && rest[..8].iter().all(|byte| *byte == 0)
        };
        if valid { Ok(()) } else { Err(GP0) }
    }
}

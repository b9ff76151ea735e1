//! x87, SSE and AVX: the XSAVE area in its standard format
//! (SDM vol. 1, 13.4 and 10.5.1).

use favo_accel::AccelError;
use favo_accel::state::FpuState;
use kvm_bindings::{kvm_xcr, kvm_xcrs, kvm_xsave};
use kvm_ioctls::VcpuFd;

use crate::error::host;
use crate::vcpu::KvmVcpu;

const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;

const FIP: usize = 8;
const FDP: usize = 16;
const MXCSR: usize = 24;
const MXCSR_MASK: usize = 28;
const ST: usize = 32;
const XMM: usize = 160;
/// XSTATE_BV, which components are not in their initial state.
const PRESENT: usize = 512;
/// Upper halves of YMM. Every processor with AVX has them here.
const YMM_HIGH: usize = 576;
const BYTES: usize = 4096;

/// The first 4096 bytes of KVM's XSAVE area, as bytes.
struct Area([u8; BYTES]);

pub(crate) fn export(fd: &VcpuFd) -> Result<FpuState, AccelError> {
    let area = fd
        .get_xsave()
        .map_err(host("reading x87, SSE and AVX (KVM_GET_XSAVE)"))?;
    Ok(Area::from_kvm(&area).decode())
}

pub(crate) fn import(fd: &VcpuFd, fpu: &FpuState) -> Result<(), AccelError> {
    set_xsave(fd, &Area::encode(fpu).to_kvm())
        .map_err(host("loading x87, SSE and AVX (KVM_SET_XSAVE)"))
}

#[allow(unsafe_code)]
fn set_xsave(fd: &VcpuFd, area: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: KVM reads more than the 4096 bytes of this structure only in a
    // process that asked for dynamic states (AMX) with arch_prctl; favo never
    // does.
    unsafe { fd.set_xsave(area) }
}

/// XCR0, as a guest without XSAVE would find it where KVM has none.
pub(crate) fn export_xcr0(vcpu: &KvmVcpu) -> Result<u64, AccelError> {
    if !vcpu.partition.host.has_xcrs {
        return Ok(X87);
    }
    let registers = vcpu
        .fd
        .get_xcrs()
        .map_err(host("reading XCR0 (KVM_GET_XCRS)"))?;
    let count = (registers.nr_xcrs as usize).min(registers.xcrs.len());
    let xcr0 = registers.xcrs[..count]
        .iter()
        .find(|register| register.xcr == 0)
        .map_or(X87, |register| register.value);
    // Nobody ever set it: KVM starts with 1, but a host without XSAVE says 0.
    Ok(xcr0.max(X87))
}

pub(crate) fn import_xcr0(vcpu: &KvmVcpu, value: u64) -> Result<(), AccelError> {
    if !vcpu.partition.host.has_xcrs {
        return if value == X87 {
            Ok(())
        } else {
            Err(AccelError::InvalidState(format!(
                "XCR0 is {value:#x}, and this host has no XSAVE"
            )))
        };
    }
    let mut registers = kvm_xcrs {
        nr_xcrs: 1,
        ..Default::default()
    };
    registers.xcrs[0] = kvm_xcr {
        xcr: 0,
        value,
        ..Default::default()
    };
    vcpu.fd
        .set_xcrs(&registers)
        .map_err(host("loading XCR0 (KVM_SET_XCRS)"))
}

impl Area {
    fn from_kvm(area: &kvm_xsave) -> Self {
        let mut bytes = [0; BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(area.region) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        Self(bytes)
    }

    fn to_kvm(&self) -> kvm_xsave {
        let mut area = kvm_xsave::default();
        for (word, chunk) in area.region.iter_mut().zip(self.0.chunks_exact(4)) {
            *word = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        }
        area
    }

    fn decode(&self) -> FpuState {
        let present = u64::from_le_bytes(self.array(PRESENT));
        // FNINIT's values, which is what an absent component stands for.
        let mut fpu = FpuState::default();
        if present & X87 != 0 {
            fpu.fcw = u16::from_le_bytes(self.array(0));
            fpu.fsw = u16::from_le_bytes(self.array(2));
            fpu.ftw = self.0[4];
            fpu.fop = u16::from_le_bytes(self.array(6)) & 0x7ff;
            fpu.fip = u64::from_le_bytes(self.array(FIP));
            fpu.fdp = u64::from_le_bytes(self.array(FDP));
            for (register, st) in fpu.st.iter_mut().enumerate() {
                *st = self.array(ST + 16 * register);
            }
        }
        if present & (SSE | AVX) != 0 {
            fpu.mxcsr = u32::from_le_bytes(self.array(MXCSR));
        }
        for (register, ymm) in fpu.ymm.iter_mut().enumerate() {
            if present & SSE != 0 {
                ymm[..16].copy_from_slice(&self.array::<16>(XMM + 16 * register));
            }
            if present & AVX != 0 {
                ymm[16..].copy_from_slice(&self.array::<16>(YMM_HIGH + 16 * register));
            }
        }
        fpu
    }

    fn encode(fpu: &FpuState) -> Self {
        let mut area = Self([0; BYTES]);
        area.put(0, &fpu.fcw.to_le_bytes());
        area.put(2, &fpu.fsw.to_le_bytes());
        area.put(4, &[fpu.ftw]);
        area.put(6, &fpu.fop.to_le_bytes());
        area.put(FIP, &fpu.fip.to_le_bytes());
        area.put(FDP, &fpu.fdp.to_le_bytes());
        area.put(MXCSR, &fpu.mxcsr.to_le_bytes());
        area.put(MXCSR_MASK, &0xffff_u32.to_le_bytes());
        for (register, st) in fpu.st.iter().enumerate() {
            area.put(ST + 16 * register, st);
        }
        let mut present = X87 | SSE;
        for (register, ymm) in fpu.ymm.iter().enumerate() {
            area.put(XMM + 16 * register, &ymm[..16]);
            area.put(YMM_HIGH + 16 * register, &ymm[16..]);
            // A host without AVX takes the area only without it.
            if ymm[16..] != [0; 16] {
                present |= AVX;
            }
        }
        area.put(PRESENT, &present.to_le_bytes());
        area
    }

    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        std::array::from_fn(|byte| self.0[offset + byte])
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
#[path = "fpu_test.rs"]
mod test;

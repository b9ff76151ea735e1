//! General, segment, control and debug registers.

use favo_accel::AccelError;
use favo_accel::state::{
    ControlRegisters, DebugRegisters, DescriptorTable, GeneralRegisters, Segment, SegmentRegisters,
    VcpuState,
};
use kvm_bindings::{kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::error::host;

pub(crate) fn export_general(fd: &VcpuFd) -> Result<GeneralRegisters, AccelError> {
    let regs = fd
        .get_regs()
        .map_err(host("reading general registers (KVM_GET_REGS)"))?;
    Ok(GeneralRegisters {
        rax: regs.rax,
        rbx: regs.rbx,
        rcx: regs.rcx,
        rdx: regs.rdx,
        rsi: regs.rsi,
        rdi: regs.rdi,
        rsp: regs.rsp,
        rbp: regs.rbp,
        r8: regs.r8,
        r9: regs.r9,
        r10: regs.r10,
        r11: regs.r11,
        r12: regs.r12,
        r13: regs.r13,
        r14: regs.r14,
        r15: regs.r15,
        rip: regs.rip,
        rflags: regs.rflags,
    })
}

pub(crate) fn import_general(fd: &VcpuFd, general: &GeneralRegisters) -> Result<(), AccelError> {
    fd.set_regs(&kvm_regs {
        rax: general.rax,
        rbx: general.rbx,
        rcx: general.rcx,
        rdx: general.rdx,
        rsi: general.rsi,
        rdi: general.rdi,
        rsp: general.rsp,
        rbp: general.rbp,
        r8: general.r8,
        r9: general.r9,
        r10: general.r10,
        r11: general.r11,
        r12: general.r12,
        r13: general.r13,
        r14: general.r14,
        r15: general.r15,
        rip: general.rip,
        rflags: general.rflags,
    })
    .map_err(host("loading general registers (KVM_SET_REGS)"))
}

/// Segments, control registers without XCR0, and IA32_APIC_BASE.
pub(crate) fn export_system(
    fd: &VcpuFd,
) -> Result<(SegmentRegisters, ControlRegisters, u64), AccelError> {
    let sregs = fd
        .get_sregs()
        .map_err(host("reading system registers (KVM_GET_SREGS)"))?;
    let segments = SegmentRegisters {
        es: segment(&sregs.es),
        cs: segment(&sregs.cs),
        ss: segment(&sregs.ss),
        ds: segment(&sregs.ds),
        fs: segment(&sregs.fs),
        gs: segment(&sregs.gs),
        ldtr: segment(&sregs.ldt),
        tr: segment(&sregs.tr),
        gdtr: table(&sregs.gdt),
        idtr: table(&sregs.idt),
    };
    let control = ControlRegisters {
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        efer: sregs.efer,
        xcr0: 0,
    };
    Ok((segments, control, sregs.apic_base))
}

pub(crate) fn import_system(fd: &VcpuFd, state: &VcpuState) -> Result<(), AccelError> {
    let VcpuState {
        segments, control, ..
    } = state;
    fd.set_sregs(&kvm_sregs {
        es: kvm_segment_of(&segments.es),
        cs: kvm_segment_of(&segments.cs),
        ss: kvm_segment_of(&segments.ss),
        ds: kvm_segment_of(&segments.ds),
        fs: kvm_segment_of(&segments.fs),
        gs: kvm_segment_of(&segments.gs),
        ldt: kvm_segment_of(&segments.ldtr),
        tr: kvm_segment_of(&segments.tr),
        gdt: kvm_table_of(&segments.gdtr),
        idt: kvm_table_of(&segments.idtr),
        cr0: control.cr0,
        cr2: control.cr2,
        cr3: control.cr3,
        cr4: control.cr4,
        cr8: u64::from(state.local_apic.tpr >> 4 & 0xf),
        efer: control.efer,
        apic_base: state.msrs.apic_base,
        interrupt_bitmap: [0; 4],
    })
    .map_err(host("loading system registers (KVM_SET_SREGS)"))
}

pub(crate) fn export_debug(fd: &VcpuFd) -> Result<DebugRegisters, AccelError> {
    let regs = fd
        .get_debug_regs()
        .map_err(host("reading debug registers (KVM_GET_DEBUGREGS)"))?;
    Ok(DebugRegisters {
        address: regs.db,
        dr6: regs.dr6,
        dr7: regs.dr7,
    })
}

pub(crate) fn import_debug(fd: &VcpuFd, debug: &DebugRegisters) -> Result<(), AccelError> {
    fd.set_debug_regs(&kvm_debugregs {
        db: debug.address,
        dr6: debug.dr6,
        dr7: debug.dr7,
        ..Default::default()
    })
    .map_err(host("loading debug registers (KVM_SET_DEBUGREGS)"))
}

fn segment(segment: &kvm_segment) -> Segment {
    let bit = |value: u8, position: u32| u32::from(value & 1) << position;
    Segment {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        access: u32::from(segment.type_ & 0xf)
            | bit(segment.s, 4)
            | u32::from(segment.dpl & 3) << 5
            | bit(segment.present, 7)
            | bit(segment.avl, 12)
            | bit(segment.l, 13)
            | bit(segment.db, 14)
            | bit(segment.g, 15)
            | if segment.unusable != 0 {
                Segment::UNUSABLE
            } else {
                0
            },
    }
}

fn kvm_segment_of(segment: &Segment) -> kvm_segment {
    let bit = |position: u32| (segment.access >> position & 1) as u8;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: (segment.access & 0xf) as u8,
        present: bit(7),
        dpl: (segment.access >> 5 & 3) as u8,
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: bit(16),
        padding: 0,
    }
}

fn table(table: &kvm_dtable) -> DescriptorTable {
    DescriptorTable {
        base: table.base,
        limit: table.limit,
    }
}

fn kvm_table_of(table: &DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: table.base,
        limit: table.limit,
        ..Default::default()
    }
}

#[cfg(test)]
#[path = "registers_test.rs"]
mod test;

//! One KVM_RUN and the page it shares with the kernel.
//!
//! The rest of the crate sees exits as plain values: which access, how wide,
//! how many. The bytes of a port access stay in the shared page until they are
//! asked for.

#![allow(unsafe_code)]

use kvm_ioctls::{VcpuExit, VcpuFd};

/// Why KVM_RUN came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RawExit {
    /// `count` accesses of `size` bytes each to one port.
    Port {
        port: u16,
        write: bool,
        size: usize,
        count: usize,
    },
    /// A read of `length` bytes, 1 to 8.
    MmioRead { address: u64, length: usize },
    /// A write of the first `length` bytes of `data`.
    MmioWrite {
        address: u64,
        length: usize,
        data: [u8; 8],
    },
    /// The end of a level-triggered interrupt.
    IoapicEoi { vector: u8 },
    /// A triple fault.
    Shutdown,
    /// KVM could not go on: an instruction it can't emulate, mostly.
    InternalError { suberror: u32 },
    /// The processor refused the guest's state.
    EntryFailed { reason: u64 },
    /// Nothing that was asked for.
    Unexpected { reason: u32 },
}

/// Runs once. Errors are KVM's: EINTR and EAGAIN are normal.
pub(crate) fn run(vcpu: &mut VcpuFd) -> Result<RawExit, kvm_ioctls::Error> {
    let exit = match vcpu.run()? {
        VcpuExit::IoIn(port, data) => (port, false, data.len()),
        VcpuExit::IoOut(port, data) => (port, true, data.len()),
        VcpuExit::MmioRead(address, data) => {
            return Ok(RawExit::MmioRead {
                address,
                length: data.len(),
            });
        }
        VcpuExit::MmioWrite(address, bytes) => {
            let mut data = [0; 8];
            data[..bytes.len()].copy_from_slice(bytes);
            return Ok(RawExit::MmioWrite {
                address,
                length: bytes.len(),
                data,
            });
        }
        VcpuExit::IoapicEoi(vector) => return Ok(RawExit::IoapicEoi { vector }),
        VcpuExit::Shutdown => return Ok(RawExit::Shutdown),
        VcpuExit::FailEntry(reason, _) => return Ok(RawExit::EntryFailed { reason }),
        VcpuExit::InternalError => {
            // SAFETY: the exit reason says that `internal` is the valid field.
            let internal = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal };
            return Ok(RawExit::InternalError {
                suberror: internal.suberror,
            });
        }
        _ => {
            return Ok(RawExit::Unexpected {
                reason: vcpu.get_kvm_run().exit_reason,
            });
        }
    };
    let (port, write, bytes) = exit;
    // SAFETY: the exit reason says that `io` is the valid field.
    let size = usize::from(unsafe { vcpu.get_kvm_run().__bindgen_anon_1.io.size });
    Ok(RawExit::Port {
        port,
        write,
        size,
        count: bytes.checked_div(size).unwrap_or(0),
    })
}

/// Reads access `index` of the port exit that the last [`run`] returned.
pub(crate) fn port_data(vcpu: &mut VcpuFd, page_bytes: usize, index: usize) -> u32 {
    let Some((pointer, size)) = port_element(vcpu, page_bytes, index) else {
        return 0;
    };
    let mut bytes = [0; 4];
    // SAFETY: `port_element` returns `size` ≤ 4 bytes inside the shared page,
    // which the kernel does not touch between runs.
    unsafe { std::ptr::copy_nonoverlapping(pointer, bytes.as_mut_ptr(), size) };
    u32::from_le_bytes(bytes)
}

/// Answers access `index` of the port exit that the last [`run`] returned.
pub(crate) fn set_port_data(vcpu: &mut VcpuFd, page_bytes: usize, index: usize, value: u32) {
    let Some((pointer, size)) = port_element(vcpu, page_bytes, index) else {
        return;
    };
    let bytes = value.to_le_bytes();
    // SAFETY: as in `port_data`.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), pointer, size) };
}

/// Answers the memory read that the last [`run`] returned.
pub(crate) fn set_mmio_data(vcpu: &mut VcpuFd, data: [u8; 8]) {
    vcpu.get_kvm_run().__bindgen_anon_1.mmio.data = data;
}

/// Where access `index` of a port exit lies in the shared page, and its size.
fn port_element(vcpu: &mut VcpuFd, page_bytes: usize, index: usize) -> Option<(*mut u8, usize)> {
    let run = vcpu.get_kvm_run();
    // SAFETY: called after a port exit only, when `io` is the valid field.
    let io = unsafe { run.__bindgen_anon_1.io };
    let size = usize::from(io.size);
    if size > 4 || index >= io.count as usize {
        return None;
    }
    let offset = usize::try_from(io.data_offset).ok()? + index * size;
    (offset + size <= page_bytes).then(|| {
        let page = std::ptr::from_mut(run).cast::<u8>();
        // SAFETY: the mapping that `run` begins has `page_bytes` bytes, and
        // the element ends inside it.
        (unsafe { page.add(offset) }, size)
    })
}

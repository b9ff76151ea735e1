//! How fast the interpreter is, in million guest instructions a second, on a
//! few small loops. Run it in release; the figures mean nothing otherwise.

use std::arch::global_asm;
use std::time::Duration;

use favo_accel::state::{Segment, VcpuState};
use favo_accel::{
    Accelerator, GuestMemory, MemoryBacking, PartitionConfig, VcpuEntry, VcpuExit, VcpuId,
};
use favo_soft::SoftAccelerator;
use favo_types::{ByteCount, GuestAddress};

// Guest programs: RDI points at 1 MiB of memory, ECX counts rounds; a write to
// port 80H ends them. They never run on the host.
global_asm!(
    ".globl favo_speed_alu, favo_speed_alu_end, favo_speed_kernel, favo_speed_kernel_end",
    ".globl favo_speed_sieve, favo_speed_sieve_end, favo_speed_string, favo_speed_string_end",
    "favo_speed_alu:",
    "mov ecx, 20000000",
    "2: add rax, rbx",
    "xor rbx, rcx",
    "lea rdx, [rax + rbx*4 + 17]",
    "shr rdx, 3",
    "and edx, 0xffff",
    "sub rsi, rdx",
    "dec ecx",
    "jnz 2b",
    "out 0x80, al",
    "favo_speed_alu_end:",
    // Calls, pushes, a hash table, a list, compares and branches.
    "favo_speed_kernel:",
    "mov ecx, 3000000",
    "mov r12d, 12345",
    "2: mov esi, r12d",
    "call 3f",
    "test eax, eax",
    "jz 5f",
    "add [rdi + 8], rax",
    "5: imul r12d, r12d, 1103515245",
    "add r12d, 12345",
    "dec ecx",
    "jnz 2b",
    "out 0x80, al",
    "3: push rbx",
    "push rbp",
    "mov ebx, esi",
    "shr ebx, 16",
    "and ebx, 0x3fff",
    "lea rbp, [rdi + rbx*8 + 4096]",
    "mov rax, [rbp]",
    "cmp rax, rsi",
    "je 4f",
    "mov [rbp], rsi",
    "movzx eax, byte ptr [rbp + 1]",
    "inc dword ptr [rdi]",
    "cmp eax, 100",
    "ja 4f",
    "xor eax, eax",
    "4: pop rbp",
    "pop rbx",
    "ret",
    "favo_speed_kernel_end:",
    // A byte sieve.
    "favo_speed_sieve:",
    "mov ecx, 3",
    "9: mov rsi, 2",
    "2: cmp byte ptr [rdi + rsi], 1",
    "je 4f",
    "lea rax, [rsi + rsi]",
    "3: cmp rax, 1000000",
    "jae 4f",
    "mov byte ptr [rdi + rax], 1",
    "add rax, rsi",
    "jmp 3b",
    "4: inc rsi",
    "cmp rsi, 1000000",
    "jb 2b",
    "mov r8, rdi",
    "push rcx",
    "mov ecx, 125000",
    "xor eax, eax",
    "rep stosq",
    "pop rcx",
    "mov rdi, r8",
    "dec ecx",
    "jnz 9b",
    "out 0x80, al",
    "favo_speed_sieve_end:",
    // Short and long copies.
    "favo_speed_string:",
    "mov edx, 200000",
    "mov r8, rdi",
    "2: mov rdi, r8",
    "lea rsi, [r8 + 65536]",
    "mov ecx, 512",
    "rep movsq",
    "mov ecx, 24",
    "rep movsb",
    "mov ecx, 512",
    "xor eax, eax",
    "rep stosq",
    "dec edx",
    "jnz 2b",
    "out 0x80, al",
    "favo_speed_string_end:",
);

macro_rules! program {
    ($start:ident, $end:ident) => {{
        unsafe extern "C" {
            static $start: u8;
            static $end: u8;
        }
        // SAFETY: two labels around bytes that are part of this program.
        unsafe {
            let length = (&raw const $end).offset_from(&raw const $start) as usize;
            std::slice::from_raw_parts(&raw const $start, length)
        }
    }};
}

const CODE: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
const STACK: u64 = 0x40_0000;

/// A processor in long mode, low memory mapped by pages of 4 KiB or 2 MiB.
fn run(name: &str, code: &[u8], small_pages: bool) {
    let engine = SoftAccelerator::new().expect("the soft engine");
    let memory = GuestMemory::new(
        &[(GuestAddress(0), ByteCount::mib(16))],
        MemoryBacking::Anonymous,
    )
    .expect("16 MiB");
    let put = |address: u64, entry: u64| {
        memory
            .write(GuestAddress(address), &entry.to_le_bytes())
            .expect("a page table");
    };
    put(0x1000, 0x2003);
    put(0x2000, 0x3003);
    for page in 0..8 {
        if small_pages {
            put(0x3000 + 8 * page, 0x4003 + 0x1000 * page);
            for entry in 0..512 {
                put(
                    0x4000 + 0x1000 * page + 8 * entry,
                    page << 21 | entry << 12 | 3,
                );
            }
        } else {
            put(0x3000 + 8 * page, page << 21 | 0x83);
        }
    }
    memory.write(GuestAddress(CODE), code).expect("the program");
    let config = PartitionConfig { vcpus: 1, memory };
    let partition = engine.create_partition(config).expect("a partition");
    let cpuid = engine.supported_cpuid().clone();
    let mut vcpu = partition
        .create_vcpu(VcpuId(0), cpuid)
        .expect("a processor");
    let mut state = VcpuState::power_on(0, 0);
    let flat = |access| Segment {
        selector: 0x10,
        base: 0,
        limit: u32::MAX,
        access,
    };
    state.segments.cs = Segment {
        selector: 8,
        ..flat(0xa09b)
    };
    for segment in [
        &mut state.segments.ds,
        &mut state.segments.es,
        &mut state.segments.ss,
        &mut state.segments.fs,
        &mut state.segments.gs,
    ] {
        *segment = flat(0xc093);
    }
    state.control.cr0 = 0x8001_0033;
    state.control.cr3 = 0x1000;
    state.control.cr4 = 0x6a0;
    state.control.efer = 0xd01;
    state.general.rip = CODE;
    state.general.rsp = STACK;
    state.general.rdi = DATA;
    vcpu.import_state(&state).expect("a valid state");

    let start = processor_time();
    let exit = vcpu.run(VcpuEntry::Resume).expect("a run");
    let seconds = (processor_time() - start).as_secs_f64();
    assert!(
        matches!(exit, VcpuExit::PortWrite { port: 0x80, .. }),
        "{exit:?}"
    );
    let counters = vcpu.counters();
    let count = |name| {
        counters
            .iter()
            .find(|c| c.name == name)
            .map_or(0, |c| c.count)
    };
    println!(
        "{name:10} {:8.1} M instructions/s  {:.3} s  {} instructions, {} walks, {} blocks",
        count("instructions") as f64 / seconds / 1e6,
        seconds,
        count("instructions"),
        count("page-walks"),
        count("blocks-decoded"),
    );
}

/// Processor time of this thread: other load on the host counts less.
fn processor_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn main() {
    run("alu", program!(favo_speed_alu, favo_speed_alu_end), false);
    run(
        "kernel",
        program!(favo_speed_kernel, favo_speed_kernel_end),
        false,
    );
    run(
        "kernel-4k",
        program!(favo_speed_kernel, favo_speed_kernel_end),
        true,
    );
    run(
        "sieve",
        program!(favo_speed_sieve, favo_speed_sieve_end),
        false,
    );
    run(
        "sieve-4k",
        program!(favo_speed_sieve, favo_speed_sieve_end),
        true,
    );
    run(
        "string",
        program!(favo_speed_string, favo_speed_string_end),
        false,
    );
}

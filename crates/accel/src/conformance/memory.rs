//! Memory that changes under a processor: code that is written, devices that
//! write, other processors, and the record of who wrote what.

use std::thread::sleep;
use std::time::Duration;

use favo_types::GuestAddress;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::guest::{
    ApicMode, DATA, EXTRA_CODE, Guest, RAM, assemble, done, report, report_constant, sync,
};
use super::harness::{Machine, RESUME, unexpected};
use super::processors::second_state;
use super::{Case, DEADLINE, Failure, expect};
use crate::engine::{Accelerator, VcpuEntry, VcpuExit};
use crate::memory::PAGE_SIZE;

pub(super) const CASES: &[Case] = &[
    Case::new("memory/self-modifying-code", self_modifying),
    Case::new("memory/self-modifying-loop", self_modifying_loop),
    Case::new("memory/code-across-two-pages", code_across_pages),
    Case::new("memory/device-writes-code", device_writes_code),
    Case::new(
        "memory/device-writes-running-code",
        device_writes_running_code,
    ),
    Case::new("memory/another-processor-writes-code", cross_modifying),
    Case::new("memory/locked-increments", locked_increments),
    Case::new("memory/spinlock", spinlock),
    Case::new("memory/stores-stay-in-order", message_passing),
    Case::new("memory/fences-order-stores-and-loads", store_buffering),
    Case::new("memory/dirty-log", dirty_log),
    Case::new("memory/dirty-log-while-running", dirty_log_while_running),
];

/// A function whose result others change.
const FUNCTION: u64 = EXTRA_CODE + 0x4000;

/// `mov eax, value; ret`.
fn function(value: u32) -> Result<Vec<u8>, Failure> {
    assemble(64, FUNCTION, |a| {
        a.mov(eax, value)?;
        a.ret()
    })
}

fn call_function(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rdi, FUNCTION)?;
    a.call(rdi)
}

fn self_modifying(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        call_function(a)?;
        a.mov(esi, eax)?;
        report(a, esi)?;
        // The immediate of its MOV.
        a.mov(dword_ptr(rdi + 1), 2)?;
        a.call(rdi)?;
        a.mov(esi, eax)?;
        report(a, esi)?;
        // A single byte of it.
        a.mov(byte_ptr(rdi + 2), 3)?;
        a.call(rdi)?;
        a.mov(esi, eax)?;
        report(a, esi)?;
        done(a)
    })?;
    guest.put(FUNCTION, &function(1)?)?;
    Machine::new(accelerator, &guest)?.expect_reports(&[1, 2, 0x302])
}

fn self_modifying_loop(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    // Each round changes the instruction that comes right after.
    let guest = Guest::long(|a| {
        let mut again = a.create_label();
        a.xor(esi, esi)?;
        a.mov(ecx, 100)?;
        a.mov(rdi, FUNCTION)?;
        a.set_label(&mut again)?;
        a.mov(dword_ptr(rdi + 1), ecx)?;
        a.call(rdi)?;
        a.add(esi, eax)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        report(a, esi)?;
        done(a)
    })?;
    guest.put(FUNCTION, &function(1)?)?;
    Machine::new(accelerator, &guest)?.expect_reports(&[5050])
}

fn code_across_pages(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    // The MOV's immediate lies across a page's end; first its upper, then its
    // lower half changes.
    const ACROSS: u64 = FUNCTION + 0x1000 - 3;
    let guest = Guest::long(|a| {
        a.mov(rdi, ACROSS)?;
        a.call(rdi)?;
        a.mov(esi, eax)?;
        report(a, esi)?;
        a.mov(word_ptr(rdi + 3), 0x2222)?;
        a.call(rdi)?;
        a.mov(esi, eax)?;
        report(a, esi)?;
        a.mov(word_ptr(rdi + 1), 0x3333)?;
        a.call(rdi)?;
        a.mov(esi, eax)?;
        report(a, esi)?;
        done(a)
    })?;
    guest.put(ACROSS, &function(0x1111_1111)?)?;
    Machine::new(accelerator, &guest)?.expect_reports(&[0x1111_1111, 0x2222_1111, 0x2222_3333])
}

fn device_writes_code(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        for _ in 0..3 {
            call_function(a)?;
            a.mov(esi, eax)?;
            report(a, esi)?;
            sync(a, 0)?;
        }
        done(a)
    })?;
    guest.put(FUNCTION, &function(1)?)?;
    let mut machine = Machine::new(accelerator, &guest)?;
    let mut value = 1;
    machine.run_with(|_, exit| match exit {
        VcpuExit::PortWrite {
            port: super::guest::SYNC,
            ..
        } => {
            value += 1;
            guest.put(FUNCTION, &function(value)?)?;
            Ok(RESUME)
        }
        other => Err(unexpected(other)),
    })?;
    machine.compare_reports(&[1, 2, 3])
}

/// Calls the function for ever and stores what it returned at DATA.
fn call_for_ever(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(rsi, DATA)?;
    a.mov(rdi, FUNCTION)?;
    a.set_label(&mut again)?;
    a.call(rdi)?;
    a.mov(qword_ptr(rsi), rax)?;
    a.jmp(again)
}

/// Waits until the quadword at `address` is `value`.
fn wait_for(guest: &Guest, address: u64, value: u64) -> Result<(), Failure> {
    let begin = std::time::Instant::now();
    while begin.elapsed() < DEADLINE {
        if guest.u64_at(address)? == value {
            return Ok(());
        }
        sleep(Duration::from_micros(200));
    }
    Err(Failure::mismatch(
        format!("the quadword at {address:#x}"),
        value,
        guest.u64_at(address)?,
    ))
}

fn device_writes_running_code(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    let guest = Guest::long(call_for_ever)?;
    guest.put(FUNCTION, &function(1)?)?;
    let machine = Machine::new(accelerator, &guest)?;
    let run = machine.cpus[0].begin_run(VcpuEntry::Resume);
    let outcome = (1..30_u32).try_for_each(|value| {
        guest.put(FUNCTION + 1, &value.to_le_bytes()[..1])?;
        wait_for(&guest, DATA, value.into())
    });
    machine.cpus[0].kicker.kick();
    let exit = run.wait(DEADLINE)??;
    outcome?;
    expect("the exit", VcpuExit::Interrupted, exit)
}

fn cross_modifying(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    // Processor 1 calls; processor 0 writes and waits to see the effect.
    let guest = Guest::long(|a| {
        let mut round = a.create_label();
        let mut again = a.create_label();
        a.mov(rsi, DATA)?;
        a.mov(rdi, FUNCTION)?;
        a.mov(ecx, 1)?;
        a.set_label(&mut round)?;
        a.mov(byte_ptr(rdi + 1), cl)?;
        a.set_label(&mut again)?;
        a.pause()?;
        a.cmp(dword_ptr(rsi), ecx)?;
        a.jne(again)?;
        a.inc(ecx)?;
        a.cmp(ecx, 100)?;
        a.jne(round)?;
        report(a, ecx)?;
        done(a)
    })?;
    guest.code(64, EXTRA_CODE, call_for_ever)?;
    guest.put(FUNCTION, &function(0)?)?;
    with_second(accelerator, &guest, &[100])
}

/// Runs processor 1 from `EXTRA_CODE` beside processor 0, to the latter's end.
fn with_second(
    accelerator: &dyn Accelerator,
    guest: &Guest,
    expected: &[u32],
) -> Result<(), Failure> {
    let mut machine = Machine::with_processors(accelerator, guest, 2)?;
    machine.cpus[0].import(&guest.state)?;
    machine.cpus[1].import(&second_state(guest, ApicMode::XApic, EXTRA_CODE))?;
    let second = machine.cpus[1].begin_run(VcpuEntry::Resume);
    let outcome = machine.expect_reports(expected);
    machine.cpus[1].kicker.kick();
    let exit = second.wait(DEADLINE)??;
    outcome?;
    expect("the second processor's exit", VcpuExit::Interrupted, exit)
}

const ROUNDS: i32 = 5000;
/// Where two processors wait for each other in each round: on a host with one
/// processor each wait costs a time slice.
const MEETINGS: i32 = 100;

/// Does `body` `count` times, then says so at DATA + `done_at`.
fn rounds(
    a: &mut CodeAssembler,
    count: i32,
    done_at: i32,
    mut body: impl FnMut(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.mov(rdi, DATA)?;
    a.mov(r15d, count)?;
    a.set_label(&mut again)?;
    body(a)?;
    a.dec(r15d)?;
    a.jnz(again)?;
    a.mov(dword_ptr(rdi + done_at), 1)
}

/// Waits until DATA + `flag` is not 0.
fn wait_flag(a: &mut CodeAssembler, flag: i32) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.pause()?;
    a.cmp(dword_ptr(rdi + flag), 0)?;
    a.je(again)
}

fn spin(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.set_label(&mut again)?;
    a.pause()?;
    a.jmp(again)
}

/// The same body on both processors; processor 0 reports DATA + 0 in the end.
fn on_both(
    accelerator: &dyn Accelerator,
    body: fn(&mut CodeAssembler) -> Result<(), IcedError>,
    expected: &[u32],
) -> Result<(), Failure> {
    let guest = Guest::long(|a| {
        rounds(a, ROUNDS, 64, body)?;
        wait_flag(a, 128)?;
        a.mov(esi, dword_ptr(rdi))?;
        report(a, esi)?;
        done(a)
    })?;
    guest.code(64, EXTRA_CODE, |a| {
        rounds(a, ROUNDS, 128, body)?;
        spin(a)
    })?;
    with_second(accelerator, &guest, expected)
}

fn locked_increments(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    fn body(a: &mut CodeAssembler) -> Result<(), IcedError> {
        a.lock().inc(qword_ptr(rdi))?;
        a.mov(eax, 1)?;
        a.lock().xadd(qword_ptr(rdi), rax)?;
        a.lock().add(byte_ptr(rdi + 8), 1)
    }
    on_both(accelerator, body, &[4 * ROUNDS as u32])
}

fn spinlock(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    fn body(a: &mut CodeAssembler) -> Result<(), IcedError> {
        let mut again = a.create_label();
        let mut taken = a.create_label();
        // The round begins here too, and an instruction has one label.
        a.nop()?;
        a.set_label(&mut again)?;
        a.xor(eax, eax)?;
        a.mov(ecx, 1)?;
        a.lock().cmpxchg(dword_ptr(rdi + 192), ecx)?;
        a.je(taken)?;
        a.pause()?;
        a.jmp(again)?;
        a.set_label(&mut taken)?;
        // Not atomic: the lock has to do it.
        a.mov(eax, dword_ptr(rdi))?;
        a.inc(eax)?;
        a.mov(dword_ptr(rdi), eax)?;
        a.mov(dword_ptr(rdi + 192), 0)
    }
    on_both(accelerator, body, &[2 * ROUNDS as u32])
}

fn message_passing(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    // Processor 1 writes data, then the flag; processor 0 reads the flag, then
    // data, and must never find the data older.
    let guest = Guest::long(|a| {
        let mut again = a.create_label();
        let mut fine = a.create_label();
        a.mov(rdi, DATA)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut again)?;
        a.mov(eax, dword_ptr(rdi + 64))?;
        a.mov(edx, dword_ptr(rdi + 192))?;
        a.cmp(edx, eax)?;
        a.jae(fine)?;
        a.inc(ecx)?;
        a.set_label(&mut fine)?;
        a.cmp(eax, ROUNDS)?;
        a.jb(again)?;
        a.mov(esi, ecx)?;
        report(a, esi)?;
        done(a)
    })?;
    guest.code(64, EXTRA_CODE, |a| {
        a.xor(eax, eax)?;
        rounds(a, ROUNDS, 256, |a| {
            a.inc(eax)?;
            a.mov(dword_ptr(rdi + 192), eax)?;
            a.mov(dword_ptr(rdi + 64), eax)
        })?;
        spin(a)
    })?;
    with_second(accelerator, &guest, &[0])
}

fn store_buffering(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    // Each round both store to their own word, fence, and read the other's.
    // That both read the old value would be against the fence. They meet at
    // the start of each round.
    fn meet(a: &mut CodeAssembler, mine: i32, other: i32) -> Result<(), IcedError> {
        let mut again = a.create_label();
        a.inc(ebx)?;
        a.mov(dword_ptr(rdi + mine), ebx)?;
        a.set_label(&mut again)?;
        a.pause()?;
        a.cmp(dword_ptr(rdi + other), ebx)?;
        a.jb(again)
    }
    fn body(a: &mut CodeAssembler, own: i32, other: i32) -> Result<(), IcedError> {
        meet(a, own + 64, other + 64)?;
        a.mov(dword_ptr(rdi + own), ebx)?;
        a.mfence()?;
        a.mov(eax, dword_ptr(rdi + other))?;
        a.mov(dword_ptr(rdi + own + 128), eax)?;
        meet(a, own + 64, other + 64)
    }
    const FIRST: i32 = 512;
    const SECOND: i32 = 1024;
    let guest = Guest::long(|a| {
        a.xor(ebx, ebx)?;
        a.xor(r14d, r14d)?;
        rounds(a, MEETINGS, 256, |a| {
            let mut fine = a.create_label();
            body(a, FIRST, SECOND)?;
            // What each stored this round is the counter at its first meeting.
            a.lea(ecx, ptr(rbx - 1))?;
            a.cmp(dword_ptr(rdi + FIRST + 128), ecx)?;
            a.je(fine)?;
            a.cmp(dword_ptr(rdi + SECOND + 128), ecx)?;
            a.je(fine)?;
            a.inc(r14d)?;
            a.set_label(&mut fine)?;
            meet(a, FIRST + 64, SECOND + 64)
        })?;
        report(a, r14d)?;
        done(a)
    })?;
    guest.code(64, EXTRA_CODE, |a| {
        a.xor(ebx, ebx)?;
        rounds(a, MEETINGS, 260, |a| {
            body(a, SECOND, FIRST)?;
            meet(a, SECOND + 64, FIRST + 64)
        })?;
        spin(a)
    })?;
    with_second(accelerator, &guest, &[0])
}

fn dirty_log(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    const PAGES: u64 = 0x30_0000;
    let guest = Guest::long(|a| {
        a.mov(rdi, PAGES)?;
        // Touched before the log begins.
        a.mov(dword_ptr(rdi), 1)?;
        a.mov(dword_ptr(rdi + 0x5000), 1)?;
        sync(a, 0)?;
        a.mov(rdi, PAGES)?;
        a.mov(eax, dword_ptr(rdi))?;
        a.mov(dword_ptr(rdi + 0x1000), 1)?;
        a.mov(dword_ptr(rdi + 0x5000), 1)?;
        // Two pages with one store.
        a.mov(qword_ptr(rdi + 0x8ffc), rax)?;
        sync(a, 1)?;
        a.mov(rdi, PAGES)?;
        a.mov(dword_ptr(rdi + 0x5000), 2)?;
        sync(a, 2)?;
        a.mov(rdi, PAGES)?;
        a.mov(dword_ptr(rdi + 0x6000), 2)?;
        report_constant(a, 1)?;
        done(a)
    })?;
    let mut machine = Machine::new(accelerator, &guest)?;
    let log = machine.partition.clone();
    let log = log
        .dirty_log()
        .ok_or(Failure::Skipped("the engine has no dirty log".into()))?;
    // The tables' accessed bits are the processor's own writes.
    let taken = || {
        let pages: Vec<u64> = log
            .take()?
            .into_iter()
            .map(|page| page.0)
            .filter(|page| *page >= DATA)
            .collect();
        Ok::<_, Failure>(pages)
    };
    let page = |number: u64| PAGES + number * PAGE_SIZE;

    machine.run_to_sync()?;
    log.start()?;
    expect("at the start", Vec::<u64>::new(), taken()?)?;
    machine.run_to_sync()?;
    guest.put(page(3) + 0xfff, &[1, 2])?;
    guest.memory.mark_written(GuestAddress(page(0x20)), 1);
    expect(
        "the guest's and the device's pages",
        [1, 3, 4, 5, 8, 9, 0x20].map(page).to_vec(),
        taken()?,
    )?;
    expect("nothing since", Vec::<u64>::new(), taken()?)?;
    machine.run_to_sync()?;
    guest.put(RAM - 1, &[1])?;
    expect("written again", vec![page(5), RAM - PAGE_SIZE], taken()?)?;
    log.stop()?;
    machine.expect_reports(&[1])?;
    log.start()?;
    expect(
        "what was written with the log off",
        Vec::<u64>::new(),
        taken()?,
    )?;
    log.stop()?;
    Ok(())
}

fn dirty_log_while_running(accelerator: &dyn Accelerator) -> Result<(), Failure> {
    // The guest counts in a page for ever. Whatever it wrote before a take
    // that followed a copy must show in this take or the next.
    const PAGE: u64 = 0x30_0000;
    let guest = Guest::long(|a| {
        let mut again = a.create_label();
        a.mov(rdi, PAGE)?;
        a.set_label(&mut again)?;
        a.inc(qword_ptr(rdi))?;
        a.jmp(again)
    })?;
    let machine = Machine::new(accelerator, &guest)?;
    let Some(log) = machine.partition.dirty_log() else {
        return Err(Failure::Skipped("the engine has no dirty log".into()));
    };
    let run = machine.cpus[0].begin_run(VcpuEntry::Resume);
    let outcome = (|| {
        log.start()?;
        let mut copied = guest.u64_at(PAGE)?;
        for _ in 0..50 {
            sleep(Duration::from_millis(1));
            if log.take()?.contains(&GuestAddress(PAGE)) {
                copied = guest.u64_at(PAGE)?;
            }
        }
        Ok::<_, Failure>(copied)
    })();
    machine.cpus[0].kicker.kick();
    run.wait(DEADLINE)??;
    let mut copied = outcome?;
    if log.take()?.contains(&GuestAddress(PAGE)) {
        copied = guest.u64_at(PAGE)?;
    }
    expect("the copy after the last take", guest.u64_at(PAGE)?, copied)?;
    log.stop()?;
    Ok(())
}

#![no_main]
//! Any bytes as code, in every mode, interpreted and translated: no panic, no
//! unbounded work.

use favo_soft::testing::TestCpu;
use favo_soft::trap::Trap;

/// Instructions or blocks before a run is over, however it goes on.
const STEPS: usize = 64;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((mode, code)) = bytes.split_first() else { return };
    let mut cpu = match mode % 4 {
        0 => TestCpu::real_mode(),
        1 => TestCpu::protected_mode(),
        2 => TestCpu::long_mode(),
        _ => TestCpu::user_mode(),
    };
    cpu.load(&code[..code.len().min(2048)]);
    if mode & 4 != 0 {
        cpu.translate_at_once();
        for _ in 0..STEPS {
            match cpu.cpu.run(Some(0)) {
                Trap::EndBlock => {}
                Trap::Exception(exception) if cpu.cpu.deliver_exception(exception).is_ok() => {}
                _ => break,
            }
        }
        return;
    }
    for _ in 0..STEPS {
        match cpu.step() {
            Ok(()) | Err(Trap::EndBlock) => {}
            Err(Trap::Exception(exception)) if cpu.cpu.deliver_exception(exception).is_ok() => {}
            Err(_) => break,
        }
    }
});

//! What the end-to-end tests share: the favo program, and guests of a few
//! instructions.
#![forbid(unsafe_code)]

pub mod trace;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The favo program of this build, made if it isn't there.
pub fn favo_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "favo"]);
        let status = build
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "favo can't be built"
        );
        // This test is <target>/debug/deps/<name>.
        let own = std::env::current_exe().unwrap_or_default();
        own.ancestors()
            .nth(2)
            .unwrap_or(Path::new("."))
            .join("favo")
    })
}

/// favo with a state directory of its own.
pub fn favo(state: &Path) -> Command {
    let mut command = Command::new(favo_program());
    command.env("FAVO_STATE_DIR", state).env_remove("FAVO_LOG");
    command
}

/// Builds an image, or prints why that can't be done here.
pub fn has_image(state: &Path, image: &str) -> bool {
    let output = favo(state).args(["image", "build", image]).output();
    let output = output.expect("favo can be started");
    let error = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return true;
    }
    let is_missing = error.contains("not installed") || error.contains("not configured");
    assert!(is_missing, "{error}");
    println!("skipped: {error}");
    false
}

/// `mov dx, port; mov al, value; out dx, al`
pub fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// Says `text` on the serial console.
pub fn say(text: &str) -> Vec<u8> {
    text.bytes().flat_map(|byte| out(0x3f8, byte)).collect()
}

/// Powers the machine off (ACPI S5).
pub fn power_off() -> Vec<u8> {
    out(0x600, 0x34)
}

/// `jmp $`
pub const FOREVER: [u8; 2] = [0xeb, 0xfe];

/// `lidt` of an IDT without entries, then `ud2`.
pub const TRIPLE_FAULT: [u8; 9] = [0x0f, 0x01, 0x1d, 2, 0, 0, 0, 0x0f, 0x0b];

/// An ELF kernel of this code, loaded and entered at 1 MiB; sixteen zero bytes
/// follow the code.
pub fn elf(code: &[u8]) -> Vec<u8> {
    let size = code.len() as u64 + 16;
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(2u16.to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for word in [0x10_0000u64, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    file.extend(5u32.to_le_bytes());
    for word in [120u64, 0x10_0000, 0x10_0000, size, 4096, 4096] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file.extend([0; 16]);
    file
}

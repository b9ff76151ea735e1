//! Shows what guest code becomes:
//! `cargo run -p favo-soft --features difftest --example unit -- 4801c8 c3`

use favo_soft::testing::{CODE, TestCpu};
use iced_x86::{Decoder, DecoderOptions};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let text: String = std::env::args().skip(1).collect();
    let bytes = text
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair)?, 16).map_err(Into::into))
        .collect::<Result<Vec<u8>, Box<dyn std::error::Error>>>()?;
    if bytes.is_empty() {
        return Err("give the bytes of some 64-bit code, in hexadecimal".into());
    }
    println!("guest:");
    print(&bytes, CODE);
    let mut machine = TestCpu::long_mode();
    machine.load(&bytes);
    let (start, code) = machine
        .translation()
        .ok_or("this host can't translate, or not this code")?;
    println!("\nhost, {} bytes:", code.len());
    print(&code, start);
    Ok(())
}

fn print(bytes: &[u8], start: u64) {
    for instruction in Decoder::with_ip(64, bytes, start, DecoderOptions::AMD) {
        println!("{:10x}  {instruction}", instruction.ip());
    }
}

#![no_main]
//! Packets from a guest, its neighbours and beyond, in any order.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    favo_net::fuzz::program(bytes);
});

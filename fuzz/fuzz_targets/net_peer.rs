#![no_main]
//! Messages from the other processes of a network.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    favo_net::fuzz::peer(bytes);
});

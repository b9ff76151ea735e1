#![no_main]
//! TCP segments to the gateway: DNS and metadata over a real stack.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    favo_net::fuzz::gateway_tcp(bytes);
});

#![no_main]
//! Messages to the gateway's DNS and metadata services.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    favo_net::fuzz::services(bytes);
});

#![no_main]
//! Any access to the device, in any order.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    favo_devices::fuzz::power(bytes);
});

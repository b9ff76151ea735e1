#![no_main]
//! Any access to the transport's registers.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    favo_devices::virtio::fuzzing::fuzz_pci(bytes);
});

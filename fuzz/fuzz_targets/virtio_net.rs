#![no_main]
//! A driver that writes anything to rings and registers, on a busy network.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    favo_devices::virtio::fuzzing::fuzz_net(bytes);
});

#![no_main]
//! Requests to a port: DHCP, DHCPv6, neighbour discovery, echoes, ARP.

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    favo_net::fuzz::answers(bytes);
});

use super::*;
use crate::boot::dhcp::test::lease;

#[test]
fn a_hardware_address_is_read() {
    assert_eq!(
        parse_hardware_address("02:00:0a:ff:00:01"),
        Some([2, 0, 10, 255, 0, 1])
    );
    for wrong in ["", "02:00", "02:00:0a:ff:00:01:02", "02:00:0a:ff:00:xx"] {
        assert_eq!(parse_hardware_address(wrong), None);
    }
}

#[test]
fn resolv_conf_names_servers_and_the_domain() {
    assert_eq!(
        resolv_conf(&[lease()]),
        "search vm.internal\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n"
    );
}

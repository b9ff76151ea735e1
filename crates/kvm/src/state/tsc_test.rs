use super::*;

const SECOND: u64 = 1_000_000;

#[test]
fn processors_that_are_close_share_one_offset() {
    let machine = MachineOffset::default();
    assert_eq!(machine.agree(VcpuId(0), 5, SECOND), 5);
    assert_eq!(machine.agree(VcpuId(1), 900, SECOND), 5);
    // Below zero is as near as above.
    assert_eq!(machine.agree(VcpuId(2), 5_u64.wrapping_sub(900), SECOND), 5);
}

#[test]
fn a_processor_that_is_far_away_or_alone_keeps_its_own() {
    let machine = MachineOffset::default();
    machine.agree(VcpuId(0), 0, SECOND);
    assert_eq!(machine.agree(VcpuId(0), 77, SECOND), 77);
    assert_eq!(machine.agree(VcpuId(1), 5 * SECOND, SECOND), 5 * SECOND);
}

use super::*;

#[test]
fn extended_destinations_move_to_the_upper_half() {
    let extended = |address| extend_destination(Msi { address, data: 7 });
    let same = Msi {
        address: 0xfee4_400c,
        data: 7,
    };
    assert_eq!(extended(0xfee4_400c), same);
    // Processor 0x1244: 0x12 above, 0x44 where it always is.
    assert_eq!(
        extended(0xfee4_4000 | 0x12 << 5),
        Msi {
            address: 0x1200_fee4_4000,
            data: 7
        }
    );
}

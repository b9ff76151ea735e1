use favo_types::ByteCount;

use super::*;

#[test]
fn the_memory_map_leaves_out_what_is_taken() {
    let map = MemoryMap::new(ByteCount::gib(4), 48).unwrap();
    use RangeKind::{Ram, Reserved};
    assert_eq!(
        memory_map(&map),
        [
            (0..0xa_0000, Ram),
            (0xa_0000..0x10_0000, Reserved),
            (0x10_0000..0xc000_0000, Ram),
            (0xe000_0000..0xe010_0000, Reserved),
            (0x1_0000_0000..0x1_4000_0000, Ram),
        ]
    );
}

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn no_device_minds_garbage(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
        serial(&bytes);
        rtc(&bytes);
        ioapic(&bytes);
        power(&bytes);
        pci(&bytes);
    }
}

#[test]
fn accesses_stay_within_the_device() {
    struct Bounded;
    impl BusDevice for Bounded {
        fn read(&self, offset: u64, size: AccessSize) -> u64 {
            assert!(offset + size.bytes() as u64 <= 5);
            0
        }
        fn write(&self, offset: u64, size: AccessSize, _value: u64) {
            self.read(offset, size);
        }
    }
    let bytes: Vec<u8> = (0..=255).cycle().take(13 * 256).collect();
    drive(&Bounded, 5, &bytes);
    drive(&Bounded, 0, &bytes);
}

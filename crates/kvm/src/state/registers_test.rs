use super::*;

#[test]
fn a_segment_survives_the_way_to_kvm_and_back() {
    for access in [0x93, 0x9b, 0xa09b, 0xc0f3, 0x8b, 0x82, Segment::UNUSABLE] {
        let canonical = Segment {
            selector: 0x2b,
            base: 0x1234_5678_9abc,
            limit: 0xf_ffff,
            access,
        };
        assert_eq!(segment(&kvm_segment_of(&canonical)), canonical);
    }
}

use super::*;

fn patterned() -> FpuState {
    FpuState {
        fcw: 0x27f,
        fsw: 0x3800,
        ftw: 0x81,
        fop: 0x123,
        fip: 0x1234_5678_9abc,
        fdp: 0xfedc_ba98_7654,
        st: std::array::from_fn(|register| [register as u8 + 1; 10]),
        mxcsr: 0x1fa0,
        ymm: std::array::from_fn(|register| {
            std::array::from_fn(|byte| (register * 32 + byte) as u8)
        }),
    }
}

#[test]
fn every_register_survives_the_way_to_kvm_and_back() {
    let fpu = patterned();
    let area = Area::encode(&fpu).to_kvm();
    assert_eq!(Area::from_kvm(&area).decode(), fpu);
}

#[test]
fn an_absent_component_is_in_its_initial_state() {
    let mut area = Area::encode(&patterned());
    area.put(PRESENT, &SSE.to_le_bytes());
    let fpu = area.decode();
    assert_eq!(fpu.fcw, 0x37f);
    assert_eq!(fpu.st, [[0; 10]; 8]);
    assert_eq!(fpu.ymm[3][..16], patterned().ymm[3][..16]);
    assert_eq!(fpu.ymm[3][16..], [0; 16]);
}

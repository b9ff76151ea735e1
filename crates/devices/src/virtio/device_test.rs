use super::*;

#[test]
fn a_state_survives_and_a_foreign_one_is_refused() {
    let state = DeviceState::encode(DeviceType::Entropy, 1, &(7u32, true)).unwrap();
    assert_eq!(
        state.decode::<(u32, bool)>(DeviceType::Entropy, 1).unwrap(),
        (7, true)
    );
    assert!(state.decode::<(u32, bool)>(DeviceType::Block, 1).is_err());
    let newer = DeviceState {
        version: 2,
        ..state.clone()
    };
    assert!(newer.decode::<(u32, bool)>(DeviceType::Entropy, 1).is_err());
    let mut longer = state.clone();
    longer.payload.push(0);
    let error = longer
        .decode::<(u32, bool)>(DeviceType::Entropy, 1)
        .unwrap_err();
    assert!(error.to_string().contains("left over"), "{error}");
}

#[test]
fn config_reads_as_zero_behind_its_end() {
    let mut data = [9; 4];
    read_config_bytes(&[1, 2, 3], 1, &mut data);
    assert_eq!(data, [2, 3, 0, 0]);
    read_config_bytes(&[1, 2, 3], u32::MAX, &mut data);
    assert_eq!(data, [0; 4]);
}

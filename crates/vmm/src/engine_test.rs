use super::*;

fn refused() -> Result<u64, String> {
    Err("the kvm engine can't run here: there is no /dev/kvm".to_owned())
}

#[test]
fn the_faster_engine_is_taken_and_the_reason_names_both() {
    let (index, reason) = choose(&[
        (EngineKind::Kvm, Ok(1_600_000)),
        (EngineKind::Soft, Ok(120_000_000)),
    ]);
    assert_eq!(index, Some(1));
    assert_eq!(
        reason,
        "it runs 120 million instructions a second; kvm does 1.6 million"
    );
    let (index, _) = choose(&[
        (EngineKind::Kvm, Ok(3_000_000_000)),
        (EngineKind::Soft, Ok(120_000_000)),
    ]);
    assert_eq!(index, Some(0));
}

#[test]
fn an_engine_that_is_not_there_is_said_to_be_missing() {
    let (index, reason) = choose(&[
        (EngineKind::Kvm, refused()),
        (EngineKind::Soft, Ok(50_000_000)),
    ]);
    assert_eq!(index, Some(1));
    assert!(reason.contains("there is no /dev/kvm"), "{reason}");
    assert_eq!(choose(&[(EngineKind::Kvm, refused())]).0, None);
}

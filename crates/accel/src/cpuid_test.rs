use super::*;

fn result(eax: u32) -> CpuidResult {
    CpuidResult {
        eax,
        ..Default::default()
    }
}

#[test]
fn a_leaf_without_subleaves_ignores_the_index() {
    let mut table = CpuidTable::new();
    table.set(1, None, result(7));
    assert_eq!(table.get(1, 0).eax, 7);
    assert_eq!(table.get(1, 99).eax, 7);
}

#[test]
fn subleaves_are_told_apart_and_missing_ones_read_as_zero() {
    let mut table = CpuidTable::new();
    table.set(7, Some(0), result(1));
    table.set(7, Some(1), result(2));
    table.set(7, Some(1), result(3));
    assert_eq!(table.get(7, 0).eax, 1);
    assert_eq!(table.get(7, 1).eax, 3);
    assert_eq!(table.get(7, 2), CpuidResult::default());
    assert_eq!(table.leaves().len(), 2);
}

#[test]
fn the_host_answers() {
    assert!(host(0, 0).eax >= 1);
}

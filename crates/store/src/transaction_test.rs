use super::*;

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn prefix(text: &str) -> Operation {
    Operation::DeletePrefix(Prefix::new(text).unwrap())
}

#[test]
fn a_key_is_written_once() {
    let put = |text| Operation::put(&key(text), "");
    let twice = |list: Vec<Operation>| {
        let as_then = Transaction::always(list.clone()).check();
        let as_otherwise = Transaction {
            otherwise: list,
            ..Transaction::default()
        }
        .check();
        assert_eq!(as_then, as_otherwise);
        as_then.is_err()
    };
    assert!(twice(vec![put("a"), put("a")]));
    assert!(twice(vec![put("a"), Operation::Delete(key("a"))]));
    assert!(twice(vec![prefix("a"), put("ab")]));
    assert!(twice(vec![put("ab"), prefix("")]));
    assert!(twice(vec![prefix("ab"), prefix("a")]));
    assert!(!twice(vec![put("a"), put("b"), prefix("c"), prefix("d")]));
    assert!(!twice(vec![put("a"), Operation::Get(key("a"))]));
    // One list each: only one of them is done.
    let both = Transaction::always([put("a")]).otherwise(put("a"));
    assert_eq!(both.check(), Ok(()));
}

#[test]
fn a_transaction_has_bounds() {
    let many = (0..129).map(|n| Operation::put(&key(&format!("{n}")), ""));
    assert_eq!(
        Transaction::always(many.collect::<Vec<_>>()).check(),
        Err(InvalidTransaction::TooLong(129))
    );
    let large = vec![0; Transaction::LARGEST];
    assert_eq!(
        Transaction::always([Operation::put(&key("k"), large)]).check(),
        Err(InvalidTransaction::TooLarge(Transaction::LARGEST + 1))
    );
}

#[test]
fn a_missing_key_is_zero_and_has_no_value() {
    assert!(Condition::absent(&key("k")).holds(None));
    assert!(!Condition::exists(&key("k")).holds(None));
    let mut other = Condition::value(&key("k"), "x");
    other.relation = Relation::NotEqual;
    assert!(!other.holds(None));
    assert!(other.holds(Some((Revision(2), Revision(2), 1, b"y"))));
}

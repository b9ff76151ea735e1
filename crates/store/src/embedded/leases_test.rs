use super::*;

#[test]
fn a_lease_ends_on_time_and_not_before() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let (a, b) = (LeaseId(1), LeaseId(2));
    let mut leases = Leases::default();
    leases.insert(a, 10, start);
    leases.insert(b, 5, start);
    assert_eq!(leases.next(), Some(at(5)));
    assert!(leases.keep_alive(b, at(4)));
    assert_eq!(leases.next(), Some(at(9)));
    assert_eq!(leases.due(at(8)), []);
    assert_eq!(leases.due(at(9)), [b]);
    // Due and not yet swept: too late to be kept.
    assert!(!leases.lives(b, at(9)));
    assert!(!leases.keep_alive(b, at(9)));
    assert_eq!(leases.due(at(9)), [b]);
    assert!(leases.lives(a, at(9)));
    leases.remove(b);
    assert_eq!(leases.due(at(20)), [a]);
    leases.remove(a);
    assert_eq!(leases.next(), None);
    assert!(!leases.keep_alive(a, start));
}

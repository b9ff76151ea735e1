use proptest::prelude::*;

use super::*;

fn rate(per_second: u64, burst: u64) -> Rate {
    Rate { per_second, burst }
}

#[test]
fn a_burst_passes_at_once_and_then_the_rate_holds() {
    let start = Instant::now();
    let limit = RateLimit {
        packets: Some(rate(10, 3)),
        ..RateLimit::default()
    };
    let mut limiter = Limiter::new(limit, start);
    for _ in 0..3 {
        limiter.permit(start).unwrap();
        limiter.charge(1500);
    }
    let again = limiter.permit(start).unwrap_err();
    assert_eq!(again, start + Duration::from_millis(100));
    limiter.permit(again).unwrap();
    limiter.charge(1500);
    let next = limiter.permit(again).unwrap_err();
    assert!(next >= start + Duration::from_millis(100));
}

#[test]
fn a_frame_larger_than_the_burst_passes_and_is_paid_for() {
    let start = Instant::now();
    let limit = RateLimit {
        bytes: Some(rate(100_000, 1000)),
        ..RateLimit::default()
    };
    let mut limiter = Limiter::new(limit, start);
    limiter.permit(start).unwrap();
    limiter.charge(21_000);
    assert!(limiter.permit(start + Duration::from_millis(199)).is_err());
    assert!(limiter.permit(start + Duration::from_millis(201)).is_ok());
}

#[test]
fn a_limit_of_zero_is_refused() {
    let limit = RateLimit {
        bytes: Some(rate(0, 1)),
        packets: None,
    };
    assert!(limit.check().is_err());
    assert!(RateLimit::default().check().is_ok());
    assert!(Limiter::default().is_unlimited());
}

proptest! {
    /// Over any run of frames and pauses no more passes than the rate gives,
    /// beside the burst and one frame in debt; and whoever waits as told gets
    /// through.
    #[test]
    fn never_more_than_the_rate(
        per_second in 1u64..1_000_000_000, burst in 1u64..1_000_000,
        steps in prop::collection::vec((0u64..50_000_000, 1usize..65_000), 1..200),
    ) {
        let start = Instant::now();
        let limit = RateLimit { bytes: Some(rate(per_second, burst)), packets: None };
        let mut limiter = Limiter::new(limit, start);
        let mut now = start;
        let mut passed = 0u128;
        for (pause, length) in steps {
            now += Duration::from_nanos(pause);
            for _ in 0..3 {
                match limiter.permit(now) {
                    Ok(()) => {
                        limiter.charge(length);
                        passed += length as u128;
                        break;
                    }
                    Err(at) => {
                        prop_assert!(at > now);
                        now = at;
                    }
                }
            }
            let given = (now - start).as_nanos() * u128::from(per_second) / 1_000_000_000;
            prop_assert!(passed <= given + u128::from(burst) + 65_000);
        }
    }
}

use super::*;

#[test]
fn ticks_and_nanoseconds_agree() {
    for khz in [100_000, 999_999, 1_000_000, 2_596_134, 5_000_000] {
        let scale = Scale::for_khz(khz);
        for seconds in [1u64, 3600, 86_400 * 30] {
            let nanoseconds = scale.nanoseconds(u64::from(khz) * 1000 * seconds);
            let error = nanoseconds.abs_diff(seconds * 1_000_000_000);
            // One part in a thousand million.
            assert!(
                error <= 2 * seconds,
                "{khz} kHz, {seconds} s: off by {error} ns"
            );
        }
        assert_eq!(ticks(1_000_000, khz), u64::from(khz));
    }
}

#[test]
fn the_host_counter_runs_at_the_frequency_we_believe() {
    let (start, from) = (Instant::now(), host_tsc());
    std::thread::sleep(Duration::from_millis(50));
    let believed = Scale::for_khz(tsc_khz()).nanoseconds(host_tsc() - from);
    let measured = start.elapsed().as_nanos() as u64;
    assert!(
        believed.abs_diff(measured) < measured / 100,
        "{believed} {measured}"
    );
}

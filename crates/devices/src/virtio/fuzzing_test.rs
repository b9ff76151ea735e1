use proptest::prelude::*;

use super::*;

/// `PROPTEST_CASES` asks for a longer run.
fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok();
    ProptestConfig::with_cases(cases.and_then(|cases| cases.parse().ok()).unwrap_or(48))
}

fn input() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..3000)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn rng_survives(input in input()) {
        fuzz_rng(&input);
    }

    #[test]
    fn balloon_survives(input in input()) {
        fuzz_balloon(&input);
    }

    #[test]
    fn console_survives(input in input()) {
        fuzz_console(&input);
    }

    #[test]
    fn vsock_survives(input in input()) {
        fuzz_vsock(&input);
    }

    #[test]
    fn blk_survives(input in input()) {
        fuzz_blk(&input);
    }

    #[test]
    fn net_survives(input in input()) {
        fuzz_net(&input);
    }

    #[test]
    fn pci_survives(input in input()) {
        fuzz_pci(&input);
    }
}

/// The inputs above are worth something only if they come deep into a device.
#[test]
fn inputs_reach_every_part_of_a_device() {
    let total = |fuzz: fn(&[u8]) -> Vec<EventCounter>, names: &[&str]| {
        let mut seed = 0x2545_f491_4f6c_dd1du64;
        let mut counts = vec![0; names.len()];
        for _ in 0..40 {
            let input: Vec<u8> = (0..3000)
                .map(|_| {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    (seed >> 32) as u8
                })
                .collect();
            for counter in fuzz(&input) {
                if let Some(at) = names.iter().position(|name| *name == counter.name) {
                    counts[at] += counter.count;
                }
            }
        }
        for (name, count) in names.iter().zip(counts) {
            assert!(count > 0, "no input led to {name}");
        }
    };
    total(fuzz_rng, &["malformed-chains", "broken-queues"]);
    total(
        fuzz_balloon,
        &[
            "discarded-bytes",
            "reported-free-bytes",
            "pages-outside-ram",
        ],
    );
    total(fuzz_console, &["malformed-chains", "broken-queues"]);
    total(
        fuzz_blk,
        &["read-bytes", "written-bytes", "flushes", "errors"],
    );
    total(
        fuzz_net,
        &[
            "frames-to-guest",
            "frames-from-guest",
            "dropped-from-guest",
            "dropped-to-guest",
            "malformed-chains",
        ],
    );
    total(
        fuzz_vsock,
        &["connections", "bytes-from-guest", "resets-sent"],
    );
}

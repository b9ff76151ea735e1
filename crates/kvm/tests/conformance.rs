//! The conformance suite on this host's KVM. `CONFORMANCE=words` runs only the
//! cases whose name contains it; with `REQUIRE_KVM` a host without KVM is a
//! failure, not a skip.

use favo_accel::conformance;
use favo_kvm::KvmAccelerator;

#[test]
fn every_tiny_guest_runs_as_on_a_processor() {
    let accelerator = match KvmAccelerator::open() {
        Ok(accelerator) => accelerator,
        Err(reason) => {
            assert!(std::env::var_os("REQUIRE_KVM").is_none(), "{reason}");
            println!("skipped: {reason}");
            return;
        }
    };
    let filter = std::env::var("CONFORMANCE").unwrap_or_default();
    let failed = conformance::run_all(&accelerator, &filter);
    assert!(failed.is_empty(), "failed: {failed:?}");
}

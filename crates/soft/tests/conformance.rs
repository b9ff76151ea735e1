//! The engine conformance suite on the software CPU. `CONFORMANCE=words` runs
//! only the cases whose name contains it.

use favo_accel::conformance;
use favo_soft::SoftAccelerator;

#[test]
fn every_tiny_guest_runs_as_on_a_processor() {
    let accelerator = SoftAccelerator::new().expect("the software engine is always there");
    let filter = std::env::var("CONFORMANCE").unwrap_or_default();
    let failed = conformance::run_all(&accelerator, &filter);
    assert!(failed.is_empty(), "failed: {failed:?}");
}

//! The probe on this host's KVM.

use favo_accel::probe;
use favo_kvm::KvmAccelerator;

#[test]
fn the_probe_says_how_fast_kvm_is() {
    match KvmAccelerator::open() {
        Ok(accelerator) => {
            let speed = probe(&accelerator).expect("the probe guest counts");
            println!("{} instructions/s", speed.instructions_per_second);
            assert!(speed.instructions_per_second > 0);
        }
        Err(reason) => {
            assert!(std::env::var_os("REQUIRE_KVM").is_none(), "{reason}");
            println!("skipped: {reason}");
        }
    }
}

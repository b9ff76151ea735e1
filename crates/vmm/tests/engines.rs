//! A running guest moves from one engine to the other and back, and does not
//! notice.

use favo_accel::conformance::{self, Failure};
use favo_kvm::KvmAccelerator;
use favo_soft::SoftAccelerator;

#[test]
fn a_running_guest_moves_from_soft_to_kvm_and_back() {
    let soft = SoftAccelerator::new().expect("the software engine is always there");
    let kvm = match KvmAccelerator::open() {
        Ok(kvm) => kvm,
        Err(reason) => {
            println!("skipped: {reason}");
            return;
        }
    };
    for outcome in [
        conformance::move_between(&soft, &kvm),
        conformance::move_between(&kvm, &soft),
    ] {
        match outcome {
            Ok(()) => {}
            Err(Failure::Skipped(reason)) => println!("skipped: {reason}"),
            Err(failure) => panic!("{failure}"),
        }
    }
}

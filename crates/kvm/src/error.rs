//! KVM's errors as favo's.

use std::io;

use favo_accel::AccelError;

/// Says what was being done when KVM refused; for `map_err`.
pub(crate) fn host(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> AccelError {
    move |error| AccelError::Host {
        operation,
        source: io::Error::from_raw_os_error(error.errno()),
    }
}

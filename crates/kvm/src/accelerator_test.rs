use super::*;

#[test]
fn a_missing_device_names_the_modules() {
    let reason = open_reason(libc::ENOENT);
    assert!(
        reason.contains("kvm_intel") && reason.contains("soft engine"),
        "{reason}"
    );
}

#[test]
fn a_forbidden_device_names_the_group() {
    let reason = open_reason(libc::EACCES);
    assert!(reason.contains("group kvm"), "{reason}");
}

#[test]
fn any_other_error_is_quoted() {
    let reason = open_reason(libc::EMFILE);
    assert!(reason.contains("Too many open files"), "{reason}");
}

use super::*;

fn refusal(change: impl FnOnce(&mut VcpuState)) -> String {
    let mut state = VcpuState::power_on(0, 0);
    change(&mut state);
    match state.validate() {
        Err(AccelError::InvalidState(reason)) => reason,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn power_on_is_a_valid_state() {
    for id in 0..3 {
        VcpuState::power_on(id, 0x123).validate().unwrap();
    }
}

#[test]
fn impossible_states_are_refused_by_name() {
    type Change = fn(&mut VcpuState);
    let cases: [(&str, Change); 11] = [
        ("version", |state| state.version += 1),
        ("paging without protection", |state| {
            state.control.cr0 |= CR0_PG
        }),
        ("EFER.LMA", |state| state.control.efer |= EFER_LMA),
        ("CR4", |state| state.control.cr4 |= 1 << 40),
        ("RFLAGS", |state| state.general.rflags |= 1 << 3),
        ("LSTAR", |state| state.msrs.lstar = 1 << 60),
        ("x2APIC", |state| state.msrs.apic_base = 0xfee0_0400),
        ("PAT", |state| state.msrs.pat = 2),
        ("vector 2", |state| {
            state.events.exception = Some(PendingException {
                vector: 2,
                error_code: None,
            });
        }),
        ("MXCSR", |state| state.fpu.mxcsr = 1 << 20),
        ("XCR0", |state| state.control.xcr0 = 5),
    ];
    for (word, change) in cases {
        let reason = refusal(change);
        assert!(reason.contains(word), "{word}: {reason}");
    }
}

use super::*;

/// A thread that the launcher starts may do all that its kind may: the kernel
/// asks the launcher's filter, too.
#[test]
fn the_launcher_may_do_what_those_may_that_it_starts() {
    let launcher = rules(ThreadKind::Launcher);
    for kind in [ThreadKind::Device, ThreadKind::Disk, ThreadKind::Timer] {
        for rule in rules(kind) {
            let found = launcher.iter().any(|other| {
                other.call == rule.call
                    && other.action == rule.action
                    && (other.when.is_empty() || other.when == rule.when)
            });
            assert!(found, "{rule:?} of {kind:?}");
        }
    }
}

/// Whoever takes over any thread can have all of them act.
#[test]
fn no_thread_may_do_what_leads_out() {
    for kind in ThreadKind::ALL {
        for rule in rules(kind) {
            let forbidden = [
                Sysno::execve,
                Sysno::execveat,
                Sysno::fork,
                Sysno::vfork,
                Sysno::ptrace,
                Sysno::process_vm_readv,
                Sysno::process_vm_writev,
                Sysno::kill,
                Sysno::tkill,
                Sysno::pidfd_send_signal,
                Sysno::open,
                Sysno::openat2,
                Sysno::creat,
                Sysno::mount,
                Sysno::unshare,
                Sysno::setns,
                Sysno::bpf,
                Sysno::userfaultfd,
                Sysno::keyctl,
                Sysno::memfd_create,
            ];
            assert!(!forbidden.contains(&rule.call), "{rule:?} of {kind:?}");
            if rule.call == Sysno::clone {
                assert!(!rule.when.is_empty());
            }
            let writes = [0, 0, libc::O_WRONLY as u64, 0, 0, 0];
            let opens =
                rule.action == Action::Allow && rule.matches(Sysno::openat.id() as u64, &writes, 1);
            assert!(!opens, "{rule:?} of {kind:?}");
            for call in [Sysno::mmap, Sysno::mprotect, Sysno::pkey_mprotect] {
                let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
                let executable = [0, 4096, libc::PROT_EXEC as u64, flags, 0, 0];
                assert!(
                    !rule.matches(call.id() as u64, &executable, 1),
                    "{rule:?} of {kind:?}"
                );
            }
        }
    }
}

#[test]
fn a_rule_applies_when_all_conditions_hold() {
    const ABORT: [Condition; 2] = [own_process(0), is(2, libc::SIGABRT)];
    let rule = allow_when(Sysno::tgkill, &ABORT);
    let call = Sysno::tgkill.id() as u64;
    assert!(rule.matches(call, &[7, 1, 6, 0, 0, 0], 7));
    assert!(!rule.matches(call, &[8, 1, 6, 0, 0, 0], 7));
    assert!(!rule.matches(call, &[7, 1, 9, 0, 0, 0], 7));
    assert!(!rule.matches(call + 1, &[7, 1, 6, 0, 0, 0], 7));
}

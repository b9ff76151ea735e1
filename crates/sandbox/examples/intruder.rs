//! Plays a thread that a guest has taken over: confines itself like a thread
//! of the kind it is told, and then tries what it is told. For the tests; not
//! part of favo.
//!
//! `intruder KIND ACT FILE`: FILE is one that the caller may read and write.
//! `intruder` alone lists kinds and acts. Standard output says `done` if the
//! act succeeded, or the error; a process that says neither was stopped.

use std::ffi::CString;
use std::process::ExitCode;

use favo_sandbox::Policy;
use favo_thread::ThreadKind;
use libc::c_long;

/// Acts: a name, and a system call with its arguments. `F` is the file's name,
/// `P` the parent's id, `Z` a page of zeroes.
#[derive(Clone, Copy)]
enum Argument {
    N(u64),
    F,
    P,
    Z,
    Passwd,
    Memory,
    Shell,
    Code,
}
use Argument::{Code, F, Memory, N, P, Passwd, Shell, Z};

const fn n(value: i32) -> Argument {
    N(value as i64 as u64)
}

const ACTS: &[(&str, c_long, &[Argument])] = &[
    (
        "read-file",
        libc::SYS_openat,
        &[n(libc::AT_FDCWD), F, n(libc::O_RDONLY)],
    ),
    (
        "write-file",
        libc::SYS_openat,
        &[n(libc::AT_FDCWD), F, n(libc::O_WRONLY)],
    ),
    (
        "read-passwords",
        libc::SYS_openat,
        &[n(libc::AT_FDCWD), Passwd, n(libc::O_RDONLY)],
    ),
    (
        "write-own-memory-file",
        libc::SYS_openat,
        &[n(libc::AT_FDCWD), Memory, n(libc::O_RDWR)],
    ),
    ("open", libc::SYS_open, &[F, n(libc::O_RDONLY)]),
    (
        "openat2",
        libc::SYS_openat2,
        &[n(libc::AT_FDCWD), F, Z, n(24)],
    ),
    ("creat", libc::SYS_creat, &[F, n(0o600)]),
    ("unlink", libc::SYS_unlink, &[F]),
    (
        "unlinkat",
        libc::SYS_unlinkat,
        &[n(libc::AT_FDCWD), F, n(0)],
    ),
    ("rename", libc::SYS_rename, &[F, F]),
    ("chmod", libc::SYS_chmod, &[F, n(0o4755)]),
    ("truncate", libc::SYS_truncate, &[F, n(0)]),
    ("memfd", libc::SYS_memfd_create, &[F, n(0)]),
    (
        "unix-socket",
        libc::SYS_socket,
        &[n(libc::AF_UNIX), n(libc::SOCK_STREAM), n(0)],
    ),
    (
        "netlink-socket",
        libc::SYS_socket,
        &[n(libc::AF_NETLINK), n(libc::SOCK_RAW), n(0)],
    ),
    (
        "packet-socket",
        libc::SYS_socket,
        &[n(libc::AF_PACKET), n(libc::SOCK_RAW), n(0)],
    ),
    (
        "raw-socket",
        libc::SYS_socket,
        &[n(libc::AF_INET), n(libc::SOCK_RAW), n(1)],
    ),
    (
        "vsock-socket",
        libc::SYS_socket,
        &[n(libc::AF_VSOCK), n(libc::SOCK_STREAM), n(0)],
    ),
    (
        "trace-parent",
        libc::SYS_ptrace,
        &[n(libc::PTRACE_SEIZE as i32), P, n(0), n(0)],
    ),
    (
        "trace-me",
        libc::SYS_ptrace,
        &[n(libc::PTRACE_TRACEME as i32), n(0), n(0), n(0)],
    ),
    (
        "read-parent",
        libc::SYS_process_vm_readv,
        &[P, Z, n(1), Z, n(1), n(0)],
    ),
    (
        "write-parent",
        libc::SYS_process_vm_writev,
        &[P, Z, n(1), Z, n(1), n(0)],
    ),
    ("exec", libc::SYS_execve, &[Shell, Z, Z]),
    (
        "execat",
        libc::SYS_execveat,
        &[n(libc::AT_FDCWD), Shell, Z, Z, n(0)],
    ),
    ("fork", libc::SYS_fork, &[]),
    (
        "clone",
        libc::SYS_clone,
        &[n(libc::SIGCHLD), n(0), n(0), n(0), n(0)],
    ),
    ("clone3", libc::SYS_clone3, &[Z, n(64)]),
    ("kill-parent", libc::SYS_kill, &[P, n(libc::SIGKILL)]),
    ("tgkill-parent", libc::SYS_tgkill, &[P, P, n(libc::SIGKILL)]),
    ("pidfd", libc::SYS_pidfd_open, &[P, n(0)]),
    (
        "queue-signal",
        libc::SYS_rt_sigqueueinfo,
        &[P, n(libc::SIGKILL), Z],
    ),
    (
        "mount",
        libc::SYS_mount,
        &[F, F, F, n(libc::MS_BIND as i32), n(0)],
    ),
    ("chroot", libc::SYS_chroot, &[Shell]),
    ("unshare", libc::SYS_unshare, &[n(libc::CLONE_NEWUSER)]),
    ("setns", libc::SYS_setns, &[n(0), n(0)]),
    ("bpf", libc::SYS_bpf, &[n(0), Z, n(64)]),
    ("userfaultfd", libc::SYS_userfaultfd, &[n(1)]),
    ("keyctl", libc::SYS_keyctl, &[n(0), n(-3), n(1)]),
    (
        "perf",
        libc::SYS_perf_event_open,
        &[Z, n(0), n(-1), n(-1), n(0)],
    ),
    ("io-uring", libc::SYS_io_uring_setup, &[n(1), Z]),
    (
        "executable-mapping",
        libc::SYS_mmap,
        &[
            n(0),
            n(4096),
            n(libc::PROT_EXEC),
            n(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
            n(-1),
            n(0),
        ],
    ),
    (
        "executable-protection",
        libc::SYS_mprotect,
        &[Z, n(4096), n(libc::PROT_READ | libc::PROT_EXEC)],
    ),
    ("writable-code", libc::SYS_mprotect, &[Code, n(4096), n(7)]),
    (
        "executable-key",
        libc::SYS_pkey_mprotect,
        &[Z, n(4096), n(libc::PROT_EXEC), n(-1)],
    ),
    (
        "dumpable",
        libc::SYS_prctl,
        &[n(libc::PR_SET_DUMPABLE), n(1), n(0), n(0), n(0)],
    ),
    (
        "limits",
        libc::SYS_prlimit64,
        &[P, n(libc::RLIMIT_CORE as i32), Z, n(0)],
    ),
    ("personality", libc::SYS_personality, &[n(0)]),
    ("ports", libc::SYS_iopl, &[n(3)]),
    ("segments", libc::SYS_modify_ldt, &[n(1), Z, n(16)]),
    (
        "terminal-input",
        libc::SYS_ioctl,
        &[n(0), N(libc::TIOCSTI), Z],
    ),
];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(kind), Some(act), Some(file)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        for kind in ThreadKind::ALL {
            println!("kind {}", kind.name());
        }
        for (act, ..) in ACTS {
            println!("act {act}");
        }
        return ExitCode::SUCCESS;
    };
    let kind = ThreadKind::ALL
        .into_iter()
        .find(|known| known.name() == kind);
    let act = ACTS.iter().find(|(name, ..)| *name == act);
    let (Some(kind), Some((_, call, arguments))) = (kind, act) else {
        eprintln!("no such kind or act");
        return ExitCode::FAILURE;
    };
    let file = CString::new(file).unwrap_or_default();
    if let Err(error) = favo_sandbox::prepare(&Policy::default().with_network()) {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let parent = std::os::unix::process::parent_id();
    let attempt = move || {
        let page = Page([0; 8192]);
        let zeroes = (page.0.as_ptr() as u64 + 4095) & !4095;
        let value = |argument: &Argument| match argument {
            N(value) => *value,
            F => file.as_ptr() as u64,
            P => parent.into(),
            Z => zeroes,
            Passwd => c"/etc/passwd".as_ptr() as u64,
            Memory => c"/proc/self/mem".as_ptr() as u64,
            Shell => c"/bin/sh".as_ptr() as u64,
            Code => main as *const () as u64 & !4095,
        };
        let mut values = [0; 6];
        for (slot, argument) in values.iter_mut().zip(*arguments) {
            *slot = value(argument);
        }
        match make(*call, values) {
            Ok(_) => println!("done"),
            Err(error) => println!("{error}"),
        }
        // It lies where it was until here.
        std::hint::black_box(&page);
    };
    if kind == ThreadKind::Main {
        favo_thread::confine(kind);
        attempt();
    } else {
        let thread = favo_thread::spawn(kind, kind.name(), attempt);
        let _ = thread.map(std::thread::JoinHandle::join);
    }
    ExitCode::SUCCESS
}

struct Page([u8; 8192]);

fn make(call: c_long, [a, b, c, d, e, f]: [u64; 6]) -> std::io::Result<c_long> {
    // SAFETY: none of the acts, if it succeeds, changes memory that this
    // program uses: pointers are to names and to a page of its own. Making the
    // code writable harms only whoever writes it.
    let result = unsafe { libc::syscall(call, a, b, c, d, e, f) };
    match result {
        -1 => Err(std::io::Error::last_os_error()),
        result => Ok(result),
    }
}

//! Watches the system calls of a favo, thread by thread, from outside: it is
//! the program as it ships. By ptrace(2), which needs no rights for a child.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::{Command, Stdio};

use favo_sandbox::table::{Action, Rule, rules};
use favo_thread::ThreadKind;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{WaitOptions, waitpid};

/// seccomp(2), and the answer that marks a stop at the beginning of a call.
const SECCOMP: u64 = 317;
const BEGINS: u64 = -38i64 as u64;

/// Of wait(2): threads, too, but only those this thread watches.
const ALL: u32 = 0x4000_0000;
const OF_THIS_THREAD: u32 = 0x2000_0000;
/// Of ptrace(2).
const EVENT_CLONE: i32 = 3;
const CALL: i32 = 5 | 0x80;

/// What confined threads called.
#[derive(Default)]
pub struct Trace {
    used: BTreeMap<ThreadKind, BTreeSet<usize>>,
    /// Calls that no rule of the thread's kind has.
    pub missing: BTreeSet<String>,
    /// Statuses of those that ended.
    pub statuses: Vec<i32>,
}

struct Thread {
    kind: Option<ThreadKind>,
    programs: usize,
}

impl Trace {
    /// Whether a thread of a kind used a rule of it.
    pub fn has_used(&self, kind: ThreadKind, rule: &Rule) -> bool {
        let all = rules(kind);
        let mut used = self.used.get(&kind).into_iter().flatten();
        used.any(|index| (all[*index].call, all[*index].when) == (rule.call, rule.when))
    }

    /// Which kinds of threads there were.
    pub fn kinds(&self) -> Vec<ThreadKind> {
        self.used.keys().copied().collect()
    }

    /// Runs `command` to its end. `drive` has its process id, and a thread of
    /// its own.
    pub fn run(&mut self, command: Command, drive: impl FnOnce(u32) + Send) {
        let mut command = stopped(&command);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        self.run_stopped(command, drive);
    }

    /// The same for a command that is [`stopped`], with the streams it has.
    #[expect(clippy::zombie_processes, reason = "`watch` waits for it")]
    pub fn run_stopped(&mut self, mut stopped: Command, drive: impl FnOnce(u32) + Send) {
        let child = stopped.spawn().unwrap();
        drop(stopped);
        let main = Pid::from_raw(child.id() as i32);
        let stop = rustix::process::Pid::from_child(&child);
        waitpid(Some(stop), WaitOptions::UNTRACED).unwrap();
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_EXITKILL;
        ptrace::seize(main, options).unwrap();
        kill(main, Signal::SIGCONT).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| drive(child.id()));
            self.watch(main);
        });
    }

    fn watch(&mut self, main: Pid) {
        let mut threads: HashMap<Pid, Thread> = HashMap::new();
        let options = WaitOptions::from_bits_retain(ALL | OF_THIS_THREAD);
        loop {
            let Some((thread, status)) = waitpid(None, options).unwrap() else {
                continue;
            };
            let thread = Pid::from_raw(thread.as_raw_nonzero().get());
            let ended = status
                .exit_status()
                .or_else(|| Some(128 + status.terminating_signal()?));
            if let Some(status) = ended {
                if thread == main {
                    self.statuses.push(status);
                    return;
                }
                continue;
            }
            let mut deliver = None;
            // ptrace(2): an event is in the third byte, and a stop at a call
            // has a bit of its own.
            match (status.as_raw() >> 16, status.stopping_signal()) {
                (0, Some(CALL)) => self.call(main, thread, &mut threads),
                // One that has no name is KVM's kick: being stopped is all it
                // is for.
                (0, Some(signal)) => deliver = Signal::try_from(signal).ok(),
                (EVENT_CLONE, _) => {
                    let parent = threads.get(&thread).and_then(|thread| thread.kind);
                    if let Ok(new) = ptrace::getevent(thread) {
                        threads.entry(Pid::from_raw(new as i32)).or_insert(Thread {
                            kind: parent,
                            programs: 0,
                        });
                    }
                }
                _ => {}
            }
            // A thread that is gone by now is no loss.
            let _ = ptrace::syscall(thread, deliver);
        }
    }

    fn call(&mut self, main: Pid, id: Pid, threads: &mut HashMap<Pid, Thread>) {
        let Ok(registers) = ptrace::getregs(id) else {
            return;
        };
        if registers.rax != BEGINS {
            return;
        }
        let arguments = [
            registers.rdi,
            registers.rsi,
            registers.rdx,
            registers.r10,
            registers.r8,
            registers.r9,
        ];
        let thread = threads.entry(id).or_insert(Thread {
            kind: None,
            programs: 0,
        });
        if let Some(kind) = thread.kind {
            self.count(kind, registers.orig_rax, arguments, main);
        }
        if registers.orig_rax == SECCOMP && arguments[0] == 1 {
            thread.programs += 1;
            let kind = kind_of(main, id);
            if kind.is_some_and(|kind| thread.programs == programs(kind)) {
                thread.kind = kind;
            }
        }
    }

    fn count(&mut self, kind: ThreadKind, call: u64, arguments: [u64; 6], main: Pid) {
        let used = self.used.entry(kind).or_default();
        let mut found = false;
        for (index, rule) in rules(kind).iter().enumerate() {
            if rule.matches(call, &arguments, main.as_raw() as u32) {
                used.insert(index);
                found = true;
            }
        }
        if !found {
            self.missing.insert(format!(
                "{}: {} {arguments:x?}",
                kind.name(),
                favo_sandbox::table::name(call)
            ));
        }
    }
}

/// A command that stops before it becomes what it is, so that nothing of it is
/// missed; without its streams.
pub fn stopped(command: &Command) -> Command {
    let mut stopped = Command::new("sh");
    stopped.args(["-c", "kill -STOP $$; exec \"$@\"", "sh"]);
    stopped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => stopped.env(name, value),
            None => stopped.env_remove(name),
        };
    }
    stopped
}

/// How many filters a thread of this kind gets.
fn programs(kind: ThreadKind) -> usize {
    let errors: BTreeSet<u16> = rules(kind)
        .iter()
        .filter_map(|rule| match rule.action {
            Action::Refuse(errno) => Some(errno),
            Action::Allow | Action::Forbid => None,
        })
        .collect();
    errors.len() + 1
}

/// A thread's kind, by its name.
fn kind_of(main: Pid, thread: Pid) -> Option<ThreadKind> {
    if main == thread {
        return Some(ThreadKind::Main);
    }
    let name = std::fs::read_to_string(format!("/proc/{main}/task/{thread}/comm")).ok()?;
    [
        ("signals", ThreadKind::Signals),
        ("launcher", ThreadKind::Launcher),
        ("timer", ThreadKind::Timer),
        ("serial-", ThreadKind::Serial),
        ("vcpu-", ThreadKind::Vcpu),
        ("favo-alarm", ThreadKind::Alarm),
        ("virtio-", ThreadKind::Device),
        ("disk", ThreadKind::Disk),
        ("net", ThreadKind::Network),
    ]
    .into_iter()
    .find_map(|(prefix, kind)| name.starts_with(prefix).then_some(kind))
}

//! What each kind of thread may call.
//!
//! A rule is a system call, conditions on its arguments, and, if no test of a
//! real machine makes the call, the reason why it is there all the same. A
//! test runs machines of every sort, watches them, and fails for a rule that
//! was not used and has no such reason (`tests/tests/sandbox.rs`).
//!
//! To add a rule: run into its refusal, which names thread and call, and add
//! it to the list of that kind with the narrowest conditions.

mod control;
mod device;
mod machine;
mod network;
mod program;

use syscalls::Sysno;

use favo_thread::ThreadKind;

/// What is done with a call that a rule matches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// It is made.
    Allow,
    /// The caller gets this error, and goes on: its library has another way.
    Refuse(u16),
    /// It ends the process: for a thread that may do all else.
    Forbid,
}

/// What an argument must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Test {
    /// This value, in the low 32 bits.
    Is(u32),
    /// These bits, of those in the mask.
    Bits {
        /// The bits that are looked at.
        mask: u32,
        /// What they must be.
        value: u32,
    },
    /// Anything else, in the low 32 bits.
    Not(u32),
    /// This process' id.
    OwnProcess,
    /// Any other.
    OtherProcess,
}

/// A condition on one argument.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Condition {
    /// Which, from 0.
    pub argument: u8,
    /// What it must be.
    pub test: Test,
}

/// A call that a kind of thread may make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rule {
    /// The call.
    pub call: Sysno,
    /// All of these must hold.
    pub when: &'static [Condition],
    /// What is done.
    pub action: Action,
    /// Why it is here though the tests' machines don't use it.
    pub rare: Option<&'static str>,
}

impl Rule {
    /// Whether it applies to a call.
    pub fn matches(&self, call: u64, arguments: &[u64; 6], process: u32) -> bool {
        call == self.call.id() as u64
            && self.when.iter().all(|condition| {
                let value = arguments[usize::from(condition.argument)] as u32;
                match condition.test {
                    Test::Is(wanted) => value == wanted,
                    Test::Not(wanted) => value != wanted,
                    Test::Bits { mask, value: bits } => value & mask == bits,
                    Test::OwnProcess => value == process,
                    Test::OtherProcess => value != process,
                }
            })
    }

    /// The same, for something tests don't reach.
    const fn rarely(mut self, why: &'static str) -> Self {
        self.rare = Some(why);
        self
    }
}

const fn allow(call: Sysno) -> Rule {
    allow_when(call, &[])
}

const fn allow_when(call: Sysno, when: &'static [Condition]) -> Rule {
    Rule {
        call,
        when,
        action: Action::Allow,
        rare: None,
    }
}

const fn refuse(call: Sysno, errno: i32) -> Rule {
    Rule {
        call,
        when: &[],
        action: Action::Refuse(errno as u16),
        rare: None,
    }
}

const fn forbid(call: Sysno) -> Rule {
    forbid_when(call, &[])
}

const fn forbid_when(call: Sysno, when: &'static [Condition]) -> Rule {
    Rule {
        call,
        when,
        action: Action::Forbid,
        rare: None,
    }
}

const fn is(argument: u8, value: i32) -> Condition {
    is_u32(argument, value as u32)
}

const fn is_u32(argument: u8, value: u32) -> Condition {
    Condition {
        argument,
        test: Test::Is(value),
    }
}

const fn not(argument: u8, value: i32) -> Condition {
    Condition {
        argument,
        test: Test::Not(value as u32),
    }
}

/// None of these bits.
const fn without(argument: u8, bits: i32) -> Condition {
    bits_are(argument, bits, 0)
}

const fn bits_are(argument: u8, mask: i32, value: i32) -> Condition {
    Condition {
        argument,
        test: Test::Bits {
            mask: mask as u32,
            value: value as u32,
        },
    }
}

const fn own_process(argument: u8) -> Condition {
    Condition {
        argument,
        test: Test::OwnProcess,
    }
}

const fn other_process(argument: u8) -> Condition {
    Condition {
        argument,
        test: Test::OtherProcess,
    }
}

/// A call's name, for messages.
pub fn name(call: u64) -> &'static str {
    Sysno::new(call as usize).map_or("unknown", |call| call.name())
}

/// What any thread may call.
pub const ANY: &[Rule] = program::ANY;

/// What a kind of thread may call besides [`ANY`], for its own work.
pub const fn own(kind: ThreadKind) -> &'static [Rule] {
    match kind {
        ThreadKind::Main => program::MAIN,
        ThreadKind::Signals => program::SIGNALS,
        ThreadKind::Launcher => program::LAUNCHER,
        ThreadKind::Timer => program::TIMER,
        ThreadKind::Serial => machine::SERIAL,
        ThreadKind::Vcpu => machine::VCPU,
        ThreadKind::Alarm => machine::ALARM,
        ThreadKind::Device => device::DEVICE,
        ThreadKind::Disk => device::DISK,
        ThreadKind::Network => network::NETWORK,
        ThreadKind::Control => &[],
    }
}

/// What a thread of [`ThreadKind::Control`] may not call; all else it may.
pub const FORBIDDEN: &[Rule] = control::FORBIDDEN;

/// All that a kind of thread may call. The launcher may do what those may that
/// it starts: the kernel asks its filters for them, too.
pub fn rules(kind: ThreadKind) -> Vec<Rule> {
    let started: &[&[Rule]] = match kind {
        ThreadKind::Launcher => &[device::DEVICE, device::DISK, program::TIMER],
        _ => &[],
    };
    let lists = &[&[ANY, own(kind)], started].concat();
    let mut rules: Vec<Rule> = Vec::new();
    let is_allowed = |rule: &Rule| {
        let mut all = lists.iter().copied().flatten();
        all.any(|other| other.call == rule.call && other.action == Action::Allow)
    };
    for rule in lists.iter().copied().flatten() {
        // Where some of it is allowed, the rest ends the process.
        if rule.action != Action::Allow && is_allowed(rule) {
            continue;
        }
        match rules
            .iter_mut()
            .find(|other| (other.call, other.when) == (rule.call, rule.when))
        {
            // In two of the lists: one that is used is used.
            Some(other) => other.rare = other.rare.and(rule.rare),
            None => rules.push(*rule),
        }
    }
    rules
}

#[cfg(test)]
#[path = "table_test.rs"]
mod test;

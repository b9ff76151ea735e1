//! From lists to filters of the kernel (seccomp(2)).

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

use crate::SandboxError;
use crate::table::{Action, Condition, FORBIDDEN, Rule, Test, rules};
use favo_thread::ThreadKind;

/// The programs of each kind of thread, to be applied in order. The kernel
/// takes the strictest answer: the last program has the list, those before it
/// answer errors for what the list only seems to allow.
pub(crate) struct Filters {
    programs: BTreeMap<ThreadKind, Vec<BpfProgram>>,
}

impl Filters {
    pub(crate) fn compile() -> Result<Self, SandboxError> {
        let programs = ThreadKind::ALL
            .into_iter()
            .map(|kind| {
                let rules = match kind {
                    ThreadKind::Control => FORBIDDEN.to_vec(),
                    kind => rules(kind),
                };
                Ok((kind, compile(&rules)?))
            })
            .collect::<Result<_, seccompiler::BackendError>>()
            .map_err(|error| SandboxError::new("compiling the system call filters", error))?;
        Ok(Self { programs })
    }

    /// Applies the filters of a kind to the calling thread.
    pub(crate) fn apply(&self, kind: ThreadKind) -> Result<(), SandboxError> {
        for program in self.programs.get(&kind).into_iter().flatten() {
            apply_filter(program)
                .map_err(|error| SandboxError::new("filtering system calls", error))?;
        }
        Ok(())
    }
}

fn compile(rules: &[Rule]) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let mut refused: BTreeMap<u16, Vec<&Rule>> = BTreeMap::new();
    for rule in rules {
        if let Action::Refuse(errno) = rule.action {
            refused.entry(errno).or_default().push(rule);
        }
    }
    let mut programs = Vec::new();
    for (errno, rules) in refused {
        let action = SeccompAction::Errno(errno.into());
        programs.push(program(rules, SeccompAction::Allow, action)?);
    }
    // A kind has either a list of what is allowed or one of what is not.
    let forbidden: Vec<&Rule> = rules
        .iter()
        .filter(|rule| rule.action == Action::Forbid)
        .collect();
    programs.push(if forbidden.is_empty() {
        let allowed = rules.iter().collect();
        program(allowed, SeccompAction::Trap, SeccompAction::Allow)?
    } else {
        program(forbidden, SeccompAction::Allow, SeccompAction::Trap)?
    });
    Ok(programs)
}

fn program(
    rules: Vec<&Rule>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    // A call without conditions has no rules: all of them match.
    for rule in rules.iter().filter(|rule| !rule.when.is_empty()) {
        let conditions = rule.when.iter().map(condition).collect::<Result<_, _>>()?;
        calls
            .entry(rule.call.id().into())
            .or_default()
            .push(SeccompRule::new(conditions)?);
    }
    for rule in rules.iter().filter(|rule| rule.when.is_empty()) {
        calls.insert(rule.call.id().into(), Vec::new());
    }
    SeccompFilter::new(calls, otherwise, matched, TargetArch::x86_64)?.try_into()
}

fn condition(condition: &Condition) -> Result<SeccompCondition, seccompiler::BackendError> {
    let (operator, value) = match condition.test {
        Test::Is(value) => (SeccompCmpOp::Eq, value),
        Test::Not(value) => (SeccompCmpOp::Ne, value),
        Test::Bits { mask, value } => (SeccompCmpOp::MaskedEq(mask.into()), value),
        Test::OwnProcess => (SeccompCmpOp::Eq, std::process::id()),
        Test::OtherProcess => (SeccompCmpOp::Ne, std::process::id()),
    };
    SeccompCondition::new(
        condition.argument,
        SeccompCmpArgLen::Dword,
        operator,
        value.into(),
    )
}

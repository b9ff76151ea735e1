//! Tells a person what happens to a packet, and which rule says so.

use std::fmt;

use super::oracle::{self, Flows};
use super::{Action, Decision, Origin, Program, RuleId, Verdict};
use crate::link::Offload;
use crate::model::Direction;

use super::flow::Milliseconds;

/// The way of one packet through a program.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Each layer the packet reached: the rule that matched, by name, and what
    /// it does.
    pub steps: Vec<TraceStep>,
    /// What became of it.
    pub decision: Decision,
}

/// One layer of a trace.
#[derive(Clone, Debug)]
pub struct TraceStep {
    /// Which rule matched.
    pub rule: RuleId,
    /// Its name.
    pub name: String,
    /// What it does.
    pub action: Action,
}

/// Follows a packet; changes nothing.
pub fn trace(
    program: &Program,
    flows: &dyn Flows,
    now: Milliseconds,
    origin: Origin,
    frame: &[u8],
    offload: &Offload,
) -> Trace {
    let mut steps = Vec::new();
    let (decision, _) = oracle::decide(program, flows, now, origin, frame, offload, &mut |(
        rule,
        action,
    )| {
        steps.push(TraceStep {
            rule,
            name: rule_name(program, rule),
            action,
        });
    });
    Trace { steps, decision }
}

/// What a rule is called.
pub fn rule_name(program: &Program, id: RuleId) -> String {
    let layers = match id.direction {
        Direction::Out => &program.outgoing,
        Direction::In => &program.incoming,
    };
    layers
        .iter()
        .find(|layer| layer.name == id.layer)
        .and_then(|layer| layer.rules.get(id.index))
        .map_or_else(|| "nothing else".to_owned(), |rule| rule.name.clone())
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            let TraceStep { rule, name, action } = step;
            writeln!(
                f,
                "{:<12} rule {:<3} {name}: {}",
                rule.layer,
                rule.index + 1,
                Text(*action)
            )?;
        }
        match self.decision.verdict {
            Verdict::Drop(reason) => write!(f, "dropped: {reason}"),
            Verdict::Answer(answer) => write!(f, "answered by the port: {answer:?}"),
            Verdict::Service(service) => write!(f, "taken by the gateway: {service:?}"),
            Verdict::Uplink => write!(f, "leaves the network"),
            Verdict::Neighbour(mac) => write!(f, "to the port with {mac}"),
            Verdict::Flood => write!(f, "to every other port of the network"),
            Verdict::Deliver => write!(f, "to the guest"),
        }
    }
}

struct Text(Action);

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Action::Pass => "pass",
            Action::Drop(_) => "drop",
            Action::Answer(_) => "answer",
            Action::Service(_) => "gateway",
            Action::Neighbour => "to a neighbour",
            Action::Flood => "to everyone",
            Action::Uplink => "leave",
            Action::Deliver => "deliver",
        })
    }
}

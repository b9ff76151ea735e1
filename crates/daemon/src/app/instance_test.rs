use proptest::prelude::*;

use super::*;

const SHAPE: Shape = Shape {
    cpus: 2,
    memory: ByteCount::mib(512),
};

fn second(n: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + n).unwrap()
}

/// Something that happens while steps are taken.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// The step is taken.
    Well,
    /// The step fails and changes nothing.
    Nothing,
    /// The step is taken, and then the machine's process crashes.
    Crash,
    /// The step is taken, and then the guest shuts down.
    ShutDown,
    /// The step is taken, and then the guest resets its machine.
    Reset,
}

/// A host, as far as one instance knows it.
#[derive(Clone, Debug)]
struct Host {
    observed: Observed,
    now: Timestamp,
    failures: u32,
}

impl Host {
    fn end(&mut self, failed: bool, reset: bool) {
        if let Some(process) = self.observed.process.take() {
            self.failures = if failed { self.failures + 1 } else { 0 };
            self.observed.exit = Some(Exit {
                demand: process.demand,
                at: self.now,
                failures: self.failures,
                reset,
            });
        }
    }

    fn act(&mut self, action: Action, desired: &Desired) {
        let observed = &mut self.observed;
        // What an executor relies on.
        match action {
            Action::PrepareDisk => assert!(!observed.disk && observed.process.is_none()),
            Action::Start => assert!(observed.disk && observed.process.is_none()),
            Action::RemoveDisk => {
                assert!(observed.disk && observed.process.is_none());
                assert_eq!(desired.life, Life::Purged);
            }
            Action::Kill => {
                let process = observed.process.as_ref().unwrap();
                let waited = process
                    .asked_to_stop
                    .is_some_and(|asked| self.now >= asked.checked_add(GRACE).unwrap());
                assert!(
                    waited || desired.hard || desired.life == Life::Purged,
                    "killed without a chance"
                );
            }
            Action::Pause => assert!(!observed.process.as_ref().unwrap().paused),
            Action::Resume => assert!(observed.process.as_ref().unwrap().paused),
            Action::AskToStop => {
                let process = observed.process.as_ref().unwrap();
                assert!(!process.paused && process.asked_to_stop.is_none());
            }
        }
        match (action, &mut observed.process) {
            (Action::PrepareDisk, _) => observed.disk = true,
            (Action::RemoveDisk, _) => observed.disk = false,
            (Action::Start, process) => {
                *process = Some(Process {
                    shape: desired.shape,
                    demand: desired.demand,
                    paused: false,
                    asked_to_stop: None,
                });
            }
            (Action::Pause, Some(process)) => process.paused = true,
            (Action::Resume, Some(process)) => process.paused = false,
            (Action::AskToStop, Some(process)) => process.asked_to_stop = Some(self.now),
            (Action::Kill, _) => self.end(true, false),
            (action, None) => panic!("{action:?} without a process"),
        }
    }

    /// One step; false if there was none to take.
    fn step(&mut self, desired: &Desired, fate: Fate) -> bool {
        match plan(desired, &self.observed, self.now) {
            Step::Settled(_) => return false,
            Step::WaitUntil(time) => {
                assert!(time > self.now, "waits for what is past");
                assert!(time <= after(self.now, LONGEST_PAUSE), "waits too long");
                self.now = time;
            }
            Step::Do(_) if matches!(fate, Fate::Nothing) => {}
            Step::Do(action) => self.act(action, desired),
        }
        match fate {
            Fate::Crash => self.end(true, false),
            Fate::ShutDown => self.end(false, false),
            Fate::Reset => self.end(false, true),
            Fate::Well | Fate::Nothing => {}
        }
        true
    }
}

/// What is desired, said in another way than the plan does.
fn fulfilled(desired: &Desired, observed: &Observed) -> bool {
    let ended = observed
        .exit
        .as_ref()
        .filter(|exit| exit.demand == desired.demand);
    match (desired.life, desired.power, &observed.process) {
        (Life::Purged, _, process) => process.is_none() && !observed.disk,
        (Life::Trashed, _, process) | (Life::Kept, Power::Stopped, process) => process.is_none(),
        (Life::Kept, power, Some(process)) => {
            observed.disk
                && process.paused == (power == Power::Paused)
                && process.asked_to_stop.is_none()
                && process.demand >= desired.fresh
        }
        // It may stay down only if it was up for this very demand.
        (Life::Kept, _, None) if ended.is_some_and(|exit| exit.reset) => false,
        (Life::Kept, _, None) => match desired.restart {
            RestartPolicy::Always => false,
            RestartPolicy::OnFailure => ended.is_some_and(|exit| exit.failures == 0),
            RestartPolicy::Never => ended.is_some(),
        },
    }
}

fn desired() -> impl Strategy<Value = Desired> {
    let life = prop_oneof![
        4 => Just(Life::Kept),
        1 => Just(Life::Trashed),
        1 => Just(Life::Purged),
    ];
    let power = prop_oneof![
        3 => Just(Power::Running),
        1 => Just(Power::Paused),
        2 => Just(Power::Stopped),
    ];
    let restart = prop_oneof![
        Just(RestartPolicy::Never),
        Just(RestartPolicy::OnFailure),
        Just(RestartPolicy::Always),
    ];
    let demands = (1..3_u64, 0..3_u64, any::<bool>());
    (life, power, demands, restart).prop_map(|(life, power, (demand, fresh, hard), restart)| {
        Desired {
            life,
            power,
            demand,
            fresh: fresh.min(demand),
            hard,
            restart,
            shape: SHAPE,
        }
    })
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        4 => Just(Fate::Well),
        2 => Just(Fate::Nothing),
        1 => Just(Fate::Crash),
        1 => Just(Fate::ShutDown),
        1 => Just(Fate::Reset),
    ]
}

proptest! {
    /// Owners change their minds in the middle of things, hosts fail; once
    /// both leave off, the instance becomes what is desired, and stays it.
    #[test]
    fn plans_converge(
        course in prop::collection::vec((desired(), prop::collection::vec(fate(), 0..8)), 1..6),
    ) {
        let mut host = Host { observed: Observed::default(), now: second(0), failures: 0 };
        for (desired, fates) in &course {
            for fate in fates {
                host.step(desired, *fate);
            }
        }
        let desired = &course[course.len() - 1].0;
        let mut steps = 0;
        while host.step(desired, Fate::Well) {
            steps += 1;
            prop_assert!(steps <= 8, "goes in circles: {host:?}");
        }
        prop_assert!(fulfilled(desired, &host.observed), "{host:?}");
        let settled = plan(desired, &host.observed, host.now);
        let later = after(host.now, Duration::from_secs(1_000_000));
        prop_assert_eq!(plan(desired, &host.observed, later), settled);
    }

    /// Desired and observed state survive the store.
    #[test]
    fn resources_are_json(desired in desired()) {
        let json = serde_json::to_string(&desired).unwrap();
        prop_assert_eq!(serde_json::from_str::<Desired>(&json).unwrap(), desired);
    }
}

fn running(demand: u64) -> Desired {
    Desired {
        life: Life::Kept,
        power: Power::Running,
        demand,
        fresh: 0,
        hard: false,
        restart: RestartPolicy::OnFailure,
        shape: SHAPE,
    }
}

fn ended(failures: u32) -> Observed {
    Observed {
        disk: true,
        process: None,
        exit: Some(Exit {
            demand: 1,
            at: second(0),
            failures,
            reset: false,
        }),
    }
}

#[test]
fn restarts_back_off() {
    for (failures, seconds) in [(1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (u32::MAX, 300)] {
        let due = second(seconds);
        assert_eq!(
            plan(&running(1), &ended(failures), second(0)),
            Step::WaitUntil(due)
        );
        assert_eq!(
            plan(&running(1), &ended(failures), due),
            Step::Do(Action::Start)
        );
    }
}

#[test]
fn who_shut_down_stays_off_until_asked_for_again() {
    let off = Step::Settled(Phase::Ended { failed: false });
    assert_eq!(plan(&running(1), &ended(0), second(9)), off);
    assert_eq!(
        plan(&running(2), &ended(0), second(0)),
        Step::Do(Action::Start)
    );
    // No back-off for a person.
    assert_eq!(
        plan(&running(2), &ended(7), second(0)),
        Step::Do(Action::Start)
    );
}

#[test]
fn another_shape_waits_for_the_next_start() {
    let mut desired = running(1);
    let mut host = Host {
        observed: Observed::default(),
        now: second(0),
        failures: 0,
    };
    while host.step(&desired, Fate::Well) {}
    desired.shape.cpus = 8;
    let up = Step::Settled(Phase::Up {
        restart_for_shape: true,
    });
    assert_eq!(plan(&desired, &host.observed, host.now), up);
}

#[test]
fn a_guest_that_resets_starts_again_whatever_the_policy() {
    let mut desired = running(1);
    desired.restart = RestartPolicy::Never;
    let mut observed = ended(0);
    observed.exit.as_mut().unwrap().reset = true;
    assert_eq!(
        plan(&desired, &observed, second(0)),
        Step::Do(Action::Start)
    );
}

#[test]
fn a_restart_ends_the_process_of_an_earlier_demand() {
    let mut desired = running(1);
    let mut host = Host {
        observed: Observed::default(),
        now: second(0),
        failures: 0,
    };
    while host.step(&desired, Fate::Well) {}
    (desired.demand, desired.fresh) = (2, 2);
    assert_eq!(
        plan(&desired, &host.observed, host.now),
        Step::Do(Action::AskToStop)
    );
    while host.step(&desired, Fate::Well) {}
    assert_eq!(host.observed.process.unwrap().demand, 2);
}

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use favo_api::instance::Restart;
use favo_store::{EmbeddedOptions, EmbeddedStore};
use tokio::sync::Notify;

use super::*;
use crate::app::instance::Shape;
use crate::place::{Ending, MachineFile};
use crate::runner::{Observation, ObservedExit, ObservedProcess, RunnerError};
use favo_types::ByteCount;

/// A host without processes.
#[derive(Clone, Default)]
struct Fake(Arc<FakeState>);

#[derive(Default)]
struct FakeState {
    instances: Mutex<HashMap<String, FakeInstance>>,
    changed: Notify,
}

#[derive(Default)]
struct FakeInstance {
    disk: bool,
    machine: Option<MachineFile>,
    up: bool,
    paused: bool,
    ending: Option<(Ending, Timestamp)>,
    starts: u32,
    /// Its guest doesn't listen.
    is_deaf: bool,
}

impl Fake {
    fn with<R>(&self, uid: &str, change: impl FnOnce(&mut FakeInstance) -> R) -> R {
        let result = change(
            self.0
                .instances
                .lock()
                .unwrap()
                .entry(uid.to_owned())
                .or_default(),
        );
        self.0.changed.notify_waiters();
        result
    }

    fn end(&self, uid: &str, ending: Ending) {
        self.with(uid, |instance| {
            instance.up = false;
            instance.paused = false;
            instance.ending = Some((ending, Timestamp::now()));
        });
    }
}

#[async_trait]
impl Runner for Fake {
    async fn observe(&self, uid: &str) -> Result<Observation, RunnerError> {
        Ok(self.with(uid, |instance| {
            let machine = instance.machine.clone();
            Observation {
                disk: instance.disk,
                process: machine
                    .clone()
                    .filter(|_| instance.up)
                    .map(|machine| ObservedProcess {
                        shape: Shape {
                            cpus: machine.cpus,
                            memory: ByteCount(machine.memory),
                        },
                        demand: machine.demand,
                        paused: instance.paused,
                        pid: None,
                        engine: None,
                    }),
                exit: machine.filter(|_| !instance.up).zip(instance.ending).map(
                    |(machine, (ending, at))| ObservedExit {
                        machine,
                        ending,
                        message: "it ended".to_owned(),
                        at,
                    },
                ),
            }
        }))
    }

    async fn prepare_disk(&self, uid: &str, image: &str) -> Result<(), RunnerError> {
        if image == "missing" {
            return Err(RunnerError("there is no image missing".to_owned()));
        }
        self.with(uid, |instance| instance.disk = true);
        Ok(())
    }

    async fn start(&self, uid: &str, machine: &MachineFile) -> Result<(), RunnerError> {
        self.with(uid, |instance| {
            assert!(instance.disk && !instance.up);
            instance.machine = Some(machine.clone());
            (instance.up, instance.ending) = (true, None);
            instance.starts += 1;
        });
        Ok(())
    }

    async fn pause(&self, uid: &str) -> Result<(), RunnerError> {
        self.with(uid, |instance| instance.paused = true);
        Ok(())
    }

    async fn resume(&self, uid: &str) -> Result<(), RunnerError> {
        self.with(uid, |instance| instance.paused = false);
        Ok(())
    }

    async fn ask_to_stop(&self, uid: &str) -> Result<(), RunnerError> {
        if !self.with(uid, |instance| instance.is_deaf) {
            self.end(uid, Ending::PoweredOff);
        }
        Ok(())
    }

    async fn kill(&self, uid: &str) -> Result<(), RunnerError> {
        self.end(uid, Ending::Stopped);
        Ok(())
    }

    async fn remove(&self, uid: &str) -> Result<(), RunnerError> {
        self.0.instances.lock().unwrap().remove(uid);
        Ok(())
    }

    async fn ended(&self, uid: &str) -> Result<(), RunnerError> {
        loop {
            let changed = self.0.changed.notified();
            if !self.with_quietly(uid) {
                return Ok(());
            }
            changed.await;
        }
    }
}

impl Fake {
    fn with_quietly(&self, uid: &str) -> bool {
        let instances = self.0.instances.lock().unwrap();
        instances.get(uid).is_some_and(|instance| instance.up)
    }
}

struct Bench {
    service: Service<Fake>,
    host: Fake,
    directory: tempfile::TempDir,
}

fn bench() -> Bench {
    over(Fake::default(), tempfile::tempdir().unwrap())
}

fn over(host: Fake, directory: tempfile::TempDir) -> Bench {
    let store = EmbeddedStore::open(directory.path(), &EmbeddedOptions::default()).unwrap();
    let records = Records::new(Arc::new(store)).unwrap();
    let reconciler = Reconciler::new(records.clone(), host.clone());
    Bench {
        service: Service::new(records, reconciler),
        host,
        directory,
    }
}

impl Bench {
    async fn create(&self, name: &str) -> Accepted {
        let create = Create {
            name: name.to_owned(),
            spec: Spec::of_image("minimal"),
        };
        self.service.create(create, None).await.unwrap()
    }

    async fn act(&self, name: &str, action: Action) -> Result<Task, ServiceError> {
        let accepted = self.service.act(name, action, None).await?;
        Ok(self.done(accepted).await)
    }

    /// The task, once it has ended.
    async fn done(&self, accepted: Accepted) -> Task {
        let id = accepted.task.unwrap().id;
        loop {
            let task = self.service.task(&id).await.unwrap();
            if task.state != TaskState::Running {
                return task;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn state(&self, name: &str) -> State {
        self.service.get(name).await.unwrap().status.state
    }

    async fn until(&self, name: &str, state: State) {
        while self.state(name).await != state {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test]
async fn an_instance_lives_from_its_creation_to_its_purge() {
    let bench = bench();
    let accepted = bench.create("web").await;
    let uid = accepted.instance.uid.clone();
    assert_eq!(accepted.instance.status.state, State::Creating);
    assert_eq!(bench.done(accepted).await.state, TaskState::Done);
    assert_eq!(bench.state("web").await, State::Running);
    for (action, state) in [
        (Action::Pause, State::Paused),
        (Action::Resume, State::Running),
        (Action::Restart, State::Running),
        (Action::Stop, State::Stopped),
        (Action::Start, State::Running),
        (Action::Kill, State::Stopped),
    ] {
        let task = bench.act("web", action).await.unwrap();
        assert_eq!(task.state, TaskState::Done, "{action:?}");
        assert_eq!(bench.state("web").await, state, "{action:?}");
    }
    assert_eq!(bench.host.with(&uid, |instance| instance.starts), 3);
    let trashed = bench.service.delete("web", false, None).await.unwrap();
    bench.done(trashed).await;
    assert!(
        bench
            .service
            .list(&Filter::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
    let all = Filter {
        all: true,
        ..Filter::default()
    };
    assert_eq!(bench.service.list(&all).await.unwrap().items.len(), 1);
    let refused = bench.act("web", Action::Start).await.unwrap_err();
    assert_eq!(refused.code, Code::Conflict);
    bench.act("web", Action::Undelete).await.unwrap();
    assert_eq!(bench.state("web").await, State::Stopped);
    let purged = bench.service.delete("web", true, None).await.unwrap();
    bench.done(purged).await;
    while bench.service.get("web").await.is_ok() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(!bench.host.0.instances.lock().unwrap().contains_key(&uid));
    // The name is free.
    let again = bench.create("web").await;
    assert_ne!(again.instance.uid, uid);
    bench.done(again).await;
}

#[tokio::test]
async fn the_same_request_has_the_same_answer() {
    let bench = bench();
    let create = Create {
        name: "web".to_owned(),
        spec: Spec::of_image("minimal"),
    };
    let key = Some("k1".to_owned());
    let first = bench
        .service
        .create(create.clone(), key.clone())
        .await
        .unwrap();
    let second = bench
        .service
        .create(create.clone(), key.clone())
        .await
        .unwrap();
    assert_eq!(first.instance.uid, second.instance.uid);
    assert_eq!(first.task.unwrap().id, second.task.unwrap().id);
    let mut other = create.clone();
    other.spec.cpus = 2;
    let refused = bench.service.create(other, key).await.unwrap_err();
    assert_eq!(refused.code, Code::Conflict);
    let refused = bench.service.create(create, None).await.unwrap_err();
    assert_eq!(refused.code, Code::Exists);
}

#[tokio::test]
async fn changes_name_the_revision_they_were_made_from() {
    let bench = bench();
    let created = bench.create("web").await;
    bench.done(created).await;
    let revision = Revision(bench.service.get("web").await.unwrap().revision);
    let patch = |cpus| Patch {
        cpus: Some(cpus),
        ..Patch::default()
    };
    bench
        .service
        .patch("web", patch(2), Some(revision))
        .await
        .unwrap();
    let refused = bench.service.patch("web", patch(3), Some(revision)).await;
    assert_eq!(refused.unwrap_err().code, Code::Changed);
    let same = bench.service.patch("web", patch(2), None).await.unwrap();
    assert!(same.task.is_none());
    let refused = bench
        .service
        .patch("web", patch(0), None)
        .await
        .unwrap_err();
    assert_eq!(refused.code, Code::Invalid);
    while !bench.service.get("web").await.unwrap().status.needs_restart {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    bench.act("web", Action::Restart).await.unwrap();
    assert!(!bench.service.get("web").await.unwrap().status.needs_restart);
}

#[tokio::test]
async fn what_is_protected_stays() {
    let bench = bench();
    let created = bench.create("web").await;
    bench.done(created).await;
    let protect = |protect| Patch {
        protect: Some(protect),
        ..Patch::default()
    };
    bench
        .service
        .patch("web", protect(true), None)
        .await
        .unwrap();
    for purge in [false, true] {
        let refused = bench.service.delete("web", purge, None).await.unwrap_err();
        assert_eq!(refused.code, Code::Protected);
    }
    bench
        .service
        .patch("web", protect(false), None)
        .await
        .unwrap();
    bench.service.delete("web", true, None).await.unwrap();
}

#[tokio::test]
async fn a_step_that_fails_is_said_and_tried_again_on_change() {
    let bench = bench();
    let create = Create {
        name: "web".to_owned(),
        spec: Spec::of_image("missing"),
    };
    let accepted = bench.service.create(create, None).await.unwrap();
    let task = bench.done(accepted).await;
    assert_eq!(task.state, TaskState::Failed);
    assert!(task.message.contains("missing"));
    bench.until("web", State::Failed).await;
    let task = bench.act("web", Action::Start).await.unwrap();
    assert_eq!(task.state, TaskState::Failed);
}

#[tokio::test]
async fn guests_that_end_are_dealt_with_by_policy() {
    let bench = bench();
    let created = bench.create("web").await;
    let uid = created.instance.uid.clone();
    bench.done(created).await;
    // It shut down: on-failure leaves it.
    bench.host.end(&uid, Ending::PoweredOff);
    bench.until("web", State::Stopped).await;
    bench.act("web", Action::Start).await.unwrap();
    // It rebooted.
    bench.host.end(&uid, Ending::Reset);
    while bench.host.with(&uid, |instance| instance.starts) < 3 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    bench.until("web", State::Running).await;
    // It failed: a second later it is there again.
    bench.host.end(&uid, Ending::Failed);
    bench.until("web", State::Waiting).await;
    bench.until("web", State::Running).await;
    let failures = bench.host.with(&uid, |instance| {
        instance.machine.as_ref().map(|machine| machine.failures)
    });
    assert_eq!(failures, Some(1));
    let never = Patch {
        restart: Some(Restart::Never),
        ..Patch::default()
    };
    bench.service.patch("web", never, None).await.unwrap();
    bench.host.end(&uid, Ending::Failed);
    bench.until("web", State::Failed).await;
}

#[tokio::test]
async fn a_new_daemon_goes_on_where_the_old_one_was() {
    let bench = bench();
    let created = bench.create("web").await;
    let uid = created.instance.uid.clone();
    bench.done(created).await;
    let Bench {
        service,
        host,
        directory,
    } = bench;
    // The daemon dies while its machine is to be stopped; its workers keep the
    // store open until they notice.
    drop(service);
    let before = host.with(&uid, |instance| instance.starts);
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(directory.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let bench = over(host, copy);
    bench.service.resume(false).await.unwrap();
    bench.until("web", State::Running).await;
    assert_eq!(bench.host.with(&uid, |instance| instance.starts), before);
    // The host went down: what ran is started, unless its owner said no.
    bench.host.end(&uid, Ending::Stopped);
    bench.until("web", State::Stopped).await;
    bench.service.resume(true).await.unwrap();
    bench.until("web", State::Running).await;
    let no = Patch {
        autostart: Some(false),
        ..Patch::default()
    };
    bench.service.patch("web", no, None).await.unwrap();
    bench.service.resume(true).await.unwrap();
    bench.until("web", State::Stopped).await;
}

#[tokio::test]
async fn lists_have_pages_and_labels() {
    let bench = bench();
    for (name, role) in [("a", "web"), ("b", "db"), ("c", "web"), ("d", "web")] {
        let mut spec = Spec::of_image("minimal");
        spec.labels.insert("role".to_owned(), role.to_owned());
        let create = Create {
            name: name.to_owned(),
            spec,
        };
        bench.service.create(create, None).await.unwrap();
    }
    let mut filter = Filter {
        labels: vec![("role".to_owned(), "web".to_owned())],
        limit: Some(2),
        ..Filter::default()
    };
    let names = |list: &List<Instance>| -> Vec<String> {
        list.items
            .iter()
            .map(|instance| instance.name.clone())
            .collect()
    };
    let first = bench.service.list(&filter).await.unwrap();
    assert_eq!(names(&first), ["a", "c"]);
    filter.after = first.next_page;
    let second = bench.service.list(&filter).await.unwrap();
    assert_eq!(names(&second), ["d"]);
    assert_eq!(second.next_page, None);
}

#[tokio::test]
async fn what_can_not_be_is_refused() {
    let bench = bench();
    let with = |change: fn(&mut Spec)| {
        let mut spec = Spec::of_image("minimal");
        change(&mut spec);
        spec
    };
    let ok = || Spec::of_image("minimal");
    for (name, spec) in [
        ("", ok()),
        ("Web", ok()),
        ("../etc", ok()),
        ("web", with(|spec| spec.cpus = 65)),
        ("web", with(|spec| spec.memory = 1)),
        ("web", with(|spec| spec.memory = (1 << 30) + 1)),
        ("web", with(|spec| spec.image = "a\nb".to_owned())),
        ("web", with(|spec| spec.network = "x".repeat(1000))),
    ] {
        let create = Create {
            name: name.to_owned(),
            spec,
        };
        let refused = bench.service.create(create, None).await.unwrap_err();
        assert_eq!(refused.code, Code::Invalid, "{name} {}", refused.message);
    }
    for name in ["web", "../etc", ""] {
        assert_eq!(
            bench.service.get(name).await.unwrap_err().code,
            Code::NotFound
        );
    }
}

//! What the API does, without HTTP: each operation of a caller on instances.

use std::sync::Arc;

use favo_api::List;
use favo_api::error::Code;
use favo_api::host::Host;
use favo_api::instance::{Action, Create, Instance, Patch, Power, Spec, State};
use favo_api::task::{Accepted, Task, TaskState};
use favo_store::{CollectionError, Revision, Transaction, Versioned};
use favo_types::Name;
use jiff::Timestamp;

use crate::app::instance::Life;
use crate::reconciler::Reconciler;
use crate::records::Records;
use crate::resource::{StoredInstance, shown};
use crate::runner::Runner;

/// The least memory a machine can have.
const LEAST_MEMORY: u64 = 16 << 20;
/// The most processors a machine can have.
const MOST_CPUS: u32 = 64;
/// Labels and published ports an instance can have.
const MOST_LABELS: usize = 64;
/// The longest label, key or value.
const LONGEST_LABEL: usize = 256;

/// Why an operation was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceError {
    /// Its kind.
    pub code: Code,
    /// What failed, on what, and why.
    pub message: String,
    /// What to do next; may be empty.
    pub hint: String,
}

impl ServiceError {
    /// Without a hint.
    pub fn new(code: Code, message: impl ToString) -> Self {
        Self {
            code,
            message: message.to_string(),
            hint: String::new(),
        }
    }

    /// With a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl ToString) -> Self {
        self.hint = hint.to_string();
        self
    }

    fn not_found(name: &str) -> Self {
        Self::new(Code::NotFound, format!("there is no instance {name}"))
            .hint("'favo list --all' shows all, those in the trash included")
    }
}

impl From<CollectionError> for ServiceError {
    fn from(error: CollectionError) -> Self {
        let code = match &error {
            CollectionError::NotFound { .. } => Code::NotFound,
            CollectionError::Exists { .. } => Code::Exists,
            CollectionError::Conflict { .. } => Code::Changed,
            CollectionError::Contended { .. } => Code::Unavailable,
            CollectionError::Name(_) => Code::Invalid,
            CollectionError::Store(_)
            | CollectionError::Decode { .. }
            | CollectionError::Encode { .. } => Code::Internal,
        };
        Self::new(code, error)
    }
}

/// Which instances a list is to have.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Those in the trash, too.
    pub all: bool,
    /// Only those with these labels.
    pub labels: Vec<(String, String)>,
    /// At most so many.
    pub limit: Option<usize>,
    /// Those after this name.
    pub after: Option<String>,
}

/// See the module.
pub struct Service<R> {
    records: Records,
    reconciler: Arc<Reconciler<R>>,
}

impl<R: Runner> Service<R> {
    /// Over these records; changes are told to the reconciler.
    pub const fn new(records: Records, reconciler: Arc<Reconciler<R>>) -> Self {
        Self {
            records,
            reconciler,
        }
    }

    /// What is stored.
    pub const fn records(&self) -> &Records {
        &self.records
    }

    /// Who makes it so.
    pub fn reconciler(&self) -> &Arc<Reconciler<R>> {
        &self.reconciler
    }

    /// Makes an instance. The same request again, with the same key, has the
    /// same answer.
    ///
    /// # Errors
    /// The name or a value can't be; the name is taken.
    pub async fn create(
        &self,
        create: Create,
        key: Option<String>,
    ) -> Result<Accepted, ServiceError> {
        let name: Name = create
            .name
            .parse()
            .map_err(|error| ServiceError::new(Code::Invalid, error))?;
        check(&create.spec)?;
        let stored = StoredInstance {
            uid: new_id(),
            created: Timestamp::now(),
            idempotency_key: key.clone(),
            spec: create.spec,
            life: Life::Kept,
            demand: 1,
            fresh: 0,
            hard: false,
            generation: 1,
        };
        let task = new_task("create", name.as_str(), &stored);
        let instances = &self.records.instances;
        let transaction = Transaction::always([
            instances.put(name.as_str(), &stored)?,
            self.records.tasks.put(&task.id, &task)?,
        ])
        .when(favo_store::Condition::absent(
            &instances
                .key(name.as_str())
                .map_err(CollectionError::from)?,
        ));
        let outcome = self.records.store.transact(transaction).await;
        let outcome = outcome.map_err(CollectionError::from)?;
        if !outcome.succeeded {
            return self.repeated(name.as_str(), &stored, key.as_deref()).await;
        }
        self.reconciler.wake(name.as_str());
        let versioned = Versioned {
            name: name.as_str().to_owned(),
            value: stored,
            revision: outcome.revision,
            created: outcome.revision,
        };
        Ok(Accepted {
            instance: shown(versioned, None),
            task: Some(task),
        })
    }

    /// The answer to a creation whose name is taken.
    async fn repeated(
        &self,
        name: &str,
        wanted: &StoredInstance,
        key: Option<&str>,
    ) -> Result<Accepted, ServiceError> {
        let there = self.stored(name).await?;
        if key.is_some() && there.value.idempotency_key.as_deref() == key {
            if there.value.spec != wanted.spec {
                return Err(ServiceError::new(
                    Code::Conflict,
                    "this idempotency key came with another request before",
                ));
            }
            let (tasks, _) = self.records.tasks.list().await?;
            let first = tasks
                .into_iter()
                .find(|task| task.value.uid == there.value.uid && task.value.action == "create");
            return Ok(Accepted {
                instance: self.show(there).await?,
                task: first.map(|task| task.value),
            });
        }
        let error = ServiceError::new(Code::Exists, format!("there is an instance {name} already"));
        Err(match there.value.life {
            Life::Kept => error.hint("choose another name"),
            Life::Trashed => error.hint(format!(
                "it is in the trash: 'favo undelete {name}' brings it back, 'favo delete --purge \
                 {name}' makes the name free"
            )),
            Life::Purged => error.hint("it is being removed; try again in a moment"),
        })
    }

    async fn stored(&self, name: &str) -> Result<Versioned<StoredInstance>, ServiceError> {
        // A text that is no name names nothing.
        let found = match name.parse::<Name>() {
            Ok(_) => self.records.instances.get(name).await?,
            Err(_) => None,
        };
        found.ok_or_else(|| ServiceError::not_found(name))
    }

    async fn show(&self, stored: Versioned<StoredInstance>) -> Result<Instance, ServiceError> {
        let status = self.records.status.get(&stored.name).await?;
        Ok(shown(stored, status.map(|status| status.value)))
    }

    /// An instance.
    ///
    /// # Errors
    /// There is none.
    pub async fn get(&self, name: &str) -> Result<Instance, ServiceError> {
        let stored = self.stored(name).await?;
        self.show(stored).await
    }

    /// The uid of an instance, for streams to its machine.
    ///
    /// # Errors
    /// There is none.
    pub async fn uid(&self, name: &str) -> Result<String, ServiceError> {
        Ok(self.stored(name).await?.value.uid)
    }

    /// Instances by name.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(&self, filter: &Filter) -> Result<List<Instance>, ServiceError> {
        let (stored, revision) = self.records.instances.list().await?;
        let (statuses, _) = self.records.status.list().await?;
        let mut statuses: std::collections::HashMap<_, _> = statuses
            .into_iter()
            .map(|status| (status.name, status.value))
            .collect();
        let is_meant = |stored: &Versioned<StoredInstance>| {
            let (instance, labels) = (&stored.value, &stored.value.spec.labels);
            (filter.all || instance.life == Life::Kept)
                && filter
                    .after
                    .as_ref()
                    .is_none_or(|after| stored.name > *after)
                && filter
                    .labels
                    .iter()
                    .all(|(key, value)| labels.get(key) == Some(value))
        };
        let mut meant = stored.into_iter().filter(is_meant);
        let limit = filter.limit.unwrap_or(usize::MAX).max(1);
        let items: Vec<Instance> = meant
            .by_ref()
            .take(limit)
            .map(|stored| {
                let status = statuses.remove(&stored.name);
                shown(stored, status)
            })
            .collect();
        let more = meant.next().is_some();
        Ok(List {
            next_page: items.last().filter(|_| more).map(|last| last.name.clone()),
            items,
            revision: revision.0,
        })
    }

    /// Changes what an instance should be.
    ///
    /// # Errors
    /// There is none; a value can't be; it was changed since `expected`.
    pub async fn patch(
        &self,
        name: &str,
        patch: Patch,
        expected: Option<Revision>,
    ) -> Result<Accepted, ServiceError> {
        self.change(name, "set", expected, |instance| {
            let mut spec = instance.spec.clone();
            apply(&mut spec, &patch);
            check(&spec)?;
            instance.spec = spec;
            Ok(())
        })
        .await
    }

    /// Does something with an instance.
    ///
    /// # Errors
    /// There is none; it is in no state for that; it was changed since
    /// `expected`.
    pub async fn act(
        &self,
        name: &str,
        action: Action,
        expected: Option<Revision>,
    ) -> Result<Accepted, ServiceError> {
        let state = self.get(name).await?.status.state;
        self.change(name, action.name(), expected, |instance| {
            act(instance, action, state).map_err(|why| {
                ServiceError::new(
                    Code::Conflict,
                    format!("can't {} {name}: {why}", action.name()),
                )
            })
        })
        .await
    }

    /// Puts an instance into the trash, or removes it for good.
    ///
    /// # Errors
    /// There is none; it is protected; it was changed since `expected`.
    pub async fn delete(
        &self,
        name: &str,
        purge: bool,
        expected: Option<Revision>,
    ) -> Result<Accepted, ServiceError> {
        let action = if purge { "purge" } else { "delete" };
        self.change(name, action, expected, |instance| {
            if instance.spec.protect {
                let message = format!("{name} is protected from being deleted");
                return Err(ServiceError::new(Code::Protected, message)
                    .hint(format!("'favo set {name} --protect=false' lifts that")));
            }
            match (purge, instance.life) {
                (true, _) => instance.life = Life::Purged,
                (false, Life::Kept) => instance.life = Life::Trashed,
                (false, _) => {}
            }
            Ok(())
        })
        .await
    }

    /// Changes an instance and makes the task that waits for it, in one step.
    async fn change(
        &self,
        name: &str,
        action: &str,
        expected: Option<Revision>,
        change: impl Fn(&mut StoredInstance) -> Result<(), ServiceError>,
    ) -> Result<Accepted, ServiceError> {
        loop {
            let before = self.stored(name).await?;
            if expected.is_some_and(|expected| expected != before.revision) {
                return Err(ServiceError::new(
                    Code::Changed,
                    format!(
                        "{name} was changed; it is at revision {} now",
                        before.revision.0
                    ),
                )
                .hint("read it again and repeat the change"));
            }
            let mut after = before.clone();
            change(&mut after.value)?;
            if after.value == before.value {
                return Ok(Accepted {
                    instance: self.show(before).await?,
                    task: None,
                });
            }
            after.value.generation += 1;
            let task = new_task(action, name, &after.value);
            let key = self
                .records
                .instances
                .key(name)
                .map_err(CollectionError::from)?;
            let transaction = Transaction::always([
                self.records.instances.put(name, &after.value)?,
                self.records.tasks.put(&task.id, &task)?,
            ])
            .when(favo_store::Condition::unchanged(&key, before.revision));
            let outcome = self.records.store.transact(transaction).await;
            let outcome = outcome.map_err(CollectionError::from)?;
            if outcome.succeeded {
                self.reconciler.wake(name);
                after.revision = outcome.revision;
                return Ok(Accepted {
                    instance: self.show(after).await?,
                    task: Some(task),
                });
            }
            // Somebody was faster; who named a revision hears of it above.
        }
    }

    /// Tasks, the youngest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn tasks(&self, limit: usize) -> Result<List<Task>, ServiceError> {
        let (tasks, revision) = self.records.tasks.list().await?;
        let youngest = tasks.into_iter().rev().take(limit);
        Ok(List {
            items: youngest.map(|task| task.value).collect(),
            revision: revision.0,
            next_page: None,
        })
    }

    /// A task.
    ///
    /// # Errors
    /// There is none of this id.
    pub async fn task(&self, id: &str) -> Result<Task, ServiceError> {
        let found = self.records.tasks.get(id).await?;
        found
            .map(|task| task.value)
            .ok_or_else(|| ServiceError::new(Code::NotFound, format!("there is no task {id}")))
    }

    /// What of the host is given to instances, added to what it has.
    ///
    /// # Errors
    /// The store's.
    pub async fn host(&self, mut host: Host) -> Result<Host, ServiceError> {
        for instance in self.list(&Filter::default()).await?.items {
            if matches!(instance.status.state, State::Running | State::Paused) {
                host.running += 1;
                host.cpus_given += instance.spec.cpus;
                host.memory_given += instance.spec.memory;
            }
        }
        Ok(host)
    }

    /// Takes up the work on every instance; call it once. After the host was
    /// started anew, only those that are to start by themselves do.
    ///
    /// # Errors
    /// The store's.
    pub async fn resume(&self, host_is_new: bool) -> Result<(), ServiceError> {
        let (instances, _) = self.records.instances.list().await?;
        for stored in instances {
            if host_is_new && stored.value.spec.power != Power::Stopped {
                let autostart = |instance: &mut StoredInstance| {
                    instance.generation += 1;
                    match instance.spec.autostart {
                        true => {
                            instance.spec.power = Power::Running;
                            instance.demand += 1;
                        }
                        false => instance.spec.power = Power::Stopped,
                    }
                    Ok::<(), std::convert::Infallible>(())
                };
                let changed = self.records.instances.modify(&stored.name, autostart).await;
                if let Err(error) = changed {
                    tracing::warn!(instance = stored.name, %error, "autostart");
                }
            }
            self.reconciler.wake(&stored.name);
        }
        Ok(())
    }
}

/// What an action changes of what is desired.
fn act(instance: &mut StoredInstance, action: Action, state: State) -> Result<(), &'static str> {
    if action == Action::Undelete {
        return match instance.life {
            Life::Trashed => {
                instance.life = Life::Kept;
                instance.spec.power = Power::Stopped;
                Ok(())
            }
            Life::Kept => Err("it is not in the trash"),
            Life::Purged => Err("it is being removed for good"),
        };
    }
    if instance.life != Life::Kept {
        return Err("it is in the trash; 'favo undelete' brings it back");
    }
    let is_up = matches!(state, State::Running | State::Paused | State::Starting);
    match action {
        Action::Start => {
            // A guest that ended is started again.
            if instance.spec.power == Power::Stopped || !is_up {
                instance.demand += 1;
            }
            (instance.spec.power, instance.hard) = (Power::Running, false);
        }
        Action::Restart => {
            instance.demand += 1;
            instance.fresh = instance.demand;
            (instance.spec.power, instance.hard) = (Power::Running, false);
        }
        Action::Stop => (instance.spec.power, instance.hard) = (Power::Stopped, false),
        Action::Kill => (instance.spec.power, instance.hard) = (Power::Stopped, true),
        Action::Pause if instance.spec.power == Power::Stopped || !is_up => {
            return Err("it does not run");
        }
        Action::Pause => instance.spec.power = Power::Paused,
        Action::Resume if instance.spec.power != Power::Paused => return Err("it is not paused"),
        Action::Resume => instance.spec.power = Power::Running,
        Action::Undelete => {}
    }
    Ok(())
}

fn apply(spec: &mut Spec, patch: &Patch) {
    let patch = patch.clone();
    fn set<T>(to: &mut T, from: Option<T>) {
        if let Some(value) = from {
            *to = value;
        }
    }
    set(&mut spec.cpus, patch.cpus);
    set(&mut spec.memory, patch.memory);
    set(&mut spec.publish, patch.publish);
    set(&mut spec.rate, patch.rate);
    set(&mut spec.restart, patch.restart);
    set(&mut spec.autostart, patch.autostart);
    set(&mut spec.protect, patch.protect);
    for (key, value) in patch.labels {
        match value {
            Some(value) => drop(spec.labels.insert(key, value)),
            None => drop(spec.labels.remove(&key)),
        }
    }
}

/// Refuses what can't be.
fn check(spec: &Spec) -> Result<(), ServiceError> {
    let invalid = |message: String| Err(ServiceError::new(Code::Invalid, message));
    if !(1..=MOST_CPUS).contains(&spec.cpus) {
        return invalid(format!("cpus is {}; it can be 1 to {MOST_CPUS}", spec.cpus));
    }
    if spec.memory < LEAST_MEMORY || !spec.memory.is_multiple_of(4096) {
        return invalid(format!(
            "memory is {} bytes; it must be at least {LEAST_MEMORY}, in whole pages of 4096",
            spec.memory
        ));
    }
    if spec.labels.len() > MOST_LABELS {
        return invalid(format!("more than {MOST_LABELS} labels"));
    }
    let texts = spec.labels.iter().flat_map(|(key, value)| [key, value]);
    let texts = texts.chain([&spec.image, &spec.network]);
    for text in texts.chain(&spec.publish).chain(&spec.rate) {
        if text.len() > LONGEST_LABEL || text.chars().any(char::is_control) {
            return invalid(format!("{text:?} is too long or has control characters"));
        }
    }
    Ok(())
}

fn new_task(action: &str, name: &str, instance: &StoredInstance) -> Task {
    Task {
        // Ids grow with time, so the store's order is theirs.
        id: format!(
            "{:011x}-{}",
            Timestamp::now().as_millisecond(),
            &new_id()[..8]
        ),
        action: action.to_owned(),
        instance: name.to_owned(),
        uid: instance.uid.clone(),
        generation: instance.generation,
        state: TaskState::Running,
        message: String::new(),
        created: Timestamp::now(),
        finished: None,
    }
}

/// 64 random bits in hexadecimal: short, for a socket's path has 108 bytes.
pub(crate) fn new_id() -> String {
    let mut bytes = [0; 8];
    // Never fails for so few, once the host is up.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    format!("{:016x}", u64::from_le_bytes(bytes))
}

#[cfg(test)]
#[path = "service_test.rs"]
mod test;

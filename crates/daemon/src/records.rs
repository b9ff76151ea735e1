//! What the daemon keeps in its store: instances, what became of them, tasks.

use std::sync::Arc;

use favo_api::task::{Task, TaskState};
use favo_store::{
    Collection, CollectionError, Condition, KeyError, ModifyError, Operation, Store, Transaction,
    Versioned,
};
use jiff::Timestamp;

use crate::resource::{StoredInstance, StoredStatus};

/// Ended tasks that are kept.
const KEPT_TASKS: usize = 500;

/// See the module.
#[derive(Clone, Debug)]
pub struct Records {
    /// The store itself.
    pub store: Arc<dyn Store>,
    /// What should be, by name.
    pub instances: Collection<StoredInstance>,
    /// What is, by name.
    pub status: Collection<StoredStatus>,
    /// What was asked for, by id, which grows with time.
    pub tasks: Collection<Task>,
}

impl Records {
    /// Those of a store.
    ///
    /// # Errors
    /// Never: the nouns are keys.
    pub fn new(store: Arc<dyn Store>) -> Result<Self, KeyError> {
        Ok(Self {
            instances: Collection::new(store.clone(), "instances")?,
            status: Collection::new(store.clone(), "status")?,
            tasks: Collection::new(store.clone(), "tasks")?,
            store,
        })
    }

    /// Stores what became of an instance, if that is new.
    ///
    /// # Errors
    /// The store's.
    pub async fn set_status(
        &self,
        name: &str,
        status: StoredStatus,
    ) -> Result<(), CollectionError> {
        loop {
            let result = match self.status.get(name).await? {
                Some(before) if before.value == status => return Ok(()),
                Some(before) => {
                    let replaced = self.status.replace(name, before.revision, &status);
                    replaced.await.map(drop)
                }
                None => self.status.create(name, status.clone()).await.map(drop),
            };
            match result {
                // Only the worker of another life of this name writes it, too.
                Err(
                    CollectionError::Conflict { .. }
                    | CollectionError::Exists { .. }
                    | CollectionError::NotFound { .. },
                ) => {}
                other => return other,
            }
        }
    }

    /// Removes the records of an instance in one step.
    ///
    /// # Errors
    /// The store's; [`CollectionError::Conflict`] if it was changed since.
    pub async fn forget(&self, stored: &Versioned<StoredInstance>) -> Result<(), CollectionError> {
        let (instance, status) = (
            self.instances.key(&stored.name)?,
            self.status.key(&stored.name)?,
        );
        let transaction = Transaction::always([
            Operation::Delete(instance.clone()),
            Operation::Delete(status),
        ])
        .when(Condition::unchanged(&instance, stored.revision));
        let outcome = self.store.transact(transaction).await?;
        match outcome.succeeded {
            true => Ok(()),
            false => Err(CollectionError::Conflict {
                key: instance,
                expected: stored.revision,
                found: None,
            }),
        }
    }

    /// Ends the tasks of an instance up to a generation.
    ///
    /// # Errors
    /// The store's.
    pub async fn finish_tasks(
        &self,
        uid: &str,
        generation: u64,
        state: TaskState,
        message: &str,
    ) -> Result<(), CollectionError> {
        let (tasks, _) = self.tasks.list().await?;
        let is_meant = |task: &Task| {
            task.state == TaskState::Running && task.uid == uid && task.generation <= generation
        };
        for task in tasks.iter().filter(|task| is_meant(&task.value)) {
            let finish = |task: &mut Task| {
                if task.state == TaskState::Running {
                    task.state = state;
                    task.message = message.to_owned();
                    task.finished = Some(Timestamp::now());
                }
                Ok::<(), std::convert::Infallible>(())
            };
            match self.tasks.modify(&task.name, finish).await {
                Ok(_) | Err(ModifyError::Collection(CollectionError::NotFound { .. })) => {}
                Err(ModifyError::Collection(error)) => return Err(error),
                Err(ModifyError::Change(never)) => match never {},
            }
        }
        self.drop_old_tasks(&tasks).await
    }

    async fn drop_old_tasks(&self, tasks: &[Versioned<Task>]) -> Result<(), CollectionError> {
        let ended = tasks
            .iter()
            .filter(|task| task.value.state != TaskState::Running);
        let surplus = ended.clone().count().saturating_sub(KEPT_TASKS);
        for task in ended.take(surplus) {
            match self.tasks.delete(&task.name, task.revision).await {
                Ok(_)
                | Err(CollectionError::NotFound { .. } | CollectionError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

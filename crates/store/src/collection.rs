//! Resources: serde types under names, each with the revision it was read at.
//!
//! What the daemon's API calls a resource is one entry here, as JSON, so that
//! other tools can read it and older and newer programs can live together. A
//! resource's revision is what `If-Match` carries: a change names the revision
//! it was made from, and is refused if someone was faster.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{
    Condition, Entry, Error, Event, Key, KeyError, Operation, OperationResult, Prefix, Range,
    Revision, Store, Transaction, Watch,
};

/// How often [`Collection::modify`] tries before it gives up on rivals.
const ATTEMPTS: u32 = 32;

/// A resource as it was stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Versioned<T> {
    /// Its name in the collection.
    pub name: String,
    /// The resource.
    pub value: T,
    /// When it was last written: what a change of it is compared with.
    pub revision: Revision,
    /// When it came to be.
    pub created: Revision,
}

/// Why a resource was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum CollectionError {
    /// The store's own trouble.
    #[error(transparent)]
    Store(#[from] Error),
    /// The name can't be part of a key.
    #[error(transparent)]
    Name(#[from] KeyError),
    /// There is none of this name.
    #[error("there is no {key}")]
    NotFound {
        /// Where it would be.
        key: Key,
    },
    /// There is one of this name already.
    #[error("{key} exists already")]
    Exists {
        /// Where it is.
        key: Key,
    },
    /// It changed since the revision that was named.
    #[error("{key} was changed since revision {expected}; read it again and repeat the change")]
    Conflict {
        /// Where it is.
        key: Key,
        /// The revision the change was made from.
        expected: Revision,
        /// The revision it is at; none if it is gone.
        found: Option<Revision>,
    },
    /// Others changed it again and again meanwhile.
    #[error("{key} is changed all the time by others; gave up after {attempts} attempts")]
    Contended {
        /// Where it is.
        key: Key,
        /// How often it was tried.
        attempts: u32,
    },
    /// What is stored there is not such a resource. A newer program may have
    /// written it.
    #[error("{key} is stored in a form this program does not know")]
    Decode {
        /// Where it is.
        key: Key,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
    /// The resource can't be written as JSON. A mistake of the program.
    #[error("{key} can't be written as JSON")]
    Encode {
        /// Where it would be.
        key: Key,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
}

/// Why [`Collection::modify`] did nothing.
#[derive(Debug, thiserror::Error)]
pub enum ModifyError<E> {
    /// The change itself did not want to.
    #[error("{0}")]
    Change(E),
    /// The collection's trouble.
    #[error(transparent)]
    Collection(#[from] CollectionError),
}

/// All resources of one kind in a store.
pub struct Collection<T> {
    store: Arc<dyn Store>,
    prefix: Prefix,
    kind: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned> Collection<T> {
    /// The resources whose keys begin with `noun` and a slash.
    ///
    /// # Errors
    /// The noun can't be part of a key.
    pub fn new(store: Arc<dyn Store>, noun: &str) -> Result<Self, KeyError> {
        Ok(Self {
            store,
            prefix: Prefix::new(format!("{noun}/"))?,
            kind: PhantomData,
        })
    }

    /// Where a resource is kept, for transactions that touch several.
    ///
    /// # Errors
    /// The name can't be part of a key.
    pub fn key(&self, name: &str) -> Result<Key, KeyError> {
        self.prefix.key(name)
    }

    /// The operation that stores a resource, for transactions that touch
    /// several.
    ///
    /// # Errors
    /// It can't be written as JSON, or the name can't be part of a key.
    pub fn put(&self, name: &str, value: &T) -> Result<Operation, CollectionError> {
        let key = self.key(name)?;
        match serde_json::to_vec(value) {
            Ok(json) => Ok(Operation::put(&key, json)),
            Err(source) => Err(CollectionError::Encode { key, source }),
        }
    }

    /// The resource of this name.
    ///
    /// # Errors
    /// It can't be read.
    pub async fn get(&self, name: &str) -> Result<Option<Versioned<T>>, CollectionError> {
        let entry = self.store.get(&self.key(name)?).await?;
        entry.map(|entry| self.decode(entry)).transpose()
    }

    /// All resources, in the order of their names, and the revision to watch
    /// from: the one after it.
    ///
    /// # Errors
    /// One of them can't be read.
    pub async fn list(&self) -> Result<(Vec<Versioned<T>>, Revision), CollectionError> {
        let page = self.store.range(&Range::prefix(&self.prefix), None).await?;
        let resources = page.entries.into_iter().map(|entry| self.decode(entry));
        Ok((resources.collect::<Result<_, _>>()?, page.revision))
    }

    /// Stores a resource under a name that is free.
    ///
    /// # Errors
    /// [`CollectionError::Exists`] if it is not.
    pub async fn create(&self, name: &str, value: T) -> Result<Versioned<T>, CollectionError> {
        let key = self.key(name)?;
        let transaction =
            Transaction::always([self.put(name, &value)?]).when(Condition::absent(&key));
        let outcome = self.store.transact(transaction).await?;
        if !outcome.succeeded {
            return Err(CollectionError::Exists { key });
        }
        Ok(Versioned {
            name: name.to_owned(),
            value,
            revision: outcome.revision,
            created: outcome.revision,
        })
    }

    /// Replaces a resource, if it is still at the revision this was made from.
    ///
    /// # Errors
    /// [`CollectionError::NotFound`] if there is none,
    /// [`CollectionError::Conflict`] if it changed.
    pub async fn replace(
        &self,
        name: &str,
        expected: Revision,
        value: &T,
    ) -> Result<Revision, CollectionError> {
        let operation = self.put(name, value)?;
        self.change(name, expected, operation).await
    }

    /// Deletes a resource, if it is still at `expected`.
    ///
    /// # Errors
    /// [`CollectionError::NotFound`] if there is none,
    /// [`CollectionError::Conflict`] if it changed.
    pub async fn delete(
        &self,
        name: &str,
        expected: Revision,
    ) -> Result<Revision, CollectionError> {
        let operation = Operation::Delete(self.key(name)?);
        self.change(name, expected, operation).await
    }

    /// Reads a resource, changes it, and writes it back if nobody else did
    /// meanwhile; otherwise does so again. Who changes nothing writes nothing.
    ///
    /// `change` may run several times, each time on what is stored by then.
    ///
    /// # Errors
    /// What `change` says, or the collection.
    pub async fn modify<E>(
        &self,
        name: &str,
        mut change: impl FnMut(&mut T) -> Result<(), E> + Send,
    ) -> Result<Versioned<T>, ModifyError<E>>
    where
        T: Send,
    {
        let key = self.key(name).map_err(CollectionError::from)?;
        for attempt in 0..ATTEMPTS {
            let entry = self.store.get(&key).await.map_err(CollectionError::from)?;
            let Some(entry) = entry else {
                return Err(CollectionError::NotFound { key }.into());
            };
            let before = entry.value.clone();
            let mut resource = self.decode(entry)?;
            change(&mut resource.value).map_err(ModifyError::Change)?;
            let operation = self.put(name, &resource.value)?;
            if matches!(&operation, Operation::Put { value, .. } if *value == before) {
                return Ok(resource);
            }
            match self.change(name, resource.revision, operation).await {
                Ok(revision) => {
                    resource.revision = revision;
                    return Ok(resource);
                }
                Err(CollectionError::Conflict { .. } | CollectionError::NotFound { .. }) => {
                    // Rivals that lose together would meet again; this is
                    // rare enough not to need a random number.
                    let pause = Duration::from_micros(200) * attempt.min(20);
                    tokio::time::sleep(pause).await;
                }
                Err(other) => return Err(other.into()),
            }
        }
        Err(CollectionError::Contended {
            key,
            attempts: ATTEMPTS,
        }
        .into())
    }

    /// Watches the collection from a revision on.
    ///
    /// # Errors
    /// As [`Store::watch`].
    pub async fn watch(&self, from: Revision) -> Result<CollectionWatch<T>, CollectionError> {
        Ok(CollectionWatch {
            watch: self.store.watch(&self.prefix, from).await?,
            collection: self.clone(),
        })
    }

    async fn change(
        &self,
        name: &str,
        expected: Revision,
        operation: Operation,
    ) -> Result<Revision, CollectionError> {
        let key = self.key(name)?;
        // Zero would say that there must be none.
        let transaction = Transaction::always([operation])
            .when(Condition::exists(&key))
            .when(Condition::unchanged(&key, expected))
            .otherwise(Operation::Get(key.clone()));
        let outcome = self.store.transact(transaction).await?;
        if outcome.succeeded {
            return Ok(outcome.revision);
        }
        Err(match outcome.results.into_iter().next() {
            Some(OperationResult::Got(Some(entry))) => CollectionError::Conflict {
                key,
                expected,
                found: Some(entry.modified),
            },
            _ => CollectionError::NotFound { key },
        })
    }

    fn decode(&self, entry: Entry) -> Result<Versioned<T>, CollectionError> {
        let name = entry.key.strip_prefix(&self.prefix).unwrap_or_default();
        let name = name.to_owned();
        match serde_json::from_slice(&entry.value) {
            Ok(value) => Ok(Versioned {
                name,
                value,
                revision: entry.modified,
                created: entry.created,
            }),
            Err(source) => Err(CollectionError::Decode {
                key: entry.key,
                source,
            }),
        }
    }
}

impl<T> Clone for Collection<T> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            prefix: self.prefix.clone(),
            kind: PhantomData,
        }
    }
}

impl<T> fmt::Debug for Collection<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Collection").field(&self.prefix).finish()
    }
}

/// One resource's change.
#[derive(Debug)]
pub enum Change<T> {
    /// It was written; this is what is stored since.
    Put(Versioned<T>),
    /// The resource of this name was deleted.
    Delete(String),
    /// It was written, but not as a resource of this kind: the error names it.
    /// The watch goes on.
    Unreadable(CollectionError),
}

/// The changes of a collection, as [`Watch`] gives them.
#[derive(Debug)]
pub struct CollectionWatch<T> {
    collection: Collection<T>,
    watch: Box<dyn Watch>,
}

impl<T: Serialize + DeserializeOwned> CollectionWatch<T> {
    /// Waits for the next transaction that changed the collection: its
    /// revision and changes. Dropping the future loses nothing.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub async fn next(&mut self) -> Result<(Revision, Vec<Change<T>>), Error> {
        let batch = self.watch.next().await?;
        let changes = batch.events.into_iter().map(|event| match event {
            Event::Put(entry) => match self.collection.decode(entry) {
                Ok(resource) => Change::Put(resource),
                Err(error) => Change::Unreadable(error),
            },
            Event::Delete(key) => {
                let name = key.strip_prefix(&self.collection.prefix);
                Change::Delete(name.unwrap_or_default().to_owned())
            }
        });
        Ok((batch.revision, changes.collect()))
    }

    /// As [`Watch::position`].
    pub fn position(&self) -> Revision {
        self.watch.position()
    }
}

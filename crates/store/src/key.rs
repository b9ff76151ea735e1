//! Keys and prefixes: paths, as text.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name of one entry: 1 to [`Key::LONGEST`] bytes of UTF-8 without control
/// characters, by custom a path like `instance/mail`.
///
/// Keys are ordered by their bytes. They are text, not bytes, so that every
/// tool, log and event can show them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key(String);

/// The beginning of a key; the empty prefix is the beginning of all.
///
/// A prefix is not a directory: `a` is a prefix of `ab`. Who means a directory
/// ends it with a slash.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(String);

/// Why a text is no key, or no beginning of one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A key has at least one byte.
    #[error("a key can't be empty")]
    Empty,
    /// Longer than [`Key::LONGEST`].
    #[error("a key has at most {longest} bytes, this one has {0}", longest = Key::LONGEST)]
    TooLong(usize),
    /// A control character, which would make logs and terminals lie.
    #[error("the key {0:?} has a control character")]
    Control(String),
}

fn check(text: &str) -> Result<(), KeyError> {
    if text.len() > Key::LONGEST {
        return Err(KeyError::TooLong(text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err(KeyError::Control(text.to_owned()));
    }
    Ok(())
}

impl Key {
    /// The length of the longest key, in bytes.
    pub const LONGEST: usize = 512;

    /// The key of this text.
    ///
    /// # Errors
    /// The text is empty, too long, or has control characters.
    pub fn new(text: impl Into<String>) -> Result<Self, KeyError> {
        let text = text.into();
        if text.is_empty() {
            return Err(KeyError::Empty);
        }
        check(&text)?;
        Ok(Self(text))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the key begins with `prefix`.
    pub fn starts_with(&self, prefix: &Prefix) -> bool {
        self.0.starts_with(&prefix.0)
    }

    /// What follows `prefix`, if the key begins with it.
    pub fn strip_prefix(&self, prefix: &Prefix) -> Option<&str> {
        self.0.strip_prefix(&prefix.0)
    }
}

impl Prefix {
    /// The beginning of every key.
    pub const ALL: Self = Self(String::new());

    /// The prefix of this text.
    ///
    /// # Errors
    /// The text is too long or has control characters.
    pub fn new(text: impl Into<String>) -> Result<Self, KeyError> {
        let text = text.into();
        check(&text)?;
        Ok(Self(text))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key that has `rest` behind this prefix.
    ///
    /// # Errors
    /// Together they are no key.
    pub fn key(&self, rest: &str) -> Result<Key, KeyError> {
        Key::new(format!("{}{rest}", self.0))
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::new(text)
    }
}

impl TryFrom<String> for Key {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        Self::new(text)
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.0
    }
}

impl TryFrom<String> for Prefix {
    type Error = KeyError;

    fn try_from(text: String) -> Result<Self, KeyError> {
        Self::new(text)
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
#[path = "key_test.rs"]
mod test;

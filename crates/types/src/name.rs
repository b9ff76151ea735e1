//! Names of instances, volumes, networks and everything else people name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name as people give it: a DNS label that begins with a letter.
///
/// 1 to 63 lower-case letters, digits and hyphens; the first is a letter, the
/// last is no hyphen (RFC 1035 §2.3.1). So an instance's name is its host name
/// and its name in DNS, a part of a URL and of a path, and never mistaken for
/// a number, an address or an option.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is nothing.
    #[error("a name can't be empty")]
    Empty,
    /// More than [`Name::LONGEST`] characters.
    #[error("a name has at most {most} characters, '{0}' has more", most = Name::LONGEST)]
    TooLong(String),
    /// The first character is no letter.
    #[error("'{0}' is not a name: the first character must be a letter from a to z")]
    Begin(String),
    /// The last character is a hyphen.
    #[error("'{0}' is not a name: it can't end with a hyphen")]
    End(String),
    /// A character that names don't have.
    #[error("'{name}' is not a name: it has {character:?}, use only a to z, 0 to 9 and hyphens")]
    Character {
        /// The text, without control characters.
        name: String,
        /// The first wrong character.
        character: char,
    },
}

impl Name {
    /// The length of the longest name.
    pub const LONGEST: usize = 63;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What of a text can be shown in an error: not all, if it is long, and no
/// control characters.
fn shown(text: &str) -> String {
    const LONGEST: usize = 80;
    let mut shown: String = text
        .chars()
        .take(LONGEST)
        .filter(|character| !character.is_control())
        .collect();
    if text.chars().nth(LONGEST).is_some() {
        shown.push('…');
    }
    shown
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        let Some(first) = text.chars().next() else {
            return Err(NameError::Empty);
        };
        let wrong = text
            .chars()
            .find(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-'));
        if let Some(character) = wrong {
            return Err(NameError::Character {
                name: shown(&text),
                character,
            });
        }
        if text.len() > Self::LONGEST {
            return Err(NameError::TooLong(shown(&text)));
        }
        if !first.is_ascii_lowercase() {
            return Err(NameError::Begin(text));
        }
        if text.ends_with('-') {
            return Err(NameError::End(text));
        }
        Ok(Self(text))
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::try_from(text.to_owned())
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
#[path = "name_test.rs"]
mod test;

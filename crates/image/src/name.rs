//! What people call an image: `debian:12`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A name and a tag. Parts of a name are separated by `/`; without a tag it is `latest`.
///
/// Each part, and the tag, begins with a letter or digit and holds lower-case letters,
/// digits, `.`, `_`, `-`; the tag may hold upper-case letters and `+` too. At most 128 characters each: the
/// name is also a file name in the store.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName {
    name: String,
    tag: String,
}

/// The text is not the name of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not an image name: write NAME or NAME:TAG, of lower-case letters, digits and . _ - /"
)]
pub struct ImageNameError(String);

const LIMIT: usize = 128;

impl ImageName {
    /// The name without the tag.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tag.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The file name in the store's catalogue: no `/`, and different for different names.
    pub(crate) fn file_name(&self) -> String {
        format!("{}:{}.json", self.name.replace('/', "%"), self.tag)
    }

    /// The name whose file name this is.
    pub(crate) fn from_file_name(file_name: &str) -> Option<Self> {
        let name: Self = file_name
            .strip_suffix(".json")?
            .replace('%', "/")
            .parse()
            .ok()?;
        (name.file_name() == file_name).then_some(name)
    }
}

impl FromStr for ImageName {
    type Err = ImageNameError;

    fn from_str(text: &str) -> Result<Self, ImageNameError> {
        let (name, tag) = text.split_once(':').unwrap_or((text, "latest"));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let part = |part: &str, more: &dyn Fn(char) -> bool| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.chars().all(|c| plain(c) || more(c))
        };
        let good = name.len() <= LIMIT
            && tag.len() <= LIMIT
            && name.split('/').all(|p| part(p, &|_| false))
            && part(tag, &|c| c.is_ascii_uppercase() || c == '+');
        if !good {
            return Err(ImageNameError(text.into()));
        }
        Ok(Self {
            name: name.into(),
            tag: tag.into(),
        })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.tag)
    }
}

impl fmt::Debug for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ImageName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[path = "name_test.rs"]
mod test;

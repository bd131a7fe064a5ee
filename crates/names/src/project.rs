//! The project (tenant) that content, grants and quotas belong to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// In bytes.
const NAME_MAX: usize = 63;
const DEFAULT: &str = "default";
/// Of hostile text so much is quoted, in characters.
const QUOTED_MAX: usize = 100;

/// A project's name: 1 to 63 of `a` to `z`, `0` to `9`, `-`, `_` and `.`, the first of them a letter or a digit. So no name
/// leads out of a folder, and two names differ on file systems that ignore case as well.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Project(Box<str>);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is not a project's name: up to {NAME_MAX} of a-z, 0-9, -, _ and ., the first a letter or a digit"
)]
pub struct NotAProject(String);

impl Project {
    /// As it came over the wire: no name means the default project.
    pub fn named(name: &str) -> Result<Project, NotAProject> {
        if name.is_empty() { Ok(Project::default()) } else { name.parse() }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Project {
    fn default() -> Project {
        Project(DEFAULT.into())
    }
}

impl FromStr for Project {
    type Err = NotAProject;

    fn from_str(name: &str) -> Result<Project, NotAProject> {
        let first = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let rest = |byte: u8| first(byte) || matches!(byte, b'-' | b'_' | b'.');
        let well_formed =
            name.len() <= NAME_MAX && name.bytes().next().is_some_and(first) && name.bytes().all(rest);
        match well_formed {
            true => Ok(Project(name.into())),
            false => Err(NotAProject(name.chars().take(QUOTED_MAX).collect())),
        }
    }
}

impl fmt::Display for Project {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for Project {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, formatter)
    }
}

impl Serialize for Project {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Project {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Project, D::Error> {
        Project::named(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_the_default_project() {
        assert_eq!(Project::named("").unwrap().as_str(), "default");
        assert_eq!(Project::named("default").unwrap(), Project::default());
        assert_eq!(Project::named("team-a.1_b").unwrap().as_str(), "team-a.1_b");
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        let long = "a".repeat(NAME_MAX + 1);
        for wrong in ["..", ".hidden", "-a", "a/b", "a\\b", "A", "ä", "a b", "a\0", "a*", "a>b", &long] {
            assert!(Project::named(wrong).is_err(), "{wrong:?}");
        }
        assert!("".parse::<Project>().is_err(), "who names a project names one");
        assert!(Project::named(&long[1..]).is_ok());
    }
}

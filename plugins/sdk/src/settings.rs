//! Settings: what a policy has, and what the operator wrote.

use crate::{About, Kind, KnownSetting, Problem, Setting, Value};

/// What the operator wrote. The host has checked names and types by what [`About`] says, so a setting that is
/// asked for by its own type is there, or was left out.
#[derive(Debug, Default)]
pub struct Settings(Vec<Setting>);

impl From<Vec<Setting>> for Settings {
    fn from(settings: Vec<Setting>) -> Settings {
        Settings(settings)
    }
}

impl Settings {
    pub fn text(&self, name: &str) -> Option<&str> {
        if let Value::Text(text) = self.value(name)? { Some(text) } else { None }
    }

    pub fn number(&self, name: &str) -> Option<i64> {
        if let Value::Number(number) = self.value(name)? { Some(*number) } else { None }
    }

    /// Left out: false.
    pub fn truth(&self, name: &str) -> bool {
        matches!(self.value(name), Some(Value::Truth(true)))
    }

    /// Left out: none.
    pub fn texts(&self, name: &str) -> &[String] {
        if let Some(Value::Texts(texts)) = self.value(name) { texts } else { &[] }
    }

    /// Left out: none.
    pub fn groups(&self, name: &str) -> &[(String, Vec<String>)] {
        if let Some(Value::Groups(groups)) = self.value(name) { groups } else { &[] }
    }

    pub fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|setting| setting.name == name).map(|setting| &setting.value)
    }
}

/// What a policy says of itself.
pub fn about(
    name: &str,
    version: &str,
    summary: &str,
    settings: impl IntoIterator<Item = KnownSetting>,
) -> About {
    About {
        name: name.to_owned(),
        version: version.to_owned(),
        summary: summary.to_owned(),
        settings: settings.into_iter().collect(),
    }
}

/// A setting that may be left out.
pub fn known(name: &str, kind: Kind, help: &str) -> KnownSetting {
    KnownSetting { name: name.to_owned(), kind, required: false, help: help.to_owned() }
}

pub fn required(name: &str, kind: Kind, help: &str) -> KnownSetting {
    KnownSetting { required: true, ..known(name, kind, help) }
}

pub fn problem(setting: &str, message: impl Into<String>) -> Problem {
    Problem { setting: setting.to_owned(), message: message.into() }
}

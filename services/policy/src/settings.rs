//! From what the operator wrote to what a policy is told: settings get the types that the policy declares.

use toml::Value as Written;

use crate::foreign::{brief, reason};
use crate::host::{About, Kind, KnownSetting, Problem, Setting, Value};

/// Settings of one policy; the largest real ones are allow-lists.
const SETTINGS_MAX: usize = 64;
/// Texts in one setting.
const TEXTS_MAX: usize = 10_000;

/// The settings in the policy's own types, or everything that is wrong with them.
pub(crate) fn typed(about: &About, written: &toml::Table) -> Result<Vec<Setting>, Vec<Problem>> {
    let mut problems = Vec::new();
    if written.len() > SETTINGS_MAX {
        return Err(vec![problem("", &format!("there are more than {SETTINGS_MAX} of them"))]);
    }
    let mut settings = Vec::new();
    for (name, value) in written {
        let Some(known) = about.settings.iter().find(|known| known.name == *name) else {
            problems.push(problem(name, &unknown(about)));
            continue;
        };
        match value_of(known.kind, value) {
            Some(value) => settings.push(Setting { name: name.clone(), value }),
            None => problems.push(problem(name, &format!("{} expected", expected(known.kind)))),
        }
    }
    let missing = about.settings.iter().filter(|known| known.required && !written.contains_key(&known.name));
    problems.extend(missing.map(|known| problem(&known.name, "it is required")));
    if problems.is_empty() { Ok(settings) } else { Err(problems) }
}

/// A setting that a policy has, for people.
pub(crate) fn shown(known: &KnownSetting) -> proto::PolicySetting {
    proto::PolicySetting {
        name: brief(&known.name),
        kind: expected(known.kind).to_owned(),
        required: known.required,
        help: brief(&known.help),
    }
}

/// All on one line, for an error: some of it is the policy's own words.
pub(crate) fn listed(problems: &[Problem]) -> String {
    let one = |problem: &Problem| match problem.setting.is_empty() {
        true => problem.message.clone(),
        false => format!("{}: {}", problem.setting, problem.message),
    };
    reason(&problems.iter().map(one).collect::<Vec<_>>().join("; "))
}

fn problem(setting: &str, message: &str) -> Problem {
    Problem { setting: setting.to_owned(), message: message.to_owned() }
}

fn unknown(about: &About) -> String {
    let names: Vec<&str> = about.settings.iter().map(|known| known.name.as_str()).collect();
    match names.is_empty() {
        true => "there is no such setting: this policy has none".to_owned(),
        false => format!("there is no such setting; there are {}", names.join(", ")),
    }
}

fn value_of(kind: Kind, value: &Written) -> Option<Value> {
    match kind {
        Kind::Text => value.as_str().map(|text| Value::Text(text.to_owned())),
        Kind::Number => value.as_integer().map(Value::Number),
        Kind::Truth => value.as_bool().map(Value::Truth),
        Kind::Texts => texts(value).map(Value::Texts),
        Kind::Groups => {
            let groups = value.as_table()?.iter();
            groups
                .map(|(name, value)| Some((name.clone(), texts(value)?)))
                .collect::<Option<_>>()
                .map(Value::Groups)
        }
    }
}

fn texts(value: &Written) -> Option<Vec<String>> {
    let values = value.as_array().filter(|values| values.len() <= TEXTS_MAX)?;
    values.iter().map(|value| value.as_str().map(str::to_owned)).collect()
}

fn expected(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "a text",
        Kind::Number => "a whole number",
        Kind::Truth => "true or false",
        Kind::Texts => "a list of texts",
        Kind::Groups => "a table of lists of texts",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::known_setting;

    fn about() -> About {
        let setting = |(name, kind, required): (&str, Kind, bool)| known_setting(name, kind, required);
        let settings = [
            ("name", Kind::Text, true),
            ("max", Kind::Number, false),
            ("loud", Kind::Truth, false),
            ("allow", Kind::Texts, false),
            ("areas", Kind::Groups, false),
        ];
        let settings = settings.map(setting).to_vec();
        About { name: "x".into(), version: "1.0.0".into(), summary: String::new(), settings }
    }

    fn check(written: &str, expected: &str) {
        let problems = typed(&about(), &written.parse().unwrap()).unwrap_err();
        assert_eq!(listed(&problems), expected, "{written}");
    }

    #[test]
    fn every_kind_is_read() {
        let written =
            "name = 'n'\nmax = -3\nloud = true\nallow = ['a', 'b']\nareas = { Europe = ['eu-1'], none = [] }";
        let settings = typed(&about(), &written.parse().unwrap()).unwrap();
        let value =
            |name: &str| settings.iter().find(|setting| setting.name == name).map(|s| s.value.clone());
        assert!(matches!(value("name"), Some(Value::Text(text)) if text == "n"));
        assert!(matches!(value("max"), Some(Value::Number(-3))));
        assert!(matches!(value("loud"), Some(Value::Truth(true))));
        assert!(matches!(value("allow"), Some(Value::Texts(texts)) if texts == ["a", "b"]));
        let Some(Value::Groups(groups)) = value("areas") else { panic!("no groups") };
        assert_eq!(groups, [("Europe".to_owned(), vec!["eu-1".to_owned()]), ("none".to_owned(), vec![])]);
    }

    #[test]
    fn what_is_wrong_is_said_all_at_once() {
        check("", "name: it is required");
        check("name = 1", "name: a text expected");
        check(
            "name = 'n'\nmax = '3'\nloud = 1\nallow = 'a'\nareas = ['a']",
            "allow: a list of texts expected; areas: a table of lists of texts expected; loud: true or false expected; \
             max: a whole number expected",
        );
        check(
            "name = 'n'\nmaximum = 3",
            "maximum: there is no such setting; there are name, max, loud, allow, areas",
        );
        check("name = 'n'\nallow = ['a', 1]", "allow: a list of texts expected");
    }
}

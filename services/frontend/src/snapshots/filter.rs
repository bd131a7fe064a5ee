//! The filters of a List, as far as containerd uses them between itself and a snapshotter.
//!
//! ```text
//! labels."containerd.io/snapshot.ref"==sha256:…,parent=="k8s.io/12/sha256:…"
//! ```
//!
//! Clauses of one filter must all hold, of several filters one. A clause of any other form than
//! `FIELD==VALUE` is taken to hold: who asks gets more than asked for, never less, and containerd looks again
//! at what it gets. Source: containerd's package `filters`.

use super::ledger::{Kind, Snapshot};

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Filter {
    clauses: Vec<Clause>,
}

#[derive(Debug, PartialEq, Eq)]
struct Clause {
    field: Field,
    value: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Field {
    Name,
    Parent,
    Kind,
    Label(String),
}

impl Filter {
    pub(super) fn parse(text: &str) -> Filter {
        Filter { clauses: split(text).filter_map(Clause::parse).collect() }
    }

    pub(super) fn holds(&self, name: &str, snapshot: &Snapshot) -> bool {
        self.clauses.iter().all(|clause| clause.holds(name, snapshot))
    }
}

impl Clause {
    fn parse(text: &str) -> Option<Clause> {
        let (field, value) = text.split_once("==")?;
        let field = match field.trim() {
            "name" => Field::Name,
            "parent" => Field::Parent,
            "kind" => Field::Kind,
            other => Field::Label(unquoted(other.strip_prefix("labels.")?)?),
        };
        Some(Clause { field, value: unquoted(value.trim())? })
    }

    fn holds(&self, name: &str, snapshot: &Snapshot) -> bool {
        let value = self.value.as_str();
        match &self.field {
            Field::Name => name == value,
            Field::Parent => snapshot.parent.as_deref().unwrap_or_default() == value,
            Field::Kind => match snapshot.kind {
                Kind::View => value.eq_ignore_ascii_case("view"),
                Kind::Active => value.eq_ignore_ascii_case("active"),
                Kind::Committed => value.eq_ignore_ascii_case("committed"),
            },
            Field::Label(label) => snapshot.labels.get(label).is_some_and(|has| has == value),
        }
    }
}

/// At the commas that stand outside of quotes.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    text.split(move |character| {
        quoted ^= character == '"';
        character == ',' && !quoted
    })
}

/// Without its quotes. Escapes inside of them are not read: such a clause is left out.
fn unquoted(text: &str) -> Option<String> {
    match text.strip_prefix('"') {
        None => Some(text.to_owned()),
        Some(rest) => rest.strip_suffix('"').filter(|inner| !inner.contains(['"', '\\'])).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::SystemTime;

    use super::super::ledger::Usage;
    use super::*;

    fn snapshot(parent: Option<&str>) -> Snapshot {
        Snapshot {
            id: 0,
            kind: Kind::Committed,
            parent: parent.map(str::to_owned),
            labels: BTreeMap::from([("containerd.io/snapshot.ref".to_owned(), "sha256:c".to_owned())]),
            created: SystemTime::UNIX_EPOCH,
            updated: SystemTime::UNIX_EPOCH,
            streamed: None,
            usage: Usage::default(),
        }
    }

    #[test]
    fn applies_what_containerd_asks() {
        let holds = |text: &str, parent| Filter::parse(text).holds("n", &snapshot(parent));
        let asked = "labels.\"containerd.io/snapshot.ref\"==sha256:c,parent==\"k8s.io/1/a,b\"";
        assert!(holds(asked, Some("k8s.io/1/a,b")));
        assert!(!holds(asked, Some("k8s.io/1/a")));
        assert!(!holds(asked, None));
        assert!(holds("labels.\"containerd.io/snapshot.ref\"==sha256:c,parent==\"\"", None));
        assert!(holds("kind==committed,name==n", None));
        assert!(!holds("kind==active", None));
    }

    #[test]
    fn what_is_not_understood_holds() {
        for text in ["", "name~=^x", "labels.a", "created_at==1", "name==\"a\\\"b\""] {
            assert!(Filter::parse(text).holds("n", &snapshot(None)), "{text}");
        }
    }
}

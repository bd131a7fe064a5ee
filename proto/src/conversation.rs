//! Who says what to whom: the roles, and what follows for each from the table of [`crate::subjects`].
//!
//! The permissions that a NATS server gets, the methods that a connection may call and `docs/conversation.md` are all
//! made of that table, so that none of them can allow what the others do not know.

use std::fmt::Write as _;

use crate::subjects::{CONVERSATION, METHODS, TOLD};

/// Who speaks on the mesh. A process has one role; the embedded `sluice` has all of them, and no server between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Fetcher,
    Cache,
    /// A node.
    Frontend,
    Policy,
    Quota,
    Events,
    /// A person at the command line, or what acts for one.
    Operator,
}

impl Role {
    pub const ALL: [Role; 7] =
        [Role::Fetcher, Role::Cache, Role::Frontend, Role::Policy, Role::Quota, Role::Events, Role::Operator];

    /// As users, certificates and files name it.
    pub fn name(self) -> &'static str {
        match self {
            Role::Fetcher => "fetcher",
            Role::Cache => "cache",
            Role::Frontend => "frontend",
            Role::Policy => "policy",
            Role::Quota => "quota",
            Role::Events => "events",
            Role::Operator => "operator",
        }
    }

    pub fn from_name(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// One request and who may make it.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub subject: &'static str,
    pub by: &'static [Role],
    pub of: Role,
    /// The names of the messages.
    pub request: &'static str,
    pub reply: &'static str,
}

/// What is told to whoever listens, without an answer.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// With NATS's wildcards where there are several.
    pub subject: &'static str,
    pub by: &'static [Role],
    pub to: &'static [Role],
    pub message: &'static str,
}

/// One method of gRPC and who may call it.
#[derive(Clone, Copy, Debug)]
pub struct Method {
    /// As a request's path has it.
    pub path: &'static str,
    pub by: &'static [Role],
    pub of: Role,
}

/// What `role` publishes, as a NATS server's permissions name it. Replies are not among them: a server allows who was asked
/// to answer.
pub fn publishes(role: Role) -> Vec<String> {
    let asks = CONVERSATION.iter().filter(|asked| asked.by.contains(&role));
    // To whoever answers, to one instance, to all of them.
    let asks = asks.flat_map(|asked| [asked.subject.to_owned(), format!("{}.*", asked.subject)]);
    let tells = TOLD.iter().filter(|told| told.by.contains(&role)).map(|told| told.subject.to_owned());
    asks.chain(tells).collect()
}

/// What `role` subscribes to, beside the inbox where its own replies come.
pub fn subscribes(role: Role) -> Vec<String> {
    let answers = CONVERSATION.iter().filter(|asked| asked.of == role);
    let answers = answers.flat_map(|asked| [asked.subject.to_owned(), format!("{}.*", asked.subject)]);
    let hears = TOLD.iter().filter(|told| told.to.contains(&role)).map(|told| told.subject.to_owned());
    answers.chain(hears).collect()
}

/// Whether `role` may call the gRPC method at `path`.
pub fn may_call(role: Role, path: &str) -> bool {
    METHODS.iter().any(|method| method.path == path && method.by.contains(&role))
}

/// The table as the documentation shows it, in Markdown.
pub fn documentation() -> String {
    let names = |roles: &[Role]| roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(", ");
    let mut text =
        String::from("| subject | asked by | answered by | request | reply |\n|---|---|---|---|---|\n");
    for Asked { subject, by, of, request, reply } in CONVERSATION {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| `{subject}` | {} | {} | `{request}` | `{reply}` |", names(by), of.name());
    }
    text.push_str("\n| subject | told by | heard by | message |\n|---|---|---|---|\n");
    for Told { subject, by, to, message } in TOLD {
        let _ = writeln!(text, "| `{subject}` | {} | {} | `{message}` |", names(by), names(to));
    }
    text.push_str("\n| gRPC method | called by | served by |\n|---|---|---|\n");
    for Method { path, by, of } in METHODS {
        let _ = writeln!(text, "| `{path}` | {} | {} |", names(by), of.name());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PAGE: &str = include_str!("../../docs/conversation.md");

    #[test]
    fn the_documentation_is_the_table() {
        assert!(PAGE.ends_with(&documentation()), "docs/conversation.md must end with:\n{}", documentation());
    }

    #[test]
    fn each_subject_stands_once_under_who_answers_it() {
        let mut seen = BTreeSet::new();
        for asked in CONVERSATION {
            assert!(seen.insert(asked.subject), "{} stands twice", asked.subject);
            let service = asked.subject.strip_prefix("sluice.v1.").unwrap();
            let service = service.strip_prefix("admin.").unwrap_or(service);
            assert_eq!(service.split('.').next(), Some(asked.of.name()), "{}", asked.subject);
            assert!(!asked.by.is_empty(), "nobody asks {}", asked.subject);
        }
    }

    /// What changes or deletes content is asked by operators, and by services for repairs; never by a node.
    #[test]
    fn nodes_do_not_administer() {
        for role in [Role::Frontend, Role::Policy, Role::Events] {
            assert!(
                !publishes(role).iter().any(|subject| subject.starts_with("sluice.v1.admin.")),
                "{role:?}"
            );
        }
    }

    #[test]
    fn a_role_may_do_what_the_table_says_and_nothing_else() {
        let publishes = publishes(Role::Policy);
        assert!(publishes.contains(&"sluice.v1.policy.decision".to_owned()));
        assert!(!publishes.iter().any(|subject| subject.starts_with("sluice.v1.fetcher.")));
        let subscribes = subscribes(Role::Fetcher);
        assert!(subscribes.contains(&"sluice.v1.fetcher.resolve".to_owned()));
        assert!(subscribes.contains(&"sluice.v1.fetcher.follow.*".to_owned()));
        assert!(!subscribes.iter().any(|subject| subject.contains("policy")));
        assert!(may_call(Role::Frontend, "/sluice.v1.Content/GetChunks"));
        assert!(!may_call(Role::Policy, "/sluice.v1.Content/GetChunks"));
        assert!(!may_call(Role::Frontend, "/sluice.v1.Content/Anything"));
    }

    #[test]
    fn roles_are_found_by_name() {
        for role in Role::ALL {
            assert_eq!(Role::from_name(role.name()), Some(role));
        }
        assert_eq!(Role::from_name("root"), None);
    }
}

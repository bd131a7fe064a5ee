//! What each role may say and hear on NATS, made of the conversation.
//!
//! | | publishes | subscribes to |
//! |---|---|---|
//! | a service | what it asks and tells; the inboxes of those who ask it; its streams | what it answers and hears; its own inbox |
//! | a node | what it asks and tells, each with its project and its name at the end of the subject | its own inbox |
//!
//! A server checks every subject, so that what comes with a node's name at its end comes from that node. Nobody publishes to whatever a
//! request names as the place for its reply: only to inboxes of roles that may ask. And nobody reads another's inbox: it is
//! named by the user's own key.

use proto::Role;
use proto::conversation::{is_service, publishes, subscribes};
use proto::speaker;
use proto::subjects::{CONVERSATION, TOLD};

/// Stands for the project of a node's user; of several, for each.
const PROJECT: &str = "{{tag(project)}}";
/// For its name.
const NAME: &str = "{{name()}}";
/// For the key of any user.
const KEY: &str = "{{subject()}}";

/// Subjects, as a template of an account's signing key has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    pub publish: Vec<String>,
    pub subscribe: Vec<String>,
}

pub fn permissions(role: Role) -> Permissions {
    let mut permissions = match role {
        Role::Frontend => of_node(),
        role => of_service(role),
    };
    permissions.subscribe.push(format!("{}.{KEY}.>", speaker::inbox(role)));
    for list in [&mut permissions.publish, &mut permissions.subscribe] {
        list.sort();
        list.dedup();
    }
    permissions
}

fn of_node() -> Permissions {
    let own = |subject: &str| speaker::subject(subject, PROJECT, NAME);
    let publish = publishes(Role::Frontend).iter().map(|subject| own(subject)).collect();
    Permissions { publish, subscribe: subscribes(Role::Frontend) }
}

fn of_service(role: Role) -> Permissions {
    let (mut publish, mut subscribe) = (publishes(role), subscribes(role));
    for asked in CONVERSATION.iter().filter(|asked| asked.of == role) {
        publish.extend(asked.by.iter().map(|by| format!("{}.>", speaker::inbox(*by))));
        if asked.by.contains(&Role::Frontend) {
            subscribe.push(speaker::subject(asked.subject, "*", "*"));
            subscribe.push(speaker::subject(&format!("{}.*", asked.subject), "*", "*"));
        }
    }
    // All say that they are there.
    if is_service(role) {
        publish.push(format!("{}.>", speaker::inbox(Role::Operator)));
    }
    for told in TOLD.iter().filter(|told| told.to.contains(&role) && told.by.contains(&Role::Frontend)) {
        subscribe.push(speaker::subject(told.subject, "*", "*"));
    }
    for resource in RESOURCES.iter().filter(|resource| resource.users.contains(&role)) {
        publish.extend(resource.reads().chain(resource.publishes()));
        subscribe.extend(resource.subjects.iter().map(|subject| (*subject).to_owned()));
    }
    for resource in RESOURCES.iter().filter(|resource| resource.readers.contains(&role)) {
        publish.extend(resource.reads());
    }
    Permissions { publish, subscribe }
}

/// What is kept in JetStream, and who works with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resource {
    pub(crate) stream: &'static str,
    /// Under which it is written.
    pub(crate) subjects: &'static [&'static str],
    pub(crate) users: &'static [Role],
    /// Who reads and follows it, and may not change it.
    pub(crate) readers: &'static [Role],
}

pub(crate) const RESOURCES: &[Resource] = &[
    Resource {
        stream: "KV_sluice-leases",
        subjects: &["$KV.sluice-leases.>"],
        users: &[Role::Fetcher],
        readers: &[],
    },
    // Nodes and services tell as ever, whether a stream keeps it or not.
    Resource { stream: "SLUICE_EVENTS", subjects: &[], users: &[Role::Events], readers: &[] },
    Resource {
        stream: "KV_sluice-projects",
        subjects: &["$KV.sluice-projects.>"],
        users: &[Role::Fetcher],
        readers: &[],
    },
    Resource {
        stream: "KV_sluice-revocations",
        subjects: &["$KV.sluice-revocations.>"],
        users: &[Role::Fetcher],
        readers: &[Role::Cache],
    },
    Resource {
        stream: "KV_sluice-quota-limits",
        subjects: &["$KV.sluice-quota-limits.>"],
        users: &[Role::Quota],
        readers: &[],
    },
    Resource {
        stream: "sluice-counters-quota-minutes",
        subjects: &["sluice.v1.counter.quota-minutes.>"],
        users: &[Role::Quota],
        readers: &[],
    },
    Resource {
        stream: "sluice-counters-quota-days",
        subjects: &["sluice.v1.counter.quota-days.>"],
        users: &[Role::Quota],
        readers: &[],
    },
];

impl Resource {
    /// To read and follow it.
    fn reads(&self) -> impl Iterator<Item = String> + use<> {
        let stream = self.stream;
        let api = [
            "INFO".to_owned(),
            format!("STREAM.INFO.{stream}"),
            format!("STREAM.MSG.GET.{stream}"),
            format!("DIRECT.GET.{stream}"),
            format!("DIRECT.GET.{stream}.>"),
            format!("CONSUMER.CREATE.{stream}"),
            format!("CONSUMER.CREATE.{stream}.>"),
            format!("CONSUMER.INFO.{stream}.>"),
            format!("CONSUMER.DELETE.{stream}.>"),
            format!("CONSUMER.MSG.NEXT.{stream}.>"),
        ];
        let answers = [format!("$JS.ACK.{stream}.>"), format!("$JS.FC.{stream}.>")];
        api.into_iter().map(|verb| format!("$JS.API.{verb}")).chain(answers)
    }

    /// To make it, and to write.
    fn publishes(&self) -> impl Iterator<Item = String> + use<> {
        let stream = self.stream;
        let api = ["CREATE", "UPDATE"].map(|verb| format!("$JS.API.STREAM.{verb}.{stream}"));
        api.into_iter().chain(self.subjects.iter().map(|subject| (*subject).to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a subject falls under one of these patterns, as a server decides.
    fn allows(patterns: &[String], subject: &str) -> bool {
        let matches = |pattern: &String| {
            let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
            loop {
                match (pattern.next(), subject.next()) {
                    (Some(">"), Some(_)) | (None, None) => return true,
                    (Some("*"), Some(_)) => {}
                    (Some(one), Some(other)) if one == other => {}
                    _ => return false,
                }
            }
        };
        patterns.iter().any(matches)
    }

    #[test]
    fn each_role_asks_and_answers_what_the_table_says_and_nothing_else() {
        for asked in CONVERSATION {
            for role in Role::ALL {
                let Permissions { publish, subscribe } = permissions(role);
                let subject = match role {
                    Role::Frontend => speaker::subject(asked.subject, PROJECT, NAME),
                    _ => asked.subject.to_owned(),
                };
                assert_eq!(allows(&publish, &subject), asked.by.contains(&role), "{role:?} asks {subject}");
                assert_eq!(
                    allows(&subscribe, asked.subject),
                    asked.of == role,
                    "{role:?} answers {}",
                    asked.subject
                );
            }
        }
    }

    #[test]
    fn a_node_speaks_only_as_itself_and_hears_only_itself() {
        let Permissions { publish, subscribe } = permissions(Role::Frontend);
        assert!(
            publish.iter().all(|subject| subject.ends_with(&format!(".as.{PROJECT}.{NAME}"))),
            "{publish:?}"
        );
        assert_eq!(subscribe, ["_INBOX_frontend.{{subject()}}.>"]);
    }

    #[test]
    fn replies_go_to_inboxes_of_those_who_may_ask() {
        let policy = permissions(Role::Policy).publish;
        assert!(policy.contains(&"_INBOX_fetcher.>".to_owned()));
        assert!(!policy.iter().any(|subject| subject.starts_with("_INBOX_cache")));
        for role in Role::ALL {
            let Permissions { publish, subscribe } = permissions(role);
            for list in [publish, subscribe] {
                assert!(
                    !list.iter().any(|subject| matches!(subject.as_str(), ">" | "_INBOX.>" | "$JS.API.>"))
                );
            }
        }
    }
}

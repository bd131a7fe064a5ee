//! Who speaks: what a subject proves of a node, and the inboxes of roles.
//!
//! A node asks `S.as.PROJECT.NODE` where others ask `S`, and its user in NATS may publish no other. So a server has checked who
//! it is, and nothing that the request itself says of its sender is believed beyond that.

use crate::conversation::Role;

const AS: &str = "as";
/// What an empty project means.
pub const DEFAULT_PROJECT: &str = "default";

/// Somebody whom the connection proves to be a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Speaker {
    pub project: String,
    pub node: String,
}

/// The subject on which a node asks `subject`; `project` and `node` are tokens, or patterns.
pub fn subject(subject: &str, project: &str, node: &str) -> String {
    format!("{subject}.{AS}.{project}.{node}")
}

/// How the inboxes of a role begin; each user's goes on with its key.
pub fn inbox(role: Role) -> String {
    format!("_INBOX_{}", role.name())
}

/// Who asked, when `asked` is a subject of a node.
pub fn of_subject(asked: &str) -> Option<Speaker> {
    let mut parts = asked.rsplitn(4, '.');
    let (node, project, word) = (parts.next()?, parts.next()?, parts.next()?);
    match word == AS && parts.next().is_some() {
        true => Some(Speaker { project: plain(project)?, node: plain(node)? }),
        false => None,
    }
}

/// `subject` without who asked it.
pub fn without(asked: &str) -> &str {
    match of_subject(asked) {
        Some(_) => asked.rsplitn(4, '.').last().unwrap_or(asked),
        None => asked,
    }
}

/// Any name as one token of a subject: what a token may not hold is written as `=` and two digits.
pub fn token(name: &str) -> String {
    use std::fmt::Write as _;
    name.bytes().fold(String::new(), |mut token, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => token.push(char::from(byte)),
            // Writing to a string cannot fail.
            other => drop(write!(token, "={other:02x}")),
        }
        token
    })
}

/// The name of a [`token`]; none of what is no token.
fn plain(token: &str) -> Option<String> {
    let (mut name, mut rest) = (Vec::new(), token.as_bytes());
    while let Some((first, others)) = rest.split_first() {
        rest = others;
        if *first != b'=' {
            name.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        name.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    let name = String::from_utf8(name).ok().filter(|name| !name.is_empty())?;
    // One name has one token: what is written otherwise is somebody else's.
    (self::token(&name) == token).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_says_who_asked() {
        let asked = subject("sluice.v1.fetcher.resolve", &token("team.a"), &token("ip-10-0-0-1.eu"));
        assert_eq!(asked, "sluice.v1.fetcher.resolve.as.team=2ea.ip-10-0-0-1=2eeu");
        let speaker = Speaker { project: "team.a".to_owned(), node: "ip-10-0-0-1.eu".to_owned() };
        assert_eq!(of_subject(&asked), Some(speaker));
        assert_eq!(without(&asked), "sluice.v1.fetcher.resolve");
    }

    #[test]
    fn nobody_is_taken_for_a_node_by_an_odd_subject() {
        for other in [
            "sluice.v1.fetcher.resolve",
            "sluice.v1.fetcher.follow.fetcher-1",
            "as.p.n",
            "s.as.p.=6e",
            "s.as.p.=",
            "s.as..n",
            "s.as.p.=ff",
            "s.at.p.n",
        ] {
            assert_eq!(of_subject(other), None, "{other}");
            assert_eq!(without(other), other);
        }
    }
}

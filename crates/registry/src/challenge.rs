//! `WWW-Authenticate`: what a registry wants to see.
//!
//! Format: RFC 9110, section 11; the parameters of `Bearer` are those of the distribution
//! specification's token authentication.

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer(Bearer),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bearer {
    /// The URL that gives tokens.
    pub(super) realm: String,
    pub(super) service: Option<String>,
    pub(super) scope: Option<String>,
}

impl Challenge {
    /// The best challenge we can meet: a token before a password.
    pub(super) fn of(headers: &HeaderMap) -> Option<Challenge> {
        let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let mut challenges: Vec<Challenge> = values.flat_map(parse).collect();
        let bearer = challenges.iter().position(|challenge| matches!(challenge, Challenge::Bearer(_)));
        (!challenges.is_empty()).then(|| challenges.swap_remove(bearer.unwrap_or(0)))
    }
}

/// All challenges of one header; unknown schemes and those that make no sense are left out.
fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges = Vec::new();
    let mut scheme = String::new();
    let mut parameters = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = token(rest);
        if word.is_empty() {
            break;
        }
        // `name=value` belongs to the scheme before it; any other word begins a new one.
        match after.trim_start().strip_prefix('=') {
            Some(value) => {
                let (value, after) = parameter(value.trim_start());
                parameters.push((word.to_ascii_lowercase(), value));
                rest = after;
            }
            None => {
                challenges.extend(challenge(&scheme, std::mem::take(&mut parameters)));
                scheme = word.to_ascii_lowercase();
                rest = after;
            }
        }
    }
    challenges.extend(challenge(&scheme, parameters));
    challenges
}

fn challenge(scheme: &str, parameters: Vec<(String, String)>) -> Option<Challenge> {
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => {
            let mut bearer = Bearer::default();
            for (name, value) in parameters {
                match name.as_str() {
                    "realm" => bearer.realm = value,
                    "service" => bearer.service = Some(value),
                    "scope" => bearer.scope = Some(value),
                    _ => {}
                }
            }
            (!bearer.realm.is_empty()).then_some(Challenge::Bearer(bearer))
        }
        _ => None,
    }
}

fn token(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)));
    text.split_at(end.unwrap_or(text.len()))
}

/// A quoted string or a bare value, and what follows it.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer(Bearer { realm: realm.into(), service: own(service), scope: own(scope) })
    }

    #[test]
    fn reads_what_registries_send() {
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#,
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:a/b:pull"),
                )],
            ),
            (
                r#"bearer Realm="https://a/t?x=1,2" , scope="a:b:pull,push""#,
                vec![bearer("https://a/t?x=1,2", None, Some("a:b:pull,push"))],
            ),
            (r#"Basic realm="Registry \"Realm\"""#, vec![Challenge::Basic]),
            ("Basic", vec![Challenge::Basic]),
            (r#"Negotiate, Basic realm=x, Bearer realm=y"#, vec![Challenge::Basic, bearer("y", None, None)]),
            (r#"Bearer service="no realm""#, vec![]),
            (r#"Bearer realm="never closed"#, vec![bearer("never closed", None, None)]),
            ("", vec![]),
        ] {
            assert_eq!(parse(header), expected, "{header}");
        }
    }

    #[test]
    fn prefers_a_token() {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, "Basic realm=a".parse().unwrap());
        headers.append(WWW_AUTHENTICATE, "Bearer realm=b".parse().unwrap());
        assert_eq!(Challenge::of(&headers), Some(bearer("b", None, None)));
        assert_eq!(Challenge::of(&HeaderMap::new()), None);
    }

    proptest! {
        #[test]
        fn any_header_ends(header in ".{0,200}") {
            parse(&header);
        }
    }
}

//! Which images a pattern of `matchImages` is for: `HOST[:PORT][/PATH]`.
//!
//! `*` stands for any characters within one part of the host's name, never for a dot, and nowhere else. The port must
//! be the same, the path must begin the image's.

/// Whether the pattern is for the image. What cannot be taken apart matches nothing.
pub(super) fn matches(pattern: &str, image: &str) -> bool {
    let (pattern, image) = (Place::of(pattern), Place::of(image));
    let (wanted, given) = (pattern.name.split('.'), image.name.split('.'));
    wanted.clone().count() == given.clone().count()
        && wanted.zip(given).all(|(wanted, given)| fits(wanted, given))
        && pattern.port == image.port
        && image.path.starts_with(pattern.path)
}

/// The registry of an image, with its port.
pub(super) fn host_of(image: &str) -> &str {
    image.split('/').next().unwrap_or(image)
}

struct Place<'a> {
    name: &'a str,
    port: Option<&'a str>,
    path: &'a str,
}

impl<'a> Place<'a> {
    fn of(text: &'a str) -> Place<'a> {
        let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        match host.split_once(':') {
            Some((name, port)) => Place { name, port: Some(port), path },
            None => Place { name: host, port: None, path },
        }
    }
}

/// Whether one part of a name fits a pattern with `*`.
fn fits(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let last = pieces.pop().unwrap_or_default();
    for piece in pieces {
        let Some(found) = text.find(piece) else { return false };
        text = &text[found + piece.len()..];
    }
    text.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_for_what_the_kubelet_says_they_are() {
        for (pattern, image, expected) in [
            ("registry.example", "registry.example/a/b:1", true),
            ("registry.example", "other.example/a", false),
            ("*.k8s.io", "app.k8s.io/a", true),
            ("*.io", "app.k8s.io/a", false),
            ("k8s.*.io", "k8s.x.io/a", true),
            ("app*.k8s.io", "app7.k8s.io/a", true),
            ("app*.k8s.io", "ap.k8s.io/a", false),
            ("a*b*c.io", "aXbYc.io/x", true),
            ("a*b*c.io", "aXcYb.io/x", false),
            ("*.*.registry.io", "a.b.registry.io/x", true),
            ("registry.io:8080/path", "registry.io:8080/path/app", true),
            ("registry.io:8080/path", "registry.io/path/app", false),
            ("registry.io", "registry.io:8080/app", false),
            ("registry.io/team", "registry.io/other/app", false),
            ("https://registry.io/", "registry.io/app", true),
            ("", "registry.io/app", false),
        ] {
            assert_eq!(matches(pattern, image), expected, "{pattern} {image}");
        }
        assert_eq!(host_of("registry.io:8080/app"), "registry.io:8080");
    }
}

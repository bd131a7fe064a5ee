//! Keys, credentials and certificates: there, their owner's alone, and counting.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bus::NatsConfig;
use identity::{User, user_of};

use crate::Finding;

/// What ends within this is told of: whoever renews it by hand needs some days.
const SOON: Duration = Duration::from_secs(7 * 24 * 60 * 60);
const RENEW: &str = "`sluice keys rotate`, or of a node `sluice enroll`";

/// Whether NATS will know this user.
pub fn nats(config: &NatsConfig) -> Vec<Finding> {
    let Some(file) = &config.credentials_file else {
        if config.nkey_seed_file.is_some() {
            return Vec::new();
        }
        let reason = "neither nats.credentials_file nor nats.nkey_seed_file is set";
        let hint =
            "whoever reaches this NATS server is trusted with everything; `sluice keys init` makes users";
        return vec![Finding::warning("NATS knows this user", reason, hint, "nats")];
    };
    let read = std::fs::read_to_string(file).map_err(|error| error.to_string());
    let user = read.and_then(|text| user_of(&text).map_err(|error| format!("{error:#}")));
    let counts = match user {
        Ok(user) => counts(&user),
        Err(error) => {
            let reason = format!("{}: {error}", file.display());
            Finding::bad("the NATS credentials count", reason, RENEW, "nats")
        }
    };
    vec![private("the NATS credentials are their owner's alone", file), counts]
}

fn counts(user: &User) -> Finding {
    let what = "the NATS credentials count";
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Those of nodes live for a day, and renew themselves.
    let is_node = !user.projects.is_empty();
    let good = Finding::good(format!("{what} (user {})", user.name));
    match user.expires_unix.saturating_sub(now) {
        _ if user.expires_unix == 0 => good,
        0 => Finding::bad(what, format!("those of {} are over", user.name), RENEW, "nats"),
        left if left < SOON.as_secs() && !is_node => {
            let reason = format!("those of {} end in {} hours", user.name, left / 3_600);
            Finding::warning(what, reason, RENEW, "nats")
        }
        _ => good,
    }
}

/// Whether others will believe this certificate.
pub fn tls(config: &tls::Config) -> Vec<Finding> {
    let what = "the certificate counts";
    let opened = match config.open() {
        Err(error) => return vec![Finding::bad(what, error, RENEW, "tls")],
        Ok(tls) if !tls.is_on() => return Vec::new(),
        Ok(tls) => tls,
    };
    let now = SystemTime::now();
    let counts = match (opened.counts_at(now), opened.counts_at(now + SOON)) {
        (Err(error), _) => Finding::bad(what, error, RENEW, "tls"),
        (Ok(()), Err(_)) if opened.own().is_none_or(|own| own.node().is_none()) => {
            Finding::warning(what, "it ends within a week", RENEW, "tls")
        }
        _ => Finding::good(what),
    };
    let key = config.key_file.iter().map(|file| private("the certificate's key is its owner's alone", file));
    key.chain([counts]).collect()
}

/// Whether nobody else can read a file.
pub fn private(what: &str, file: &Path) -> Finding {
    match std::fs::metadata(file) {
        Err(error) => {
            let reason = format!("{}: {error}", file.display());
            Finding::bad(what, reason, "does it exist, and is this user its owner?", "settings")
        }
        Ok(found) if found.permissions().mode() & 0o077 != 0 => {
            let reason = format!("{} may be read by others", file.display());
            Finding { bearable: true, ..Finding::bad(what, reason, "chmod 600", "settings") }
        }
        Ok(_) => Finding::good(what),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    #[test]
    fn a_key_that_others_read_or_that_is_not_there_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        assert!(private("it is private", &file).reason.contains("No such file"));
        std::fs::write(&file, "x").unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        let found = private("it is private", &file);
        assert!(found.is_bad() && found.hint == "chmod 600", "{found:?}");
        assert!(found.in_one_line().ends_with("may be read by others (chmod 600)"), "{found:?}");
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(private("it is private", &file), Finding::good("it is private"));
        let nats = nats(&NatsConfig { credentials_file: Some(file), ..NatsConfig::default() });
        assert!(nats.iter().any(|finding| finding.reason.contains("no JWT")), "{nats:?}");
    }

    #[test]
    fn credentials_end() {
        let user = |expires_unix, projects: &[&str]| User {
            name: "cache".to_owned(),
            key: String::new(),
            issuer: String::new(),
            projects: projects.iter().map(|project| (*project).to_owned()).collect(),
            expires_unix,
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(counts(&user(now - 1, &[])).is_bad());
        assert_eq!(counts(&user(now + 3_600, &[])).outcome, crate::Outcome::Warning);
        assert_eq!(counts(&user(now + 3_600, &["default"])).outcome, crate::Outcome::Good);
        assert_eq!(counts(&user(0, &[])).outcome, crate::Outcome::Good);
    }
}

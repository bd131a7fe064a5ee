//! What every machine of a mesh needs: settings, keys, NATS, store.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bus::{Bus, NatsConfig};
use identity::user_of;

use super::report::Report;
use crate::settings::Settings;

const SETTINGS: &str = "settings";
const KEYS: &str = "keys";
const NATS: &str = "nats";
const STORE: &str = "store";

/// How long a server may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// What ends within this is told of: whoever renews it by hand needs some days.
const SOON: Duration = Duration::from_secs(7 * 24 * 60 * 60);

pub(super) fn check(settings: &Settings, report: &mut Report) {
    report.result(SETTINGS, "the settings fit together", settings.check(), "sluice config show", "");
    match &settings.nats {
        None => report.good(SETTINGS, "services run in this process: no mesh is configured"),
        Some(nats) => check_nats_keys(nats, report),
    }
    check_tls(settings, report);
    let signing = &settings.fetcher.signing_key_file;
    if signing.exists() {
        check_private("the fetcher's signing key is its owner's alone", signing, report);
    }
    if settings.nats.is_some()
        && settings.trusted_keys.is_empty()
        && settings.frontend.trusted_keys.is_empty()
    {
        let reason = "trusted_keys is empty, so no image of this mesh is believed";
        report.warning(KEYS, "a fetcher's key is trusted", reason, "sluice keys show lists it", "settings");
    }
}

fn check_nats_keys(nats: &NatsConfig, report: &mut Report) {
    let Some(file) = &nats.credentials_file else {
        if nats.nkey_seed_file.is_none() {
            let reason = "neither nats.credentials_file nor nats.nkey_seed_file is set";
            let hint =
                "whoever reaches this NATS server is trusted with everything; `sluice keys init` makes users";
            report.warning(KEYS, "NATS knows this user", reason, hint, "nats");
        }
        return;
    };
    check_private("the NATS credentials are their owner's alone", file, report);
    let read = std::fs::read_to_string(file).map_err(anyhow::Error::new).and_then(|text| user_of(&text));
    let what = "the NATS credentials count";
    match read {
        Err(error) => {
            report.bad(KEYS, what, format!("{}: {error:#}", file.display()), "sluice keys rotate", "nats")
        }
        Ok(user) if user.expires_unix == 0 => report.good(KEYS, format!("{what} (user {})", user.name)),
        Ok(user) => {
            let left = user.expires_unix.saturating_sub(crate::render::now_unix());
            let hint = "`sluice keys rotate`, or of a node `sluice enroll`";
            // Those of nodes live for a day, and renew themselves.
            let is_node = !user.projects.is_empty();
            match left {
                0 => report.bad(KEYS, what, format!("those of {} are over", user.name), hint, "nats"),
                left if left < SOON.as_secs() && !is_node => {
                    report.warning(
                        KEYS,
                        what,
                        format!("those of {} end in {} hours", user.name, left / 3_600),
                        hint,
                        "nats",
                    );
                }
                _ => report.good(KEYS, format!("{what} (user {})", user.name)),
            }
        }
    }
}

fn check_tls(settings: &Settings, report: &mut Report) {
    let insecure = settings.nats.as_ref().is_some_and(|nats| nats.insecure);
    for (on, name) in [(insecure, "nats.insecure"), (settings.tls.insecure, "tls.insecure")] {
        if on {
            let hint = "`sluice keys init` makes certificates";
            report.warning(
                KEYS,
                "other machines are spoken to over TLS alone",
                format!("{name} is set"),
                hint,
                "tls",
            );
        }
    }
    let what = "the certificate counts";
    let hint = "`sluice keys rotate`, or of a node `sluice enroll`";
    match settings.tls.open() {
        Err(error) => report.bad(KEYS, what, error, hint, "tls"),
        Ok(tls) if !tls.is_on() => {}
        Ok(tls) => {
            if let Some(file) = &settings.tls.key_file {
                check_private("the certificate's key is its owner's alone", file, report);
            }
            let now = SystemTime::now();
            match (tls.counts_at(now), tls.counts_at(now + SOON)) {
                (Err(error), _) => report.bad(KEYS, what, error, hint, "tls"),
                (Ok(()), Err(_)) if tls.own().is_none_or(|own| own.node().is_none()) => {
                    report.warning(KEYS, what, "it ends within a week", hint, "tls");
                }
                _ => report.good(KEYS, what),
            }
        }
    }
}

fn check_private(what: &str, file: &Path, report: &mut Report) {
    match std::fs::metadata(file) {
        Err(error) => {
            let reason = format!("{}: {error}", file.display());
            report.bad(KEYS, what, reason, "does it exist, and is this user its owner?", "settings");
        }
        Ok(found) if found.permissions().mode() & 0o077 != 0 => {
            let reason = format!("{} may be read by others", file.display());
            report.bad(KEYS, what, reason, "chmod 600", "settings");
        }
        Ok(_) => report.good(KEYS, what),
    }
}

/// The bus of the mesh, once it answers.
pub(super) async fn check_bus(settings: &Settings, report: &mut Report) -> Option<Bus> {
    let nats = settings.nats.as_ref()?;
    match Bus::connect_within(nats, ANSWER).await {
        Ok(bus) => {
            report.good(NATS, "NATS answers, and lets this user in");
            Some(bus)
        }
        Err(error) => {
            let hint = "is it running, is nats.url its address, and do its keys come from the same `sluice keys init`?";
            report.bad(NATS, "NATS answers, and lets this user in", format!("{error:#}"), hint, "nats");
            None
        }
    }
}

pub(super) async fn check_store(settings: &Settings, report: &mut Report) {
    let what = "the store can be read";
    if settings.nats.is_some() && settings.store.url == settings.state.join("store").display().to_string() {
        // Nobody said where the mesh's store is: nodes and operators need not know.
        return;
    }
    let hint = "store.url, and what its kind needs in store.options";
    match settings.store.open_existing() {
        Err(error) if error.is_not_found() && settings.nats.is_none() => {
            report.good(STORE, "nothing was imported on this machine yet");
        }
        Err(error) => report.bad(STORE, what, error, hint, "settings"),
        Ok(store) => match tokio::time::timeout(ANSWER, store.check()).await {
            Ok(checked) => report.result(STORE, what, checked, hint, "settings"),
            Err(_) => report.bad(STORE, what, format!("no answer within {ANSWER:?}"), hint, "settings"),
        },
    }
}

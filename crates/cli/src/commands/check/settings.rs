//! What every machine of a mesh needs: settings, keys, NATS, store.

use std::time::Duration;

use bus::Bus;

use super::report::Report;
use crate::settings::Settings;

const SETTINGS: &str = "settings";
const KEYS: &str = "keys";
const NATS: &str = "nats";
const STORE: &str = "store";
const REGISTRIES: &str = "registries";

/// How long a server may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

pub(super) fn check(settings: &Settings, report: &mut Report) {
    report.result(SETTINGS, "the settings fit together", settings.check(), "sluice config show", "");
    match &settings.nats {
        None => report.good(SETTINGS, "services run in this process: no mesh is configured"),
        Some(nats) => checks::nats(nats).into_iter().for_each(|found| report.take(KEYS, found)),
    }
    check_tls(settings, report);
    let signing = &settings.fetcher.signing_key_file;
    if signing.exists() {
        report.take(KEYS, checks::private("the fetcher's signing key is its owner's alone", signing));
    }
    if settings.nats.is_some()
        && settings.trusted_keys.is_empty()
        && settings.frontend.trusted_keys.is_empty()
    {
        let reason = "trusted_keys is empty, so no image of this mesh is believed";
        report.warning(KEYS, "a fetcher's key is trusted", reason, "sluice keys show lists it", "settings");
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
    for found in checks::tls(&settings.tls) {
        report.take(KEYS, found);
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

/// Those that the settings name: others are named by who pulls.
pub(super) async fn check_registries(settings: &Settings, report: &mut Report) {
    let hint = "is it running, is it reached from this machine, and does fetcher.source say how (plain_http, certificates)?";
    let client = match registry::Client::new(settings.fetcher.source.clone()) {
        Err(error) => {
            let what = "registries can be asked";
            return report.bad(REGISTRIES, what, format!("{error:#}"), "fetcher.source", "settings");
        }
        Ok(client) => client,
    };
    for registry::Answered { name, mirror_of, answers } in client.answers(ANSWER).await {
        let what = match &mirror_of {
            None => format!("the registry {name} answers"),
            Some(of) => format!("the mirror {name} of {of} answers"),
        };
        match (answers, mirror_of) {
            (Ok(()), _) => report.good(REGISTRIES, what),
            (Err(reason), None) => report.bad(REGISTRIES, what, reason, hint, "settings"),
            // Others are asked in its place.
            (Err(reason), Some(_)) => report.warning(REGISTRIES, what, reason, hint, "settings"),
        }
    }
}

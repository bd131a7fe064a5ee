//! The contract of `plugins/wit` as Rust types. Both worlds share the types of facts, settings and log.

#![allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

pub(crate) mod eligibility {
    wasmtime::component::bindgen!({ path: "../../plugins/wit", world: "eligibility" });
}

pub(crate) mod prefetch {
    wasmtime::component::bindgen!({
        path: "../../plugins/wit",
        world: "prefetch",
        with: {
            "sluice:policy/facts": super::eligibility::sluice::policy::facts,
            "sluice:policy/settings": super::eligibility::sluice::policy::settings,
            "sluice:policy/log": super::eligibility::sluice::policy::log,
        },
    });
}

pub(crate) use eligibility::exports::sluice::policy::judge;
pub(crate) use eligibility::sluice::policy::facts::{self, Facts};
pub(crate) use eligibility::sluice::policy::log;
pub(crate) use eligibility::sluice::policy::settings::{About, Kind, KnownSetting, Problem, Setting, Value};
pub(crate) use prefetch::exports::sluice::policy::plan;

#[cfg(test)]
pub(crate) fn known_setting(name: &str, kind: Kind, required: bool) -> KnownSetting {
    KnownSetting { name: name.to_owned(), kind, required, help: String::new() }
}

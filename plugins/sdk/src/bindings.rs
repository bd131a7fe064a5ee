//! The contract's types, made of `plugins/wit`.

pub mod eligibility {
    wit_bindgen::generate!({ path: "../wit", world: "eligibility", pub_export_macro: true });
}

pub mod prefetch {
    wit_bindgen::generate!({
        path: "../wit",
        world: "prefetch",
        pub_export_macro: true,
        with: {
            "sluice:policy/facts@0.1.0": crate::bindings::eligibility::sluice::policy::facts,
            "sluice:policy/settings@0.1.0": crate::bindings::eligibility::sluice::policy::settings,
            "sluice:policy/log@0.1.0": crate::bindings::eligibility::sluice::policy::log,
        }
    });
}

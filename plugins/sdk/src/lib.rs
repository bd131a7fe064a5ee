//! For policies in Rust: the contract's types, settings that are easy to ask, and one macro that makes a plugin.
//!
//! ```ignore
//! use sluice_policy::{About, Eligibility, Facts, Settings, Verdict, about, abstain, refuse};
//!
//! struct NoLatest;
//!
//! impl Eligibility for NoLatest {
//!     fn about() -> About {
//!         about("no-latest", "1.0.0", "Refuses images of the tag `latest`.", [])
//!     }
//!
//!     fn judge(_: &Settings, facts: &Facts) -> Result<Verdict, String> {
//!         Ok(match facts.image.tag.as_deref() {
//!             Some("latest") => refuse("tag-latest", "name a version: `latest` means another image tomorrow"),
//!             _ => abstain(),
//!         })
//!     }
//! }
//!
//! sluice_policy::eligibility!(NoLatest);
//! ```
//!
//! What a plugin panics with is logged by the host, under the policy's name.

mod bindings;
mod settings;

pub use bindings::eligibility::exports::sluice::policy::judge::{Decision, Verdict};
pub use bindings::eligibility::sluice::policy::facts::{Asker, Facts, Image, Layer, Place, Platform};
pub use bindings::eligibility::sluice::policy::log::{Level, write as log};
pub use bindings::eligibility::sluice::policy::settings::{
    About, Kind, KnownSetting, Problem, Setting, Value,
};
pub use bindings::prefetch::exports::sluice::policy::plan::{Item, Mode, PrefetchPlan, Profile};
pub use settings::{Settings, about, known, problem, required};

#[doc(hidden)]
pub use bindings::{eligibility as world_eligibility, prefetch as world_prefetch};

/// A policy that says whether an image may stream.
pub trait Eligibility {
    fn about() -> About;

    /// What is wrong with settings of the right names and types.
    fn check(_settings: &Settings) -> Vec<Problem> {
        Vec::new()
    }

    /// An error is a failure of the policy: then the operator's failure rule decides.
    fn judge(settings: &Settings, facts: &Facts) -> Result<Verdict, String>;
}

/// A policy that says what is fetched first.
pub trait Prefetch {
    fn about() -> About;

    fn check(_settings: &Settings) -> Vec<Problem> {
        Vec::new()
    }

    fn plan(settings: &Settings, facts: &Facts, profile: &Profile) -> Result<PrefetchPlan, String>;
}

/// It may stream.
pub fn accept() -> Verdict {
    Verdict { decision: Decision::Accept, reason: String::new(), message: String::new(), details: Vec::new() }
}

/// Nothing to say about this image.
pub fn abstain() -> Verdict {
    Verdict { decision: Decision::Abstain, ..accept() }
}

/// It must be pulled the ordinary way: a stable code for machines, and one sentence for people.
pub fn refuse(reason: &str, message: impl Into<String>) -> Verdict {
    Verdict { decision: Decision::Refuse, reason: reason.to_owned(), message: message.into(), ..accept() }
}

impl Verdict {
    /// Adds a detail for machines.
    pub fn detail(mut self, name: &str, value: impl ToString) -> Verdict {
        self.details.push((name.to_owned(), value.to_string()));
        self
    }
}

/// Sends what a panic says to the host's log: it is all that its author will see.
#[doc(hidden)]
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| log(Level::Error, &panic.to_string())));
}

/// Makes a plugin of a type that is an [`Eligibility`].
#[macro_export]
macro_rules! eligibility {
    ($policy:ty) => {
        $crate::component!(world_eligibility, judge, $policy, Eligibility, {
            fn judge(
                settings: Vec<$crate::Setting>,
                facts: $crate::Facts,
            ) -> Result<$crate::Verdict, String> {
                $crate::log_panics();
                <$policy as $crate::Eligibility>::judge(&settings.into(), &facts)
            }
        });
    };
}

/// Makes a plugin of a type that is a [`Prefetch`].
#[macro_export]
macro_rules! prefetch {
    ($policy:ty) => {
        $crate::component!(world_prefetch, plan, $policy, Prefetch, {
            fn plan(
                settings: Vec<$crate::Setting>,
                facts: $crate::Facts,
                profile: $crate::Profile,
            ) -> Result<$crate::PrefetchPlan, String> {
                $crate::log_panics();
                <$policy as $crate::Prefetch>::plan(&settings.into(), &facts, &profile)
            }
        });
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! component {
    ($world:ident, $interface:ident, $policy:ty, $trait:ident, { $call:item }) => {
        struct Component;

        impl $crate::$world::exports::sluice::policy::$interface::Guest for Component {
            fn describe() -> $crate::About {
                $crate::log_panics();
                <$policy as $crate::$trait>::about()
            }

            fn check_settings(settings: Vec<$crate::Setting>) -> Result<(), Vec<$crate::Problem>> {
                $crate::log_panics();
                let problems = <$policy as $crate::$trait>::check(&settings.into());
                if problems.is_empty() { Ok(()) } else { Err(problems) }
            }

            $call
        }

        $crate::$world::export!(Component with_types_in $crate::$world);
    };
}

//! What holds for a project: what was set live for it, else what the configuration has for it, else what was set live for all, else
//! what the configuration has for all.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use names::Project;
use proto::{QuotaMetric, QuotaMode, QuotaWindow};

use crate::config::{Amount, Config};
use crate::meters;

/// One limit, by which it is set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LimitKey {
    /// None: of all projects that have none of their own.
    pub(crate) project: Option<Project>,
    pub(crate) metric: QuotaMetric,
    pub(crate) window: QuotaWindow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) amount: Amount,
    pub(crate) mode: QuotaMode,
}

/// A limit, and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holds {
    pub(crate) limit: Limit,
    pub(crate) source: &'static str,
}

#[derive(Debug)]
pub(crate) struct Limits {
    config: Config,
    live: RwLock<Live>,
}

#[derive(Debug, Default)]
struct Live {
    limits: HashMap<LimitKey, Limit>,
    known: bool,
}

impl Limits {
    pub(crate) fn new(config: Config) -> Limits {
        Limits { config, live: RwLock::default() }
    }

    pub(crate) fn of(&self, project: &Project, metric: QuotaMetric, window: QuotaWindow) -> Holds {
        let live = self.live.read().unwrap_or_else(PoisonError::into_inner);
        let set = |project: Option<&Project>, source| {
            let key = LimitKey { project: project.cloned(), metric, window };
            live.limits.get(&key).map(|limit| Holds { limit: *limit, source })
        };
        let configured = |limits: &crate::ProjectLimits, source| {
            let (amount, mode) = limits.of(metric, window)?;
            Some(Holds { limit: Limit { amount, mode }, source })
        };
        set(Some(project), "project-live")
            .or_else(|| configured(self.config.projects.get(project)?, "project"))
            .or_else(|| set(None, "live"))
            .or_else(|| configured(&self.config.limits, "default"))
            .unwrap_or(Holds {
                limit: Limit { amount: Amount::Unlimited, mode: QuotaMode::Enforce },
                source: "default",
            })
    }

    pub(crate) fn set(&self, key: LimitKey, limit: Option<Limit>) {
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        match limit {
            Some(limit) => live.limits.insert(key, limit),
            None => live.limits.remove(&key),
        };
        meters::live_limits(live.limits.len());
    }

    /// Everything that was set live is known.
    pub(crate) fn settled(&self) {
        self.live.write().unwrap_or_else(PoisonError::into_inner).known = true;
    }

    pub(crate) fn are_known(&self) -> bool {
        self.live.read().unwrap_or_else(PoisonError::into_inner).known
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MetricLimits, ProjectLimits};

    fn project(name: &str) -> Project {
        name.parse().unwrap()
    }

    fn imports(day: u64) -> ProjectLimits {
        let imports = MetricLimits { day: Some(Amount::Limit(day)), ..MetricLimits::default() };
        ProjectLimits { imports, ..ProjectLimits::default() }
    }

    #[test]
    fn the_nearest_limit_holds_and_live_ones_come_first() {
        let projects = [(project("own"), imports(2))].into();
        let limits = Limits::new(Config { limits: imports(1), projects, ..Config::default() });
        let (metric, window) = (QuotaMetric::Imports, QuotaWindow::Day);
        let holds = |name: &str| {
            let holds = limits.of(&project(name), metric, window);
            (holds.limit.amount, holds.source)
        };
        assert_eq!(holds("own"), (Amount::Limit(2), "project"));
        assert_eq!(holds("other"), (Amount::Limit(1), "default"));
        let set = |name: Option<&str>, amount: Option<Amount>| {
            let key = LimitKey { project: name.map(project), metric, window };
            limits.set(key, amount.map(|amount| Limit { amount, mode: QuotaMode::Enforce }));
        };
        set(None, Some(Amount::Limit(3)));
        assert_eq!(
            (holds("own"), holds("other")),
            ((Amount::Limit(2), "project"), (Amount::Limit(3), "live"))
        );
        set(Some("own"), Some(Amount::Unlimited));
        assert_eq!(holds("own"), (Amount::Unlimited, "project-live"));
        set(Some("own"), None);
        assert_eq!(holds("own"), (Amount::Limit(2), "project"));
        assert_eq!(limits.of(&project("own"), metric, QuotaWindow::Minute).limit.amount, Amount::Unlimited);
    }
}

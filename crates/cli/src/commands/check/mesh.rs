//! Who answers in the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bus::Bus;
use proto::{HelloReply, HelloRequest, Role};

use super::report::Report;

const MESH: &str = "mesh";
/// How long services have to answer: those who are busy for longer are broken.
const WAIT: Duration = Duration::from_secs(2);
/// Clocks may differ so much: grants live for hours, certificates count from ten minutes before they were made.
const SKEW_MAX: Duration = Duration::from_secs(60);

pub(super) async fn check(bus: Option<&Bus>, report: &mut Report) {
    let Some(bus) = bus else {
        let hint = "--nats, or --config with the operator's sluice.toml";
        return report.bad(MESH, "services answer", "there is no connection to a mesh", hint, "nats");
    };
    let asked = now_ms();
    let replies = match bus.gather(HelloRequest {}, WAIT).await {
        Ok(replies) => replies,
        Err(status) => {
            let hint = "may this user ask everybody? Only operators may";
            return report.bad(MESH, "services answer", status.message(), hint, "nats");
        }
    };
    let between = (asked, now_ms());
    let mut by_role: BTreeMap<Role, Vec<HelloReply>> = BTreeMap::new();
    for reply in replies {
        if let Some(role) = Role::from_name(&reply.role) {
            by_role.entry(role).or_default().push(reply);
        }
    }
    for (role, needed) in [
        (Role::Fetcher, "nothing is imported, and no grant is given or renewed"),
        (Role::Cache, "nodes read from the object store alone"),
        (Role::Policy, ""),
        (Role::Quota, ""),
        (Role::Events, ""),
    ] {
        let found = by_role.remove(&role).unwrap_or_default();
        let what = format!("the {} service answers", role.name());
        match (found.is_empty(), needed.is_empty()) {
            (true, false) => report.bad(MESH, what, needed, "start it, and look at its log", "services"),
            (true, true) => report.warning(MESH, what, "none does: the mesh goes on without", "", "services"),
            (false, _) => found.iter().for_each(|reply| service(reply, between, report)),
        }
        versions(role, &found, report);
    }
}

fn service(reply: &HelloReply, (asked, answered): (u64, u64), report: &mut Report) {
    let HelloReply { role, instance, version, unready, insecure, .. } = reply;
    let name = format!("{role} {instance} {version}");
    match unready.is_empty() {
        true => report.good(MESH, format!("{name} is ready")),
        false => report.bad(MESH, format!("{name} is ready"), unready, "its log says more", "services"),
    }
    if !insecure.is_empty() {
        let reason = format!("{} is set there", insecure.join(", "));
        report.warning(MESH, format!("{name} speaks over TLS alone"), reason, "", "tls");
    }
    if let Some(off) = skew(reply.now_ms, asked, answered) {
        let reason = format!("its clock differs from this machine's by {off:?}");
        let hint = "NTP; grants, tokens and certificates end by clocks";
        report.bad(MESH, format!("the clock of {name} is right"), reason, hint, "clocks");
    }
}

/// How far a clock is off for sure; it was read between two moments of ours.
fn skew(theirs: u64, asked: u64, answered: u64) -> Option<Duration> {
    let off = Duration::from_millis(asked.saturating_sub(theirs).max(theirs.saturating_sub(answered)));
    (off > SKEW_MAX).then_some(off)
}

fn versions(role: Role, found: &[HelloReply], report: &mut Report) {
    let versions: BTreeSet<&str> = found.iter().map(|reply| reply.version.as_str()).collect();
    if versions.len() > 1 {
        let reason = format!("{} run at once", versions.into_iter().collect::<Vec<_>>().join(" and "));
        report.warning(MESH, format!("all of {} have one version", role.name()), reason, "", "services");
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_off_only_beyond_what_the_question_took() {
        assert_eq!(skew(5_000, 1_000, 9_000), None);
        assert_eq!(skew(100_000, 1_000, 60_000), None, "within the bound");
        assert_eq!(skew(700_000, 1_000, 60_000), Some(Duration::from_secs(640)));
        assert_eq!(skew(1_000, 601_000, 603_000), Some(Duration::from_secs(600)));
    }
}

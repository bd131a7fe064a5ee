//! Who answers in the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bus::{Bus, unix_ms};
use proto::{HelloReply, HelloRequest, NodesReply, NodesRequest, Role};

use super::report::Report;

const MESH: &str = "mesh";
const NODES: &str = "nodes";
/// How long services have to answer: those who are busy for longer are broken.
const WAIT: Duration = Duration::from_secs(2);
/// Nodes that are named, of those that are broken.
const NAMED_MAX: usize = 20;

pub(super) async fn check(bus: Option<&Bus>, report: &mut Report) {
    let Some(bus) = bus else {
        let hint = "--nats, or --config with the operator's sluice.toml";
        return report.bad(MESH, "services answer", "there is no connection to a mesh", hint, "nats");
    };
    let asked = unix_ms();
    let replies = match bus.gather(HelloRequest {}, WAIT).await {
        Ok(replies) => replies,
        Err(status) => {
            let hint = "may this user ask everybody? Only operators may";
            return report.bad(MESH, "services answer", status.message(), hint, "nats");
        }
    };
    let between = (asked, unix_ms());
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
    nodes(bus, report).await;
}

/// Each fetcher has heard of all nodes, from its start on: the one that has listened for longest knows best.
async fn nodes(bus: &Bus, report: &mut Report) {
    let replies = bus.gather(NodesRequest {}, WAIT).await.unwrap_or_default();
    match replies.into_iter().max_by_key(|reply| reply.listening_ms) {
        Some(reply) => told_of_nodes(&reply, report),
        None => {
            let reason = "no fetcher says which nodes there are";
            report.warning(NODES, "nodes are there", reason, "", "services");
        }
    }
}

fn told_of_nodes(reply: &NodesReply, report: &mut Report) {
    let NodesReply { total, broken_total, broken, versions, insecure, .. } = reply;
    let named: Vec<String> =
        versions.iter().map(|of| format!("{} of version {}", of.nodes, of.version)).collect();
    let ready = total.saturating_sub(*broken_total);
    let summary = format!("{ready} of {total} nodes are ready");
    match total {
        0 => {
            report.warning(NODES, "nodes are there", "none has said so", "they say it every minute", "nodes")
        }
        _ if *broken_total > 0 => {
            report.bad(NODES, summary, format!("{broken_total} are not"), "", "nodes");
        }
        _ => report.good(NODES, format!("{summary} ({})", named.join(", "))),
    }
    for node in broken.iter().take(NAMED_MAX) {
        let what = format!("node {} {} of project {} is ready", node.node, node.version, node.project);
        report.bad(NODES, what, &node.reason, "`sluice check --this-node` there, and its log", "nodes");
    }
    let more = broken_total.saturating_sub(NAMED_MAX as u64);
    if more > 0 {
        report.warning(NODES, "all broken nodes are listed", format!("{more} more are broken"), "", "nodes");
    }
    if versions.len() > 1 {
        report.warning(NODES, "all nodes have one version", named.join(", "), "", "nodes");
    }
    if *insecure > 0 {
        let reason = format!("{insecure} of them have a setting that allows otherwise");
        report.warning(NODES, "nodes speak over TLS alone", reason, "", "tls");
    }
    let listening = Duration::from_millis(reply.listening_ms);
    if listening < bus::presence::EVERY {
        let reason = format!("the fetcher that was asked has been listening for {} s", listening.as_secs());
        report.warning(NODES, "the list of nodes is whole", reason, "ask again in a minute", "nodes");
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
    if let Some(off) = checks::skew(reply.now_ms, asked, answered) {
        let reason = format!("its clock differs from this machine's by {off:?}");
        let hint = "NTP; grants, tokens and certificates end by clocks";
        report.bad(MESH, format!("the clock of {name} is right"), reason, hint, "clocks");
    }
}

fn versions(role: Role, found: &[HelloReply], report: &mut Report) {
    let versions: BTreeSet<&str> = found.iter().map(|reply| reply.version.as_str()).collect();
    if versions.len() > 1 {
        let reason = format!("{} run at once", versions.into_iter().collect::<Vec<_>>().join(" and "));
        report.warning(MESH, format!("all of {} have one version", role.name()), reason, "", "services");
    }
}

#[cfg(test)]
mod tests {
    use proto::{BrokenNode, VersionCount};

    use super::*;

    #[test]
    fn of_many_nodes_the_broken_ones_are_named_and_the_rest_is_counted() {
        let broken = |number: usize| BrokenNode {
            project: "default".to_owned(),
            node: format!("node-{number}"),
            version: "1".to_owned(),
            reason: "bus: no connection".to_owned(),
        };
        let reply = NodesReply {
            listening_ms: 600_000,
            total: 10_000,
            broken_total: 300,
            broken: (0..100).map(broken).collect(),
            versions: vec![VersionCount { version: "1".to_owned(), nodes: 10_000 }],
            insecure: 0,
        };
        let mut report = Report::default();
        told_of_nodes(&reply, &mut report);
        let text = report.text();
        assert!(text.contains("× 9700 of 10000 nodes are ready\n    300 are not"), "{text}");
        assert!(text.contains("node-19 ") && !text.contains("node-20 "), "{text}");
        assert!(text.contains("280 more are broken") && !report.is_good(), "{text}");
    }
}

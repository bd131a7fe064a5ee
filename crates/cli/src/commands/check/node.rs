//! What streaming needs of this machine.

use bus::Bus;

use super::Context;
use super::report::Report;
use crate::node::Node;

const NODE: &str = "node";

pub(super) async fn check(context: &Context, bus: Option<&Bus>, report: &mut Report) {
    let what = "this machine can stream images";
    report.result(NODE, what, frontend::check_machine(), "", "nodes");
    if let Some(bus) = bus {
        let what = "this machine's clock is that of the mesh";
        match checks::clock(bus).await {
            Ok(None) => report.good(NODE, what),
            Ok(Some(off)) => report.bad(NODE, what, checks::differs(off), "NTP", "clocks"),
            Err(error) => report.warning(NODE, what, error, "a fetcher says what time it has", "clocks"),
        }
    }
    let socket = context.settings.node_socket();
    let what = "a frontend answers on this node";
    match Node::connect(socket).await {
        Err(_) if context.settings.nats.is_none() => {
            report.good(NODE, "no node runs: the first `sluice mount` or `sluice run` starts one");
        }
        Err(error) => {
            report.bad(NODE, what, format!("{error:#}"), "start it: `frontend --config …`", "nodes")
        }
        Ok(mut node) => match node.status(false).await {
            Err(status) => report.bad(NODE, what, status.message(), "its log says more", "nodes"),
            Ok(status) => {
                report.good(NODE, format!("{what}: {} images", status.images.len()));
                if status.disk_bytes > status.disk_budget {
                    let reason = format!(
                        "{} of {} are used",
                        crate::render::bytes(status.disk_bytes),
                        crate::render::bytes(status.disk_budget)
                    );
                    report.warning(NODE, "its disk budget is kept", reason, "frontend.disk_budget", "nodes");
                }
            }
        },
    }
}

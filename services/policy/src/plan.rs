//! Which prefetch plans make sense, and how they cross the bus. Pure.

use proto::plan_item::{ChunkRun, Item};
use proto::plan_reply::Mode;
use proto::{PlanItem, PlanReply};

use crate::host::{Fault, plan};

/// Items of one plan: more than a node asks for ahead. With the longest paths they still fit a message.
const ITEMS_MAX: usize = 10_000;
/// Of all paths of a plan together, in bytes.
const PATHS_MAX: usize = 512 * 1024;

pub(crate) fn sensible_plan(plan: plan::PrefetchPlan) -> Result<PlanReply, Fault> {
    if plan.items.len() > ITEMS_MAX {
        return Err(Fault::Nonsense(format!("its plan has {} items; at most {ITEMS_MAX}", plan.items.len())));
    }
    if plan.bandwidth == Some(0) {
        return Err(Fault::Nonsense(
            "its plan has a bandwidth of 0: the mode `nothing` says that".to_owned(),
        ));
    }
    let paths: usize =
        plan.items.iter().map(|item| if let plan::Item::Path(path) = item { path.len() } else { 0 }).sum();
    if paths > PATHS_MAX {
        return Err(Fault::Nonsense(format!(
            "the paths of its plan have {paths} bytes; at most {PATHS_MAX}"
        )));
    }
    let mode = match plan.mode {
        plan::Mode::ListedThenRest => Mode::ListedThenRest,
        plan::Mode::ListedOnly => Mode::ListedOnly,
        plan::Mode::Everything => Mode::Everything,
        plan::Mode::Nothing => Mode::Nothing,
    };
    let item = |item: plan::Item| PlanItem {
        item: Some(match item {
            plan::Item::Chunk(first) => Item::Chunks(ChunkRun { first, count: 1 }),
            plan::Item::Chunks((first, count)) => Item::Chunks(ChunkRun { first, count }),
            plan::Item::Path(path) => Item::Path(path),
        }),
    };
    Ok(PlanReply {
        mode: mode.into(),
        items: plan.items.into_iter().map(item).collect(),
        bandwidth: plan.bandwidth,
        reason: crate::foreign::brief(&plan.reason),
        policy: String::new(),
    })
}

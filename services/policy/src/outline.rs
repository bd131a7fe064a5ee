//! What a plugin is: what can be seen from outside, and what it says of itself.

use anyhow::Context;

use crate::Limits;
use crate::foreign::brief;
use crate::host::{Guest, Host, Judge, Planner, Surface, Unusable, World};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    pub world: &'static str,
    pub version: String,
    pub summary: String,
    pub imports: Vec<String>,
    pub exports: Vec<String>,
}

/// Compiles a plugin and asks it about itself; what no service would load is an error. Blocks.
pub fn outline(plugin: &[u8], limits: Limits) -> anyhow::Result<Outline> {
    let host = Host::new(limits)?;
    match of_world::<Judge>(&host, plugin) {
        Err(error) if error.downcast_ref().is_some_and(Unusable::is_other_world) => {
            of_world::<Planner>(&host, plugin)
        }
        outline => outline,
    }
}

fn of_world<W: World>(host: &Host, plugin: &[u8]) -> anyhow::Result<Outline> {
    let guest = Guest::<W>::load(host, "plugin", plugin)?;
    let about = guest.describe().context("asking it about itself")?;
    let Surface { imports, exports, .. } = guest.surface();
    Ok(Outline {
        world: W::NAME,
        version: brief(&about.version),
        summary: brief(&about.summary),
        imports,
        exports,
    })
}

//! From bytes to something that can be called: what may be loaded at all.

use wasmtime::Engine;
use wasmtime::component::{Component, InstancePre, Linker};

use super::state::State;
use super::world::World;
use crate::foreign::reason;

/// The package of the contract, and the versions of it that this host speaks.
const PACKAGE: &str = "sluice:policy/";
const VERSION: &str = "0.1.";
/// What a policy may import: a log, and the types of its facts and settings.
const IMPORTS: [&str; 3] = ["log", "facts", "settings"];

/// Why a plugin cannot be used at all. Names in a component are as long as its author likes, and of any letters.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("it is compiled code, which is never accepted: give the component itself")]
    Compiled,
    #[error("it is a core module, not a component: make one of it with `wasm-tools component new`")]
    Module,
    #[error("it is not WebAssembly")]
    Foreign,
    #[error("it is not a valid WebAssembly component: {}", reason(.0))]
    Invalid(String),
    #[error("it needs more than an instance may have: {}", reason(.0))]
    Demanding(String),
    #[error("it imports {}; a policy may import nothing but sluice:policy/log", reason(.0))]
    Import(String),
    #[error("it speaks sluice:policy {}; this host speaks 0.1", reason(found))]
    Version { found: String },
    #[error("it is not of the world `{world}`: it exports {}, and not {wanted}", reason(found))]
    World { world: &'static str, wanted: &'static str, found: String },
    #[error("its {world} interface is not that of sluice:policy 0.1: {}", reason(found))]
    Shape { world: &'static str, found: String },
}

impl Unusable {
    /// It exports something of ours, but not what this world needs.
    pub(crate) fn is_other_world(&self) -> bool {
        matches!(self, Unusable::World { found, .. } if found.contains(PACKAGE))
    }
}

/// Compiles `bytes`, after what can be seen from outside was checked. Takes as long as the plugin is large.
pub(super) fn load<W: World>(engine: &Engine, bytes: &[u8]) -> Result<InstancePre<State>, Unusable> {
    if Engine::detect_precompiled(bytes).is_some() {
        return Err(Unusable::Compiled);
    }
    if !bytes.starts_with(b"\0asm") {
        return Err(Unusable::Foreign);
    }
    if bytes.starts_with(b"\0asm\x01\0\0\0") {
        return Err(Unusable::Module);
    }
    // wasmtime has no type for what its pool has no place for: what it says is the only difference.
    let invalid = |error: wasmtime::Error| match format!("{error:#}") {
        text if text.contains("pooling allocator") => Unusable::Demanding(text),
        text => Unusable::Invalid(text),
    };
    let component = Component::from_binary(engine, bytes).map_err(invalid)?;
    let shape = component.component_type();
    for (name, _) in shape.imports(engine) {
        check_import(name)?;
    }
    check_exports::<W>(shape.exports(engine).map(|(name, _)| name).collect())?;
    let mut linker = Linker::new(engine);
    let shape = |error: wasmtime::Error| Unusable::Shape { world: W::NAME, found: format!("{error:#}") };
    W::link(&mut linker).map_err(shape)?;
    linker.instantiate_pre(&component).map_err(shape)
}

fn check_import(name: &str) -> Result<(), Unusable> {
    let refuse = || Unusable::Import(name.to_owned());
    let (interface, version) =
        name.strip_prefix(PACKAGE).and_then(|rest| rest.split_once('@')).ok_or_else(refuse)?;
    if !version.starts_with(VERSION) {
        return Err(Unusable::Version { found: version.to_owned() });
    }
    IMPORTS.contains(&interface).then_some(()).ok_or_else(refuse)
}

/// Other exports are nobody's business: some toolchains add theirs.
fn check_exports<W: World>(names: Vec<&str>) -> Result<(), Unusable> {
    let ours =
        |name: &&str| name.strip_prefix(W::EXPORT).and_then(|rest| rest.strip_prefix('@')).map(str::to_owned);
    match names.iter().find_map(ours) {
        Some(version) if version.starts_with(VERSION) => Ok(()),
        Some(version) => Err(Unusable::Version { found: version }),
        None => {
            let found = if names.is_empty() { "nothing".to_owned() } else { names.join(", ") };
            Err(Unusable::World { world: W::NAME, wanted: W::EXPORT, found })
        }
    }
}

//! Embeds the policies that come with sluice, as `./just plugins` built them.

use std::path::Path;
use std::{env, fs};

/// What must be there. `tests/` beside them is for tests alone.
const BUILTIN: [&str; 7] = [
    "encrypted-layers",
    "layer-shape",
    "learned",
    "registry-region",
    "schema-version",
    "size-limits",
    "whole-image",
];

fn main() -> Result<(), String> {
    let variable = |name: &str| env::var(name).map_err(|error| format!("{name}: {error}"));
    let folder = match env::var("SLUICE_PLUGINS") {
        Ok(folder) => folder,
        Err(_) => format!("{}/../../target-plugins", variable("CARGO_MANIFEST_DIR")?),
    };
    println!("cargo::rerun-if-env-changed=SLUICE_PLUGINS");
    let mut table = String::from("&[\n");
    for name in BUILTIN {
        let file = Path::new(&folder).join(format!("{name}.wasm"));
        let file = fs::canonicalize(&file).map_err(|error| {
            format!("the policy {} is not built ({error}): run `./just plugins` first", file.display())
        })?;
        println!("cargo::rerun-if-changed={}", file.display());
        table += &format!("    ({name:?}, include_bytes!({file:?})),\n");
    }
    table += "]\n";
    let out = Path::new(&variable("OUT_DIR")?).join("builtin.rs");
    fs::write(&out, table).map_err(|error| format!("writing {}: {error}", out.display()))?;
    println!("cargo::rustc-env=SLUICE_PLUGINS_BUILT={folder}");
    Ok(())
}

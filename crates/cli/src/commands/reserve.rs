//! `sluice reserve`: how much of a node's memory streaming may take.

use std::process::ExitCode;

use bytesize::ByteSize;
use clap::Args;
use serde::Serialize;

use crate::args::Global;
use crate::render;

/// Show how much memory a node reserves for streaming
///
/// Nothing below 1 GB; else 1 % of the first 4 GiB, 0.8 % of the next 4, 0.4 % of the next 8, 0.24 % of the next 112
/// and 0.08 % above. It is the hard limit of a frontend's process: of its unit, as `sluice install --frontend` writes
/// it, or of its container.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sluice reserve                     for this machine
  sluice reserve --memory 64GiB
  sluice reserve --json              in bytes")]
pub struct ReserveArgs {
    /// The node's memory [default: this machine's]
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,
}

/// `--json`.
#[derive(Debug, Serialize)]
struct Reserved {
    memory_bytes: u64,
    reserved_bytes: u64,
}

pub fn run(global: &Global, args: &ReserveArgs) -> anyhow::Result<ExitCode> {
    let memory_bytes = args.memory.map_or_else(frontend::node_memory, |memory| memory.as_u64());
    let reserved_bytes = frontend::reservation(memory_bytes);
    match global.json {
        true => render::json(&Reserved { memory_bytes, reserved_bytes })?,
        false => render::line(&describe(memory_bytes, reserved_bytes))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// In the units that memory comes in.
fn describe(memory: u64, reserved: u64) -> String {
    let shown = |bytes: u64| ByteSize::b(bytes).display().iec().to_string();
    format!("{} of {}", shown(reserved), shown(memory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_a_person_reads() {
        let memory = 4 << 30;
        assert_eq!(describe(memory, frontend::reservation(memory)), "41.0 MiB of 4.0 GiB");
        assert_eq!(describe(1 << 20, 0), "0 B of 1.0 MiB");
    }
}

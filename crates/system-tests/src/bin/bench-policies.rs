//! Measures the policy service; prints one JSON object.

use std::io::Write as _;

fn main() -> anyhow::Result<()> {
    let measured = system_tests::bench::policies::measure()?;
    writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&measured)?)?;
    Ok(())
}

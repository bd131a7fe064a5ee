//! The `sluice` command. Everything it does is in the library beside it.

fn main() -> std::process::ExitCode {
    frontend::holder_entry().or_else(cli::runtime::init::entry).unwrap_or_else(cli::main)
}

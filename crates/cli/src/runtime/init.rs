//! `--init`: a first process for containers whose command was not written to be one. It passes signals on, which the kernel would
//! drop, and takes in the children that others leave to it.
//!
//! ```text
//! /dev/init/ld.so --library-path /dev/init /dev/init/sluice container-init COMMAND…   --starts--> COMMAND…
//! ```
//!
//! It is this same program under another first argument. An image need not have the libraries that this program is linked with,
//! so it brings them along, with the loader that knows them: all of it is mounted read-only below `/dev`, which is the container's own
//! in any case, so nothing of it is written into the container's root.

use std::ffi::OsString;
use std::io::{self, ErrorKind, IsTerminal as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::Context as _;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, kill_process_group, wait};
use tokio::signal::unix::{SignalKind, signal};

use super::signals::Caught;
use crate::exit::RUN_FAILED;
use crate::render::say;

/// The first argument of a program that is a container's first process.
const ARGUMENT: &str = "container-init";
const FOLDER: &str = "/dev/init";
const PROGRAM: &str = "sluice";
/// Variables that steer the loader are meant for the image's own, which has other libraries.
const HIDDEN: &str = "SLUICE_INIT_";

/// The program, and what it takes to run it in any root.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Init {
    loader: Option<String>,
    /// Files of this machine, and their names in the container's folder.
    pub files: Vec<(PathBuf, String)>,
}

impl Init {
    /// Of the program that runs.
    pub fn of_this_program() -> anyhow::Result<Init> {
        let program = std::env::current_exe().context("find this program")?;
        let maps = std::fs::read_to_string("/proc/self/maps").context("read what this program has loaded")?;
        let mut files = vec![(program.clone(), PROGRAM.to_owned())];
        let Some(loader) = loader_in(&maps) else { return Ok(Init { loader: None, files }) };
        let listed = Command::new(&loader).arg("--list").arg(&program).output();
        let listed = listed.with_context(|| format!("ask {} what this program needs", loader.display()))?;
        files.extend(libraries_in(&String::from_utf8_lossy(&listed.stdout)));
        let name = "ld.so".to_owned();
        files.push((loader, name.clone()));
        Ok(Init { loader: Some(name), files })
    }

    /// The command line that runs `arguments` below it.
    pub fn around(&self, arguments: Vec<String>) -> Vec<String> {
        let path = |name: &str| format!("{FOLDER}/{name}");
        let mut words = Vec::new();
        if let Some(loader) = &self.loader {
            words.extend([path(loader), "--library-path".to_owned(), FOLDER.to_owned()]);
        }
        words.extend([path(PROGRAM), ARGUMENT.to_owned()]);
        words.extend(arguments);
        words
    }

    /// The variables of its command, of which the loader sees nothing that is not meant for it.
    pub fn variables(variables: Vec<String>) -> Vec<String> {
        let hide = |variable: String| {
            if steers_loader(&variable) { format!("{HIDDEN}{variable}") } else { variable }
        };
        variables.into_iter().map(hide).collect()
    }

    pub fn path_of(name: &str) -> PathBuf {
        Path::new(FOLDER).join(name)
    }
}

fn steers_loader(variable: &str) -> bool {
    variable.starts_with("LD_") || variable.starts_with("GLIBC_TUNABLES")
}

/// The loader among the files of `/proc/PID/maps`; a static program has none.
fn loader_in(maps: &str) -> Option<PathBuf> {
    let files = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    let is_loader = |file: &&Path| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("ld-") || name.starts_with("ld64") || name == "ld.so"
    };
    files.filter(|file| !file.starts_with("/memfd:")).find(is_loader).map(Path::to_owned)
}

/// From lines such as `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`.
fn libraries_in(listed: &str) -> impl Iterator<Item = (PathBuf, String)> {
    listed.lines().filter_map(|line| {
        let (name, found) = line.trim().split_once(" => ")?;
        let file = found.split(" (").next()?;
        (!name.contains('/') && file.starts_with('/')).then(|| (PathBuf::from(file), name.to_owned()))
    })
}

/// What a program does that was started as a container's first process; none: it was started as itself.
pub fn entry() -> Option<ExitCode> {
    let mut words = std::env::args_os().skip(1);
    if words.next()? != ARGUMENT {
        return None;
    }
    let code = run(words.collect()).unwrap_or_else(|error| {
        say(&format!("sluice: init: {error:#}"));
        RUN_FAILED
    });
    Some(ExitCode::from(code))
}

fn run(words: Vec<OsString>) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut caught = Caught::all()?;
        let mut children = signal(SignalKind::child())?;
        let child = match start(&words) {
            Ok(child) => child,
            Err(error) => {
                let command = words.first().cloned().unwrap_or_default();
                say(&format!("sluice: cannot run {}: {error}", command.display()));
                return Ok(code_of_failure(&error));
            }
        };
        loop {
            tokio::select! {
                number = caught.next() => pass_on(number, child),
                _ = children.recv() => if let Some(code) = take_in(child) { return Ok(code) },
            }
        }
    })
}

fn start(words: &[OsString]) -> io::Result<Pid> {
    let (program, arguments) = words.split_first().ok_or(ErrorKind::NotFound)?;
    let mut command = Command::new(program);
    // Keys of the terminal are for the command alone.
    command.args(arguments).process_group(0);
    for (name, value) in std::env::vars_os() {
        if let Some(own) = name.to_str().and_then(|name| name.strip_prefix(HIDDEN)) {
            command.env_remove(&name).env(own, value);
        }
    }
    // Waited for with all others, not by its handle.
    let child = Pid::from_child(&command.spawn()?);
    if io::stdin().is_terminal() {
        rustix::termios::tcsetpgrp(rustix::stdio::stdin(), child)?;
        // It may have read, and been stopped for it, before it was in the foreground.
        let _ended = kill_process_group(child, Signal::CONT);
    }
    Ok(child)
}

fn code_of_failure(error: &io::Error) -> u8 {
    match error.kind() {
        ErrorKind::NotFound => 127,
        _ => 126,
    }
}

fn pass_on(number: i32, child: Pid) {
    // Real-time signals have no name here.
    if let Some(named) = Signal::from_named_raw(number) {
        let _ended = kill_process(child, named);
    }
}

/// Waits for all that ended; the exit code, should `child` be among them.
fn take_in(child: Pid) -> Option<u8> {
    let mut code = None;
    while let Ok(Some((ended, status))) = wait(WaitOptions::NOHANG) {
        if ended == child {
            code = Some(code_of(status));
        }
    }
    code
}

fn code_of(status: WaitStatus) -> u8 {
    let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(RUN_FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brings_along_what_this_program_is_linked_with() {
        let init = Init::of_this_program().unwrap();
        assert!(init.files.iter().all(|(file, _)| file.is_file()), "{init:?}");
        let names: Vec<_> = init.files.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names[0], PROGRAM);
        assert_eq!(init.loader.is_some(), names.iter().any(|name| name.starts_with("libc.")), "{names:?}");
    }

    #[test]
    fn reads_what_loaders_say() {
        let listed = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/x/libc-2.31.so (0x7f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 => /lib/x/ld-2.31.so (0x7f)\n";
        let expected = [(PathBuf::from("/lib/x/libc-2.31.so"), "libc.so.6".to_owned())];
        assert_eq!(libraries_in(listed).collect::<Vec<_>>(), expected);
        let maps =
            "7f-8f r-xp 0 fd:01 5 /usr/bin/x\n8f-9f r-xp 0 fd:01 6    /usr/lib/x/ld-linux-x86-64.so.2\n";
        assert_eq!(loader_in(maps), Some("/usr/lib/x/ld-linux-x86-64.so.2".into()));
        assert_eq!(loader_in("7f-8f r-xp 0 fd:01 5 /usr/bin/x\n"), None);
    }

    #[test]
    fn the_images_loader_is_not_ours() {
        let variables = ["LD_PRELOAD=x", "PATH=/bin", "OLD_X=1"].map(str::to_owned).to_vec();
        assert_eq!(Init::variables(variables), ["SLUICE_INIT_LD_PRELOAD=x", "PATH=/bin", "OLD_X=1"]);
    }
}

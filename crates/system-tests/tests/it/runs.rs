//! `sluice run`: its container can be told to end, ends in any case, and leaves nothing.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use system_tests::Scratch;
use system_tests::kubernetes::busybox;
use testkit::{ImageSpec, LayoutWriter};

const POLL: Duration = Duration::from_millis(20);
/// Between two signals of the same kind: those that wait to be taken are one to the kernel.
const PRESS: Duration = Duration::from_millis(200);
/// How long a step may take before the test gives up; far more than it needs.
const STEP_MAX: Duration = Duration::from_secs(120);
/// Ends by nothing but SIGKILL where it is a container's first process. Before it says so the runtime's own process stands in its
/// place, which has other ways.
const IGNORES: &[&str] = &["/bin/sh", "-c", "echo ready; exec /bin/sleep 1000"];

struct Machine {
    scratch: Scratch,
    reference: String,
}

impl Machine {
    fn new() -> anyhow::Result<Machine> {
        let scratch = Scratch::new()?;
        let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
        layout.image("app", &ImageSpec::new([busybox()?.finish()]))?;
        Ok(Machine { reference: layout.reference("app"), scratch })
    }

    fn command(&self, flags: &[&str], command: &[&str]) -> anyhow::Result<Command> {
        let reference = [self.reference.as_str(), "--"];
        self.scratch.command([&["run"], flags, &reference, command].concat())
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.scratch.state().join("run").join(name)
    }

    /// A container's first process, as soon as it runs.
    fn first_process(&self, name: &str) -> anyhow::Result<Pid> {
        let file = self.folder(name).join("bundle/pid");
        let mut found = None;
        wait_until("the container's start", || {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            found = text.trim().parse().ok().and_then(Pid::from_raw);
            found.is_some()
        });
        found.context("no process")
    }

    /// In the foreground; the command has said that it is ready.
    fn start(&self, name: &str, flags: &[&str], command: &[&str]) -> anyhow::Result<(Child, Pid)> {
        let mut run = self.command(&[&["--name", name], flags].concat(), command)?;
        let mut run = run.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(run.stdout.as_mut().context("no output")?).read_line(&mut line)?;
        ensure!(line == "ready\n", "{name} said {line:?}");
        Ok((run, self.first_process(name)?))
    }

    /// In the background.
    fn detach(&self, flags: &[&str], command: &[&str]) -> anyhow::Result<(String, Pid)> {
        let output = self.command(&[&["--detach"], flags].concat(), command)?.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let name = String::from_utf8(output.stdout)?.trim().to_owned();
        let printed = self.folder(&name).join("output");
        wait_until("its output", || std::fs::read_to_string(&printed).is_ok_and(|text| text == "ready\n"));
        let process = self.first_process(&name)?;
        Ok((name, process))
    }

    /// Nothing is left of a container, neither now nor later.
    fn is_gone(&self, name: &str, process: Pid) -> anyhow::Result<()> {
        ensure!(test_kill_process(process).is_err(), "the container runs");
        ensure!(!self.folder(name).exists(), "its folder is there");
        let mounts = self.scratch.mounts()?;
        ensure!(!mounts.iter().any(|mount| mount.starts_with(self.folder(name))), "mounted: {mounts:?}");
        Ok(())
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < STEP_MAX, "{what} did not happen");
        sleep(POLL);
    }
}

fn end_of(run: &mut Child) -> anyhow::Result<ExitStatus> {
    let mut ended = None;
    wait_until("the end of a run", || {
        ended = run.try_wait().ok().flatten();
        ended.is_some()
    });
    ended.context("no status")
}

#[test]
fn the_third_key_ends_what_ignores_keys() -> anyhow::Result<()> {
    let machine = Machine::new()?;
    for key in [Signal::INT, Signal::QUIT] {
        let (mut run, process) = machine.start("keys", &[], IGNORES)?;
        let mut presses = 0;
        wait_until("the end of a run", || {
            let ended = run.try_wait().ok().flatten().is_some();
            if !ended {
                presses += 1;
                kill_process(Pid::from_child(&run), key).ok();
                sleep(PRESS);
            }
            ended
        });
        assert!(presses >= 3, "killed after {presses}");
        assert_eq!(end_of(&mut run)?.code(), Some(137));
        machine.is_gone("keys", process)?;
    }
    Ok(())
}

#[test]
fn the_third_key_of_a_terminal_does_so_too() -> anyhow::Result<()> {
    let machine = Machine::new()?;
    for key in [b"\x03", b"\x1c"] {
        let run =
            machine.command(&["--name", "terminal"], &["/bin/sh", "-c", "echo ready; exec sleep 1000"])?;
        let words = std::iter::once(run.get_program()).chain(run.get_args());
        let quoted: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
        // Gives it a terminal, and types what it reads. A shell that stayed would end with the first key.
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &format!("exec {}", quoted.join(" ")), "/dev/null"]);
        let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut output = BufReader::new(script.stdout.take().context("no output")?);
        let mut line = String::new();
        while !line.contains("ready") {
            line.clear();
            ensure!(output.read_line(&mut line)? > 0, "the command never ran");
        }
        let process = machine.first_process("terminal")?;
        let mut keyboard = script.stdin.take().context("no input")?;
        wait_until("the end of a run", || {
            let ended = script.try_wait().ok().flatten().is_some();
            if !ended {
                keyboard.write_all(key).ok();
                sleep(PRESS);
            }
            ended
        });
        assert_eq!(end_of(&mut script)?.code(), Some(137));
        machine.is_gone("terminal", process)?;
    }
    Ok(())
}

#[test]
fn a_request_to_end_is_kept_in_the_end() -> anyhow::Result<()> {
    let machine = Machine::new()?;
    let (mut run, process) = machine.start("patient", &["--stop-timeout", "1s"], IGNORES)?;
    kill_process(Pid::from_child(&run), Signal::TERM)?;
    assert_eq!(end_of(&mut run)?.code(), Some(137));
    machine.is_gone("patient", process)
}

#[test]
fn signals_reach_the_command() -> anyhow::Result<()> {
    let machine = Machine::new()?;
    // By number: a terminal's size, and a real-time signal, which have ways of their own.
    for (signal, number) in [("HUP", 1), ("USR1", 10), ("TERM", 15), ("WINCH", 28), ("37", 37)] {
        let script = format!("trap 'exit 7' {signal}; echo ready; while :; do sleep 0.1; done");
        let (mut run, process) = machine.start("told", &[], &["/bin/sh", "-c", &script])?;
        // The shell's own: the program is not on every machine.
        let told = Command::new("sh").args(["-c", &format!("kill -{number} {}", run.id())]).status()?;
        assert!(told.success());
        assert_eq!(end_of(&mut run)?.code(), Some(7), "{signal}");
        machine.is_gone("told", process)?;
    }
    Ok(())
}

#[test]
fn below_an_init_commands_end_as_they_do_elsewhere() -> anyhow::Result<()> {
    let machine = Machine::new()?;
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let (mut run, process) = machine.start("init", &["--init"], IGNORES)?;
        kill_process(Pid::from_child(&run), signal)?;
        assert_eq!(end_of(&mut run)?.code(), Some(code));
        machine.is_gone("init", process)?;
    }
    // Children that others leave behind do not pile up; what steers a loader is for the image's own.
    let script = "(/bin/sh -c 'exit 0' & ); echo $LD_LIBRARY_PATH; echo $$; \
                  while /bin/busybox grep -q ') Z ' /proc/[0-9]*/stat; do sleep 0.05; done; exit 5";
    let flags = ["--init", "--read-only", "--user", "1000", "--env", "LD_LIBRARY_PATH=/own"];
    let output = machine.command(&flags, &["/bin/sh", "-c", script])?.output()?;
    assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout)?;
    assert!(printed.starts_with("/own\n") && !printed.contains("\n1\n"), "{printed}");
    assert_eq!(machine.command(&["--init"], &["/nothing"])?.status()?.code(), Some(127));
    Ok(())
}

#[test]
fn commands_that_cannot_run_have_the_codes_of_a_shell() -> anyhow::Result<()> {
    let machine = Machine::new()?;
    for (command, code) in [("no-such-command", 127), ("/no/such/command", 127), ("/bin", 126)] {
        assert_eq!(machine.command(&[], &[command])?.status()?.code(), Some(code), "{command}");
    }
    Ok(())
}

#[test]
fn a_run_that_is_killed_takes_its_container_along() -> anyhow::Result<()> {
    let machine = Machine::new()?;
    let (mut run, process) = machine.start("killed", &[], IGNORES)?;
    run.kill()?;
    run.wait()?;
    wait_until("the end of what was left", || machine.is_gone("killed", process).is_ok());
    Ok(())
}

#[test]
fn a_detached_container_runs_until_it_is_stopped() -> anyhow::Result<()> {
    let machine = Machine::new()?;
    let script = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done";
    let (name, process) = machine.detach(&[], &["/bin/sh", "-c", script])?;
    test_kill_process(process)?;
    assert!(machine.scratch.refuse(["stop", "another"])?.contains(&name));
    machine.scratch.succeed(["stop", &name])?;
    machine.is_gone(&name, process)?;

    // One that ignores everything, and one whose attendant is killed.
    let flags = ["--name", "deaf", "--stop-timeout", "1s"];
    let (name, process) = machine.detach(&flags, IGNORES)?;
    machine.scratch.succeed(["stop", &name])?;
    machine.is_gone(&name, process)?;
    let (name, process) = machine.detach(&flags, IGNORES)?;
    let attendant = std::fs::read_to_string(machine.folder(&name).join("attendant"))?;
    kill_process(attendant.parse().ok().and_then(Pid::from_raw).context("no attendant")?, Signal::KILL)?;
    wait_until("the end of what was left", || machine.is_gone(&name, process).is_ok());

    let output = machine.command(&["--detach"], &["no-such-command"])?.output()?;
    assert_eq!(output.status.code(), Some(127));
    assert!(output.stdout.is_empty());
    Ok(())
}

#[test]
fn a_container_has_the_machines_network_only_if_it_is_asked_for() -> anyhow::Result<()> {
    let machine = Machine::new()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let listed = format!(":{:04X} ", listener.local_addr()?.port());
    let seen = |flags: &[&str]| -> anyhow::Result<String> {
        let output = machine.command(flags, &["/bin/cat", "/proc/net/tcp", "/proc/net/dev"])?.output()?;
        Ok(String::from_utf8(output.stdout)?)
    };
    let own = seen(&[])?;
    assert!(!own.contains(&listed) && own.contains(" lo:"), "{own}");
    assert!(seen(&["--net", "host"])?.contains(&listed));
    // Loopback is up, and has a name.
    let script =
        "/bin/busybox httpd -p 8080 -h / && /bin/busybox wget -q -O /dev/null http://localhost:8080/bin/sh";
    assert!(machine.command(&[], &["/bin/sh", "-c", script])?.status()?.success());
    Ok(())
}

//! A container reads and writes while what it depends on is killed, replaced or restarted: no error, no wrong byte.

use std::process::Stdio;

use anyhow::Context as _;

use system_tests::Numbered;
use system_tests::cri::Cri;
use system_tests::kubernetes::{Node, Options};
use testkit::Tarball;

use crate::reading::{BATCH, Reading, SCRIPT, while_a_read_waits};

/// How often every process is killed; `SLUICE_KILL_ROUNDS` makes an hour of it.
fn rounds() -> anyhow::Result<u64> {
    std::env::var("SLUICE_KILL_ROUNDS").map_or(Ok(4), |rounds| Ok(rounds.parse()?))
}

#[test]
fn each_process_is_killed_and_comes_back() -> anyhow::Result<()> {
    let rounds = rounds()?;
    let mut reading = Reading::start(7 * rounds)?;
    for round in 0..rounds {
        println!("round {round}");
        reading.during(|node, options| {
            node.sluice.kill()?;
            node.restart_sluice(options)
        })?;
        // The same when it is certain that a read is waiting.
        reading.during(|node, options| {
            while_a_read_waits(node, |node| {
                node.sluice.kill()?;
                anyhow::ensure!(node.requests_waiting()? > 0, "no read was in flight");
                node.restart_sluice(options)
            })
        })?;
        reading.during(|node, _| {
            node.backend()?.cache.kill()?;
            node.backend()?.cache.restart()
        })?;
        reading.during(|node, _| {
            node.backend()?.fetcher.kill()?;
            node.backend()?.fetcher.restart()
        })?;
        reading.during(|node, _| {
            node.backend()?.nats.kill()?;
            node.backend()?.nats.restart()
        })?;
        reading.during(|node, _| node.kill_holder())?;
        // All at once, and the frontend is back first.
        reading.during(|node, options| {
            node.backend()?.kill()?;
            node.sluice.kill()?;
            node.restart_sluice(options)?;
            node.backend()?.restart()
        })?;
    }
    Ok(())
}

#[test]
fn a_frontend_starts_long_before_the_mesh_is_back() -> anyhow::Result<()> {
    // What is kept of a grant has expired when the next frontend starts.
    let mut reading = Reading::start_with(1, &["fetcher.grant_ttl=1s"])?;
    reading.options.settings.push("frontend.resolve_timeout=1s".to_owned());
    reading.during(|node, options| {
        node.backend()?.kill()?;
        node.sluice.kill()?;
        node.restart_sluice(options)?;
        // Its first question for a grant has failed when the mesh comes back.
        node.settle(|_| node.sluice.log().contains("no grant for an image"))?;
        node.backend()?.restart()
    })
}

#[test]
fn a_frontend_that_cannot_start_takes_nothing_from_a_reader() -> anyhow::Result<()> {
    let mut reading = Reading::start(1)?;
    reading.during(|node, options| {
        node.sluice.kill()?;
        // It is found to be wrong after the connection was taken over.
        let mut wrong = options.clone();
        wrong.settings.push("frontend.image_service=/proc/nowhere/images.sock".to_owned());
        anyhow::ensure!(node.restart_sluice(&wrong).is_err(), "it starts with a socket that cannot be");
        node.restart_sluice(options)
    })
}

#[test]
fn a_frontend_is_upgraded_under_a_reader() -> anyhow::Result<()> {
    let mut reading = Reading::start(3)?;
    let other = reading.node.scratch().path("frontend-of-another-version");
    std::fs::copy(system_tests::binaries::path("frontend")?, &other)?;
    for program in [None, Some(other.clone()), None] {
        reading.options.program = program;
        reading.during(|node, options| {
            while_a_read_waits(node, |node| {
                node.sluice.end()?;
                node.restart_sluice(options)
            })
        })?;
    }
    // Nor does anything of the other version stay behind: its program may go.
    std::fs::remove_file(&other)?;
    reading.node.kill_holder()?;
    let Reading { node, numbered, pod, image, .. } = reading;
    let container = node.cri.start(&pod, "after", &image, &["/bin/sleep", "1000"])?;
    numbered.read_inside(&node, &container, 0..BATCH)
}

#[test]
fn systemd_keeps_the_connection_when_the_holder_is_killed_too() -> anyhow::Result<()> {
    let settings = vec!["frontend.background=false".to_owned()];
    let options = Options { services: true, settings, managed: true, ..Options::default() };
    let mut node = Node::start(&options)?;
    let stored = |name| node.around.manager.as_ref().is_some_and(|manager| manager.has_stored(name));
    assert!(stored("fuse-connection") && stored("snapshotter-socket"));
    let numbered = Numbered { files: BATCH, len: 600_000, seed: 12 };
    let image = numbered.pull(&node, "app")?;
    let pod = node.cri.pod("one")?;
    let container = node.cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
    for half in [0..BATCH / 2, BATCH / 2..BATCH] {
        node.kill_all()?;
        // Who asks while nobody serves waits for the next process, and is not refused.
        let mut question = node.containerd.command();
        let waiting =
            question.args(["snapshots", "list"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        node.restart_sluice(&options)?;
        let answer = waiting.wait_with_output()?;
        assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
        numbered.read_inside(&node, &container, half)?;
    }
    Ok(())
}

#[test]
fn everything_is_killed_at_once_where_systemd_keeps_the_connection() -> anyhow::Result<()> {
    let rounds = rounds()?;
    let managed = Options { managed: true, ..Options::default() };
    let mut reading = Reading::start_on(rounds, managed)?;
    for _ in 0..rounds {
        reading.during(|node, options| {
            node.backend()?.kill()?;
            node.kill_all()?;
            node.restart_sluice(options)?;
            node.backend()?.restart()
        })?;
    }
    Ok(())
}

const RESTARTS: u64 = 5;
/// Each restart has three steps: while containerd is killed, while there is none, and while the next one starts.
const STEPS: u64 = 3 * RESTARTS;
/// A process of the container itself, as no command can be run in it without containerd.
const WORK: &str = r#"
exec 2> /errors
step=0
while [ $step -lt $STEPS ]; do
    until [ -e /begin-$step ]; do sleep 0.02; done
    FILES="$((2 * step)) $((2 * step + 1))"
    work
    touch /done-$step
    step=$((step + 1))
done
sleep 1000
"#;

#[test]
fn containerd_is_restarted_under_a_container_that_reads_and_writes() -> anyhow::Result<()> {
    let mut reading = Reading::start(STEPS * 2 / BATCH + 1)?;
    let script = format!("STEPS={STEPS}; work() {{ {SCRIPT} }}\n{WORK}");
    let command = ["/bin/sh", "-euc", &script];
    reading.container = reading.node.cri.start(&reading.pod, "works", &reading.image, &command)?;
    let root = reading.node.root_of(&reading.container);
    let begin = |step: u64| std::fs::write(root.join(format!("begin-{step}")), b"");
    let until_done = |node: &Node, step: u64| {
        let done = node.settle(|_| root.join(format!("done-{step}")).exists());
        done.with_context(|| std::fs::read_to_string(root.join("errors")).unwrap_or_default())
    };
    for restart in 0..RESTARTS {
        let node = &mut reading.node;
        begin(restart * 3)?;
        node.containerd.kill()?;
        begin(restart * 3 + 1)?;
        until_done(node, restart * 3 + 1)?;
        begin(restart * 3 + 2)?;
        node.containerd.restart()?;
        until_done(node, restart * 3 + 2)?;
        reading.check_copies(restart * 6..restart * 6 + 6)?;
    }

    let Reading { node, numbered, pod, container, image, .. } = reading;
    // A connection of its own: that of before may not have noticed yet.
    let cri = Cri::connect(&node.containerd.socket())?;
    assert!(cri.is_running(&container)?, "the container ended with containerd");
    assert_eq!(cri.exec(&container, &["/bin/sh", "-c", "echo alive"])?, "alive\n");
    let beside = cri.start(&pod, "beside", &image, &["/bin/sleep", "1000"])?;
    numbered.read_inside(&node, &beside, 0..BATCH)?;
    for container in [&container, &beside] {
        cri.stop(container)?;
    }
    cri.remove_pod(&pod)?;
    let pod = cri.pod("two")?;
    let container = cri.start(&pod, "app", &image, &["/bin/sleep", "1000"])?;
    numbered.read_inside(&node, &container, 0..BATCH)
}

#[test]
fn a_frontend_is_killed_under_a_part_of_another_image() -> anyhow::Result<()> {
    let settings = vec!["frontend.background=false".to_owned(), "frontend.read_timeout=20s".to_owned()];
    let options = Options { services: true, settings, ..Options::default() };
    let mut node = Node::start(&options)?;
    let numbered = Numbered { files: BATCH, len: 600_000, seed: 11 };
    let part = numbered.image()?;
    let mut whole = part.clone();
    whole.layers.push((Tarball::new().file("more", b"more").finish(), None));
    let [whole, part] = [("whole", whole), ("part", part)].map(|(name, spec)| node.push(name, &spec));
    let part = part?;
    node.cri.pull(&whole?)?;
    node.cri.pull(&part)?;
    let pod = node.cri.pod("one")?;
    let container = node.cri.start(&pod, "app", &part, &["/bin/sleep", "1000"])?;
    for read in 1..3 {
        node.sluice.kill()?;
        node.restart_sluice(&options)?;
        numbered.read_inside(&node, &container, 0..read * BATCH / 2)?;
    }
    Ok(())
}

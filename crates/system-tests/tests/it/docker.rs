//! A real Docker engine, switched to sluice and back by `sluice install --docker`, through what people do with it.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::Context as _;
use serde_json::Value;
use system_tests::docker::{DAEMON_CONFIG, Machine};
use system_tests::kubernetes::busybox;
use system_tests::noise;
use testkit::ImageSpec;
use testkit::layout::sha256;
use testkit::registry::{PASSWORD, USER};

const LEN: usize = 700_000;

/// Two layers: programs, and files in folders.
fn image(seed: u64) -> anyhow::Result<ImageSpec> {
    let data = testkit::Tarball::new()
        .directory("data")
        .file("data/one", &noise(seed, LEN))
        .file("data/two", &noise(seed + 1, LEN))
        .file("data/three", &noise(seed + 2, LEN))
        .file("data/four", &noise(seed + 3, LEN))
        .directory("folder")
        .directory("folder/inner")
        .file("folder/inner/file", &noise(seed + 4, LEN));
    let config = serde_json::json!({ "Env": ["PATH=/bin", "MARK=mine"], "Cmd": ["/bin/sh"] });
    Ok(ImageSpec { config: Some(config), ..ImageSpec::new([busybox()?.finish(), data.finish()]) })
}

fn sum(seed: u64) -> String {
    sha256(&noise(seed, LEN)).trim_start_matches("sha256:").to_owned()
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

fn driver(machine: &Machine) -> anyhow::Result<String> {
    machine.docker(&["info", "--format", "{{.Driver}}"])
}

fn actions(report: &Value) -> Vec<&str> {
    let files = report["files"].as_array().into_iter().flatten();
    files.filter_map(|file| file["action"].as_str()).collect()
}

/// What the engine says of an image's layers: nothing as long as it lacks them.
fn knows(machine: &Machine, image: &str) -> anyhow::Result<bool> {
    let said = machine.docker(&["image", "inspect", image]);
    let said: Value = said.map_or(Ok(Value::Null), |said| serde_json::from_str(&said))?;
    Ok(said[0]["RootFS"]["Layers"].as_array().is_some_and(|layers| !layers.is_empty()))
}

/// The sums of files that an image or a container of it shows.
fn sums(machine: &Machine, image: &str, files: &[&str]) -> anyhow::Result<Vec<String>> {
    let words = [&["run", "--rm", "--network=none", image, "/bin/sha256sum"], files].concat();
    let lines = machine.docker(&words)?;
    Ok(lines.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

#[test]
#[ignore = "a Docker engine: `./just test-docker`"]
fn the_engine_is_switched_and_back_byte_for_byte() -> anyhow::Result<()> {
    let mut machine = Machine::start()?;
    let (old, _) = machine.push("old", &image(10)?)?;
    let (app, _) = machine.push("app", &image(20)?)?;
    machine.docker(&["create", "--name", "old", "--network=none", &old, "/bin/ls", "/data"])?;
    let before = driver(&machine)?;
    let config = machine.path("etc/daemon.json");
    let containerd = machine.path("etc/containerd.toml");
    let original = read(&containerd)?;

    let refused = machine.try_sluice("install", &["--restart"])?.unwrap_err();
    assert!(refused.contains("do not show them") && refused.contains("--yes"), "{refused}");
    let report = machine.sluice("install", &["--restart", "--dry-run", "--yes"])?;
    assert_eq!(actions(&report), ["changed", "created", "changed", "changed"], "{report}");
    assert_eq!((read(&config)?.as_str(), read(&containerd)?), (DAEMON_CONFIG, original.clone()));
    assert!(machine.asked.is_empty(), "{:?}", machine.asked);

    // An engine that does not come up gets its configuration back.
    machine.docker_fails = 1;
    let failed = machine.try_sluice("install", &["--restart", "--yes"])?.unwrap_err();
    assert!(failed.contains("runs again with its old configuration"), "{failed}");
    assert_eq!((read(&config)?.as_str(), driver(&machine)?), (DAEMON_CONFIG, before.clone()));

    machine.asked.clear();
    machine.sluice("install", &["--restart", "--yes"])?;
    let unit = machine.path("etc/sluice.service").display().to_string();
    let enable = format!("enable {unit}");
    let words = ["daemon-reload", &enable, "start sluice.service", "restart containerd", "restart docker"];
    assert_eq!(machine.asked, words);
    assert_eq!(driver(&machine)?, "sluice");
    assert!(
        read(&config)?.starts_with("{\n\t\"log-level\" : \"info\",\n  \"features\": {\"buildkit\": true, ")
    );
    assert_eq!(actions(&machine.sluice("install", &[])?), ["unchanged"; 4]);

    assert_eq!(machine.docker(&["ps", "--all", "--quiet"])?, "");
    let files = ["/data/one", "/folder/inner/file"];
    assert_eq!(sums(&machine, &app, &files)?, [sum(20), sum(24)]);
    assert!(machine.streamed()?.iter().any(|image| image.contains("/app")), "{:?}", machine.streamed()?);
    let name =
        machine.docker(&["run", "--detach", "--publish", "127.0.0.1::80", &app, "/bin/sleep", "1000"])?;
    assert!(machine.docker(&["exec", &name, "/bin/ls", "/data"])?.contains("three"));
    composed(&machine, &app)?;
    let refused = machine.try_sluice("uninstall", &["--restart"])?.unwrap_err();
    assert!(refused.contains("1 containers") && refused.contains("docker rm"), "{refused}");
    assert_eq!(driver(&machine)?, "sluice");
    machine.docker(&["rm", "--force", &name])?;

    machine.asked.clear();
    machine.sluice("uninstall", &["--restart"])?;
    let words = ["restart containerd", "restart docker", "disable --now sluice.service", "daemon-reload"];
    assert_eq!(machine.asked, words);
    assert_eq!((read(&config)?.as_str(), read(&containerd)?), (DAEMON_CONFIG, original));
    assert_eq!(driver(&machine)?, before);
    assert!(!machine.scratch().state().join("install.json").exists());
    assert_eq!(machine.docker(&["ps", "--all", "--format", "{{.Names}}"])?, "old");
    assert!(machine.docker(&["start", "--attach", "old"])?.contains("four"));
    Ok(())
}

/// Compose, where the release has it.
fn composed(machine: &Machine, image: &str) -> anyhow::Result<()> {
    if machine.docker(&["compose", "version"]).is_err() {
        return Ok(());
    }
    let file = machine.path("compose.yaml");
    let service =
        format!("services:\n  one:\n    image: {image}\n    command: [/bin/sleep, '1000']\n    init: true\n");
    fs::write(&file, service)?;
    let file = file.display().to_string();
    let compose = |words: &[&str]| {
        machine.docker(&[&["compose", "--project-name", "it", "--file", &file], words].concat())
    };
    compose(&["up", "--detach", "--wait"])?;
    assert!(compose(&["exec", "--no-TTY", "one", "/bin/sha256sum", "/data/two"])?.starts_with(&sum(21)));
    compose(&["down", "--timeout", "1"]).map(drop)
}

/// What is built, and with what: both builders, over an image of which nothing was read before.
const DOCKERFILE: &str = r"
RUN chmod 700 /data/one && chown 5:6 /data/two && mv /folder /moved && echo more >> /data/three && rm /data/four \
    && ln /data/two /data/linked
COPY new /data/new
COPY new /moved/new
RUN sha256sum /data/* /moved/inner/file > /sums && stat -c '%n %a %u:%g %s' /data/* /moved /moved/* > /stats
";

#[test]
#[ignore = "a Docker engine: `./just test-docker`"]
fn images_are_built_on_streamed_ones() -> anyhow::Result<()> {
    let machine = Machine::switched()?;
    for (builder, seed) in [("1", 30), ("0", 40)] {
        let (base, _) = machine.push(&format!("base{builder}"), &image(seed)?)?;
        let (source, _) = machine.push(&format!("source{builder}"), &image(seed + 100)?)?;
        for image in [&base, &source] {
            machine.docker(&["pull", "--quiet", image])?;
        }
        let context = machine.scratch().mount_point(&format!("context{builder}"))?;
        fs::write(context.join("new"), "new")?;
        let text = format!("FROM {base}\n{DOCKERFILE}COPY --from={source} /data/one /from\n");
        fs::write(context.join("Dockerfile"), text)?;
        let folder = context.display().to_string();
        let built = machine.registry.reference(&format!("built{builder}:1"));
        let mut build = machine.docker_command(&["build", "--network=none", "--tag", &built, &folder])?;
        let output = build.env("DOCKER_BUILDKIT", builder).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "builder {builder}: {said}\n{}", machine.sluice_log());
        assert!(machine.streamed()?.iter().any(|image| image.contains("/base")), "{:?}", machine.streamed()?);

        let run =
            |words: &[&str]| machine.docker(&[&["run", "--rm", "--network=none", &built], words].concat());
        run(&["/bin/sha256sum", "-c", "/sums"])?;
        assert_eq!(
            sums(&machine, &built, &["/data/one", "/moved/inner/file", "/from"])?,
            [sum(seed), sum(seed + 4), sum(seed + 100)]
        );
        let stats = run(&["/bin/cat", "/stats"])?;
        for line in [
            format!("/data/one 700 0:0 {LEN}"),
            format!("/data/two 644 5:6 {LEN}"),
            format!("/data/linked 644 5:6 {LEN}"),
            format!("/data/three 644 0:0 {}", LEN + 5),
            "/data/new 644 0:0 3".to_owned(),
            "/moved/new 644 0:0 3".to_owned(),
        ] {
            assert!(stats.lines().any(|found| found == line), "builder {builder}, {line}:\n{stats}");
        }
        assert!(!stats.contains("/data/four"), "{stats}");
        // And all of it leaves the machine. BuildKit brings what is missing by itself, the older builder does not.
        if builder == "0" {
            machine.layers(&["--wait", "5m", &built])?;
        }
        machine.docker(&["push", "--quiet", &built])?;
        machine.docker(&["rmi", "--force", &built])?;
        assert_eq!(sums(&machine, &built, &["/from"])?, [sum(seed + 100)]);
    }
    Ok(())
}

/// Digests of the blobs in an archive of `docker save`.
fn archived(archive: &Path) -> anyhow::Result<Vec<String>> {
    let output = std::process::Command::new("tar").arg("-tf").arg(archive).output()?;
    let names = String::from_utf8(output.stdout)?;
    Ok(names
        .lines()
        .filter_map(|name| name.strip_prefix("blobs/sha256/"))
        .map(|hex| format!("sha256:{hex}"))
        .collect())
}

#[test]
#[ignore = "a Docker engine: `./just test-docker`"]
fn what_streamed_is_inspected_saved_pushed_and_removed() -> anyhow::Result<()> {
    let machine = Machine::switched()?;
    let (app, layers) = machine.push("app", &image(50)?)?;
    assert_eq!(sums(&machine, &app, &["/data/one"])?, [sum(50)]);
    machine.layers(&["--wait", "5m", &app])?;
    let blobs = machine.blobs()?;
    assert!(layers.iter().all(|layer| blobs.contains(layer)), "{blobs:?} lack some of {layers:?}");
    assert!(knows(&machine, &app)?);
    let said: Value = serde_json::from_str(&machine.docker(&["image", "inspect", &app])?)?;
    assert_eq!(
        (said[0]["Os"].as_str(), said[0]["Config"]["Env"][1].as_str()),
        (Some("linux"), Some("MARK=mine"))
    );
    assert_ne!(machine.docker(&["images", "--quiet", &app])?, "");

    let archive = machine.path("saved.tar");
    machine.docker(&["save", "--output", &archive.display().to_string(), &app])?;
    let saved = archived(&archive)?;
    assert!(layers.iter().all(|layer| saved.contains(layer)), "{saved:?} lacks some of {layers:?}");

    let copy = machine.registry.reference("elsewhere/copy:1");
    machine.docker(&["tag", &app, &copy])?;
    machine.docker(&["push", "--quiet", &copy])?;
    machine.docker(&["run", "--name", "changed", "--network=none", &app, "/bin/touch", "/mine"])?;
    let committed = machine.registry.reference("committed:1");
    machine.docker(&["commit", "changed", &committed])?;
    machine.docker(&["push", "--quiet", &committed])?;
    machine.docker(&["rm", "changed"])?;

    machine.docker(&["rmi", "--force", &app, &copy, &committed])?;
    machine.settle("the layers go with the image", |machine| {
        let blobs = machine.blobs()?;
        Ok(!layers.iter().any(|layer| blobs.contains(layer)))
    })?;
    for image in [&copy, &committed] {
        assert_eq!(sums(&machine, image, &["/data/two"])?, [sum(51)], "{image}");
    }
    // Of these nothing was read for an import, so it comes from the registry.
    machine.layers(&["--wait", "5m", &copy, &committed])?;
    let blobs = machine.blobs()?;
    assert!(layers.iter().all(|layer| blobs.contains(layer)), "{blobs:?} lack some of {layers:?}");
    // What was saved is an image by itself.
    machine.docker(&["rmi", "--force", &copy, &committed])?;
    machine.docker(&["load", "--input", &archive.display().to_string()])?;
    assert_eq!(sums(&machine, &app, &["/data/three"])?, [sum(52)]);
    Ok(())
}

#[test]
#[ignore = "a Docker engine: `./just test-docker`"]
fn what_a_login_opens_streams() -> anyhow::Result<()> {
    let machine = Machine::switched()?;
    let (app, layers) = machine.push_private("secret", &image(60)?)?;
    let denied = machine.docker_fails(&["pull", &app])?;
    assert!(denied.contains("no basic auth credentials") || denied.contains("uthorization"), "{denied}");
    machine.docker(&["login", "--username", USER, "--password", PASSWORD, &machine.private.host()])?;
    assert_eq!(sums(&machine, &app, &["/data/one"])?, [sum(60)]);
    assert!(machine.streamed()?.iter().any(|image| image.contains("/secret")), "{:?}", machine.streamed()?);
    machine.settle("the layers are there", |machine| {
        let blobs = machine.blobs()?;
        Ok(layers.iter().all(|layer| blobs.contains(layer)))
    })
}

/// containerd waits a second for an answer on a connection, and not longer: a run that comes meanwhile waits or fails, but never finds
/// nobody there, and what runs goes on.
#[test]
#[ignore = "a Docker engine: `./just test-docker`"]
fn a_killed_sluice_is_missed_for_a_moment_only() -> anyhow::Result<()> {
    let mut machine = Machine::switched()?;
    let (app, _) = machine.push("app", &image(70)?)?;
    assert_eq!(sums(&machine, &app, &["/data/one"])?, [sum(70)]);
    let running = machine.docker(&["run", "--detach", "--network=none", &app, "/bin/sleep", "1000"])?;
    for _ in 0..3 {
        machine.kill_sluice()?;
        let words = ["run", "--rm", "--network=none", &app, "/bin/sha256sum", "/data/two"];
        let mut run = machine.docker_command(&words)?;
        let waiting = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        machine.start_sluice()?;
        let output = waiting.wait_with_output()?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || errors.contains("navailable"), "{errors}");
        assert!(!errors.contains("connection refused"), "{errors}");
        machine.settle("a run works", |machine| {
            Ok(sums(machine, &app, &["/data/two"]).is_ok_and(|found| found == [sum(71)]))
        })?;
        assert_ne!(machine.docker(&["exec", &running, "/bin/ls", "/data"])?, "");
    }
    Ok(())
}

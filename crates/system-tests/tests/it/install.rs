//! A node is switched to sluice and back, with a containerd that dropped the layers of what it had pulled.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;
use system_tests::cri::{Cri, Pod};
use system_tests::kubernetes::{Node, Options, busybox};
use system_tests::{Scratch, noise};
use testkit::ImageSpec;
use testkit::containerd::Version;

const LEN: usize = 500_000;
/// How long something that happens beside may take.
const SETTLE_MAX: Duration = Duration::from_secs(60);
const SETTLE_POLL: Duration = Duration::from_millis(100);

/// A node under overlayfs: one image pulled with its layers kept, then another and the pods' own with theirs dropped.
struct Switched {
    node: Node,
    kept: String,
    dropped: String,
}

impl Switched {
    fn prepare() -> anyhow::Result<Switched> {
        let mut node = Node::start(&Options { snapshotter: false, ..Options::default() })?;
        let spec = |name: &str, seed| {
            anyhow::Ok(ImageSpec::new([busybox()?.file(name, &noise(seed, LEN)).finish()]))
        };
        let kept = node.push("kept", &spec("kept", 1)?)?;
        let dropped = node.push("dropped", &spec("dropped", 2)?)?;
        node.cri.pull(&kept)?;
        let config = containerd_config(&node);
        let text = fs::read_to_string(&config)?;
        let discarding =
            "# Layers are not kept.\ndiscard_unpacked_layers = true\nsnapshotter = \"overlayfs\"\n";
        fs::write(&config, text.replace("snapshotter = \"overlayfs\"\n", discarding))?;
        restart_containerd(&mut node)?;
        node.cri.pull(&dropped)?;
        Ok(Switched { node, kept, dropped })
    }

    /// `sluice COMMAND`, on this node alone.
    fn command(&self, command: &str, more: &[&str]) -> anyhow::Result<Command> {
        let scratch = self.node.scratch();
        let settings = scratch.path("etc/sluice.toml");
        let mut line = scratch.command(["--json", "--config"])?;
        line.arg(settings).arg(command).arg("--containerd-config").arg(containerd_config(&self.node));
        if command == "install" {
            line.arg("--socket").arg(scratch.path("snapshotter.sock"));
            line.arg("--unit").arg(scratch.path("etc/sluice.service"));
        }
        line.args(more);
        Ok(line)
    }

    fn sluice(&self, command: &str, more: &[&str]) -> anyhow::Result<Value> {
        let output = self.command(command, more)?.output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "sluice {command} {more:?}: {errors}");
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn refused(&self, command: &str, more: &[&str]) -> anyhow::Result<String> {
        let output = self.command(command, more)?.output()?;
        anyhow::ensure!(!output.status.success(), "sluice {command} {more:?} does what it must not");
        Ok(String::from_utf8(output.stderr)?)
    }

    /// A pod with a container of an image, which is not pulled here.
    fn start(&self, name: &str, image: &str) -> anyhow::Result<(Pod, String)> {
        let pod = self.node.cri.pod(name)?;
        let container = self.node.cri.start(&pod, name, image, &["/bin/sleep", "1000"])?;
        Ok((pod, container))
    }

    /// A pod whose image is pulled if it is not here, tried again as the kubelet does: containerd's CRI hears of what
    /// happened to its images a moment later.
    fn start_anew(&self, name: &str, image: &str) -> anyhow::Result<(Pod, String)> {
        let started = Instant::now();
        self.node.cri.pull(image)?;
        loop {
            match self.start(name, image) {
                Ok(started) => return Ok(started),
                Err(error) if started.elapsed() > SETTLE_MAX => return Err(error),
                Err(_) => sleep(SETTLE_POLL),
            }
        }
    }

    fn end(&self, (pod, container): (Pod, String)) -> anyhow::Result<()> {
        self.node.cri.stop(&container)?;
        self.node.cri.remove_pod(&pod)
    }

    fn streamed(&self) -> anyhow::Result<usize> {
        Ok(self.node.status()?["images"].as_array().map_or(0, Vec::len))
    }

    fn check(&self, container: &str, file: &str, seed: u64) -> anyhow::Result<()> {
        let path = self.node.root_of(container).join(file);
        anyhow::ensure!(fs::read(&path)? == noise(seed, LEN), "{} has wrong bytes", path.display());
        self.node.cri.exec(container, &["/bin/sh", "-c", "echo alive"]).map(|_| ())
    }
}

fn containerd_config(node: &Node) -> PathBuf {
    node.scratch().path("containerd/config.toml")
}

fn restart_containerd(node: &mut Node) -> anyhow::Result<()> {
    node.containerd.kill()?;
    node.containerd.restart()?;
    node.cri = Cri::connect(&node.containerd.socket())?;
    Ok(())
}

/// containerd 2 reads older configurations, but not all that they say.
#[test]
fn containerd_2_with_an_older_configuration_is_switched_too() -> anyhow::Result<()> {
    let options = Options { containerd: Version::V2, snapshotter: false, ..Options::default() };
    let mut node = Node::start(&options)?;
    let config = containerd_config(&node);
    let table = |plugin: &str| format!("[plugins.\"{plugin}\n");
    let text = fs::read_to_string(&config)?.replace("version = 3\n", "version = 2\n");
    let (new, old) =
        (table("io.containerd.cri.v1.images\"]"), table("io.containerd.grpc.v1.cri\".containerd]"));
    anyhow::ensure!(text.contains(&new), "{text}");
    fs::write(&config, text.replace(&new, &old))?;
    restart_containerd(&mut node)?;
    let image = node.push("app", &ImageSpec::new([busybox()?.file("file", &noise(3, LEN)).finish()]))?;
    let mut switched = Switched { node, kept: String::new(), dropped: String::new() };
    switched.sluice("install", &[])?;
    restart_containerd(&mut switched.node)?;
    let container = switched.start_anew("streamed", &image)?.1;
    switched.check(&container, "file", 3)?;
    assert_eq!(switched.streamed()?, 2, "{}", switched.node.status()?);
    Ok(())
}

/// Names of the images that a run of `sluice` forgot.
fn forgotten(report: &Value) -> Vec<&str> {
    let images = report["images"].as_array().into_iter().flatten();
    images
        .flat_map(|image| image["names"].as_array().into_iter().flatten())
        .filter_map(Value::as_str)
        .collect()
}

fn actions(report: &Value) -> Vec<&str> {
    let files = report["files"].as_array().into_iter().flatten();
    files.filter_map(|file| file["action"].as_str()).collect()
}

#[test]
fn a_node_is_switched_to_sluice_and_back_and_its_pods_start() -> anyhow::Result<()> {
    let mut switched = Switched::prepare()?;
    let pause = switched.node.registry.reference("pause:latest");
    let before = switched.start("before", &switched.dropped)?;
    let original = fs::read_to_string(containerd_config(&switched.node))?;

    let report = switched.sluice("install", &["--dry-run"])?;
    assert_eq!(actions(&report), ["created", "created", "changed"]);
    assert_eq!(fs::read_to_string(containerd_config(&switched.node))?, original, "a dry run wrote something");
    switched.sluice("install", &[])?;
    assert_eq!(actions(&switched.sluice("install", &[])?), ["unchanged", "unchanged", "unchanged"]);
    let refused = switched.refused("install", &["--images"])?;
    assert!(refused.contains("does not know the snapshotter sluice: restart it"), "{refused}");

    restart_containerd(&mut switched.node)?;
    // What would happen if nobody looked after the images.
    let error = format!("{:#}", switched.start("lost", &switched.dropped).unwrap_err());
    assert!(error.contains("not found"), "the switch breaks nothing, so nothing is tested: {error}");
    let report = switched.sluice("install", &["--images"])?;
    let names = forgotten(&report);
    assert!(names.contains(&switched.dropped.as_str()) && names.contains(&pause.as_str()), "{report}");
    assert!(!names.contains(&switched.kept.as_str()), "its layers are here: {report}");
    assert_eq!(forgotten(&switched.sluice("install", &["--images"])?), [""; 0], "the second time");

    let streamed = switched.start_anew("streamed", &switched.dropped)?;
    switched.check(&streamed.1, "dropped", 2)?;
    assert_eq!(switched.streamed()?, 2, "{}", switched.node.status()?);
    let unpacked = switched.start("unpacked", &switched.kept)?;
    switched.check(&unpacked.1, "kept", 1)?;
    // The one that ran all the time, on overlayfs.
    switched.check(&before.1, "dropped", 2)?;

    for pod in [before, streamed, unpacked] {
        switched.end(pod)?;
    }
    assert_eq!(actions(&switched.sluice("uninstall", &[])?), ["restored", "removed", "removed"]);
    assert_eq!(fs::read_to_string(containerd_config(&switched.node))?, original);
    assert_eq!(actions(&switched.sluice("uninstall", &[])?), [""; 0]);
    assert!(!switched.node.scratch().state().join("install.json").exists());
    restart_containerd(&mut switched.node)?;
    let error = format!("{:#}", switched.start("lost", &switched.dropped).unwrap_err());
    assert!(error.contains("not found"), "the way back breaks nothing, so nothing is tested: {error}");
    let report = switched.sluice("uninstall", &["--images"])?;
    assert!(forgotten(&report).contains(&switched.dropped.as_str()), "{report}");
    let back = switched.start_anew("back", &switched.dropped)?;
    switched.check(&back.1, "dropped", 2)?;

    // And once more.
    switched.sluice("install", &[])?;
    restart_containerd(&mut switched.node)?;
    switched.sluice("install", &["--images"])?;
    let again = switched.start_anew("again", &switched.dropped)?;
    switched.check(&again.1, "dropped", 2)
}

/// A systemctl that writes down what it is asked, and lets the test restart containerd.
const SYSTEMCTL: &str = r#"#!/bin/sh
echo "$*" >> "$0.log"
if [ "$*" = "restart containerd" ]; then
    : > "$0.asked"
    for _ in $(seq 600); do
        if [ -e "$0.done" ]; then rm "$0.done"; exit 0; fi
        sleep 0.1
    done
    exit 1
fi
"#;

/// Runs `sluice COMMAND --restart` while the test restarts containerd for it.
fn with_restart(switched: &mut Switched, command: &str) -> anyhow::Result<(Value, Vec<String>)> {
    let folder = switched.node.scratch().mount_point("bin")?;
    let systemctl = folder.join("systemctl");
    fs::write(&systemctl, SYSTEMCTL)?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&systemctl, mode)?;
    let [log, asked, done] = ["log", "asked", "done"].map(|end| systemctl.with_added_extension(end));
    fs::write(&log, "")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut line = switched.command(command, &["--restart"])?;
    line.env("PATH", format!("{}:{path}", folder.display()));
    let mut child = line.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let started = Instant::now();
    while !asked.exists() && child.try_wait()?.is_none() {
        anyhow::ensure!(started.elapsed() < SETTLE_MAX, "containerd is not restarted");
        sleep(SETTLE_POLL);
    }
    if asked.exists() {
        fs::remove_file(&asked)?;
        restart_containerd(&mut switched.node)?;
        fs::write(&done, "")?;
    }
    let output = child.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "sluice {command} --restart: {errors}");
    let words = fs::read_to_string(&log)?.lines().map(str::to_owned).collect();
    Ok((serde_json::from_slice(&output.stdout)?, words))
}

#[test]
fn one_command_does_the_whole_switch() -> anyhow::Result<()> {
    let mut switched = Switched::prepare()?;
    let unit = switched.node.scratch().path("etc/sluice.service").display().to_string();
    let (report, words) = with_restart(&mut switched, "install")?;
    let enable = format!("enable {unit}");
    assert_eq!(words, ["daemon-reload", &enable, "restart sluice.service", "restart containerd"]);
    assert!(forgotten(&report).contains(&switched.dropped.as_str()), "{report}");
    let pod = switched.start_anew("streamed", &switched.dropped)?;
    assert_eq!(switched.streamed()?, 2, "{}", switched.node.status()?);

    // containerd could no longer remove what stands on sluice.
    let error = with_restart(&mut switched, "uninstall").map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("stand on sluice") && error.contains("drain"), "{error}");
    assert!(fs::metadata(&unit).is_ok(), "something was done all the same");
    switched.end(pod)?;
    let (report, words) = with_restart(&mut switched, "uninstall")?;
    assert_eq!(words, ["restart containerd", "disable --now sluice.service", "daemon-reload"]);
    assert!(forgotten(&report).contains(&switched.dropped.as_str()), "{report}");
    assert!(fs::metadata(&unit).is_err(), "the unit stays");
    let back = switched.start_anew("back", &switched.dropped)?;
    switched.check(&back.1, "dropped", 2)
}

#[test]
fn a_node_image_is_prepared_below_a_folder() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let root = scratch.mount_point("root")?;
    let folder = root.join("etc/containerd");
    fs::create_dir_all(folder.join("conf.d"))?;
    let main = "# main\nversion = 2\nimports = ['conf.d/*.toml']\n";
    let import = "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'pause' # ours\n";
    fs::write(folder.join("config.toml"), main)?;
    fs::write(folder.join("conf.d/cri.toml"), import)?;
    let line = |command: &str| {
        let root = root.to_string_lossy().into_owned();
        let mut line = system_tests::binaries::command("sluice")?;
        let output = line.args(["--json", command, "--root", &root]).output()?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).context("not JSON")
    };

    assert_eq!(actions(&line("install")?), ["created", "created", "changed"]);
    assert_eq!(fs::read_to_string(folder.join("config.toml"))?, main, "the import has the last word");
    let installed = fs::read_to_string(folder.join("conf.d/cri.toml"))?;
    assert!(installed.starts_with(import) && installed.contains("snapshotter = \"sluice\""), "{installed}");
    let settings = fs::read_to_string(root.join("etc/sluice/sluice.toml"))?;
    assert!(settings.contains("snapshotter = \"/run/sluice/snapshotter.sock\""), "{settings}");
    assert!(fs::read_to_string(root.join("etc/systemd/system/sluice.service"))?.contains("Type=notify"));

    // Somebody goes on editing.
    fs::write(folder.join("conf.d/cri.toml"), installed.replace("'pause'", "'pause:2'"))?;
    assert_eq!(actions(&line("install")?), ["unchanged", "unchanged", "unchanged"]);
    assert_eq!(actions(&line("uninstall")?), ["changed", "removed", "removed"]);
    assert_eq!(fs::read_to_string(folder.join("conf.d/cri.toml"))?, import.replace("'pause'", "'pause:2'"));
    assert!(!root.join("etc/sluice").exists(), "a folder that was made stays");
    Ok(())
}

/// A containerd that says so of its version, and what `sluice install` says of it.
fn install_beside(version: &str) -> anyhow::Result<(Scratch, std::process::Output)> {
    let scratch = Scratch::new()?;
    let folder = scratch.mount_point("bin")?;
    let program = folder.join("containerd");
    fs::write(
        &program,
        format!("#!/bin/sh\necho containerd github.com/containerd/containerd {version} 0123abc\n"),
    )?;
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut line = scratch.command(["--config"])?;
    line.arg(scratch.path("etc/sluice.toml")).arg("install");
    line.arg("--containerd-config").arg(scratch.path("etc/config.toml"));
    line.arg("--unit").arg(scratch.path("etc/sluice.service"));
    let output = line.env("PATH", format!("{}:{path}", folder.display())).output()?;
    Ok((scratch, output))
}

#[test]
fn a_containerd_that_is_too_old_is_refused_and_one_of_tomorrow_told() -> anyhow::Result<()> {
    let (scratch, old) = install_beside("1.5.18")?;
    let errors = String::from_utf8_lossy(&old.stderr);
    assert!(!old.status.success() && errors.contains("containerd 1.5 is too old"), "{errors}");
    assert!(!scratch.path("etc").exists(), "something was written all the same");
    let (scratch, new) = install_beside("v9.9.0")?;
    let told = String::from_utf8_lossy(&new.stdout);
    assert!(new.status.success() && told.contains("newer than what sluice was tried with"), "{new:?}");
    assert!(fs::read_to_string(scratch.path("etc/config.toml"))?.contains("version = 3"));
    Ok(())
}

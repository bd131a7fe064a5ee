//! A policy's whole life by the commands that its author and its operator type: made known by a registry, signed, in use
//! in a running mesh, replaced, rolled back; and the same in one process, with the registry away.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{bail, ensure};
use serde_json::Value;
use system_tests::services::{Backend, Service};
use system_tests::{Scratch, binaries, noise};
use testkit::{ImageSpec, LayoutWriter, Registry, Tarball, port};

use crate::projects::{begun, build};

const NOT_ELIGIBLE: i32 = 3;
/// Looks at the policy set, a second each, until it must be in use: a whole interpreter is compiled in between, which takes an
/// unoptimised build of ours a minute, and longer beside other tests.
const TRIES: usize = 400;

/// An author with a registry, a key and two plugins there; the first refuses images of the tag `latest`.
struct Author {
    scratch: Scratch,
    registry: Registry,
    key: String,
    /// Two sources, as `push` printed them.
    plugins: [String; 2],
    image: String,
}

impl Author {
    fn new() -> anyhow::Result<Author> {
        let (scratch, registry) = (Scratch::new()?, Registry::start()?);
        let key = scratch.path("mine").display().to_string();
        scratch.succeed(["policy", "keygen", &key])?;
        let private = format!("{key}.pem");
        let plugins = [
            push(&scratch, &registry, &binaries::plugin("tests/no-latest.wasm")?, "1", &["--key", &private])?,
            push(&scratch, &registry, &binaries::plugin("schema-version.wasm")?, "2", &[])?,
        ];
        let mut layout = LayoutWriter::create(&scratch.path("layout"))?;
        layout.image("app", &ImageSpec::new([Tarball::new().file("file", &noise(1, 10_000)).finish()]))?;
        let image = registry.push(&layout.reference("app"), "app:latest")?;
        Ok(Author { scratch, registry, key, plugins, image })
    }

    fn sign(&self, source: &str) -> anyhow::Result<String> {
        let private = format!("{}.pem", self.key);
        self.scratch.succeed(["policy", "sign", "--plain-http", source, "--key", &private])
    }

    /// What the service is told of registry and key.
    fn settings(&self) -> [String; 3] {
        [
            format!("policy.registry.plain_http=[\"{}\"]", self.registry.host()),
            format!("policy.trust.public_keys=[\"{}.pub\"]", self.key),
            "policy.registry.docker_config=/nonexistent".to_owned(),
        ]
    }
}

/// What `push` prints: the source.
fn push(
    scratch: &Scratch,
    registry: &Registry,
    plugin: &Path,
    version: &str,
    arguments: &[&str],
) -> anyhow::Result<String> {
    let (plugin, name) =
        (plugin.display().to_string(), format!("oci://{}/policies/mine:{version}", registry.host()));
    let all = ["policy", "push", "--plain-http", plugin.as_str(), name.as_str()];
    Ok(scratch.succeed([&all[..], arguments].concat())?.trim().to_owned())
}

/// A mesh that runs while its policy set changes.
struct Running<'a> {
    author: &'a Author,
    file: PathBuf,
    backend: Backend,
    _policy: Service,
}

impl Running<'_> {
    /// With the policy of `source`.
    fn start<'a>(author: &'a Author, source: &str) -> anyhow::Result<Running<'a>> {
        let scratch = &author.scratch;
        let file = scratch.path("policies.toml");
        write_set(&file, source)?;
        let patience = ["fetcher.judging.unanswered=refuse", "fetcher.judging.wait=30s"].map(str::to_owned);
        let backend = Backend::start(scratch, port::free()?, &patience, &[])?;
        let mut settings = author.settings().to_vec();
        settings.push(format!("policy.file={}", file.display()));
        settings.push(format!("policy.kept={}", scratch.path("kept").display()));
        let policy = backend.service(scratch, "policy", &settings)?;
        Ok(Running { author, file, backend, _policy: policy })
    }

    fn sluice(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = binaries::command("sluice")?;
        command.args(["--nats", &self.backend.nats.url(), "--state"]).arg(self.author.scratch.path("cli"));
        Ok(command.args(arguments).output()?)
    }

    fn import(&self) -> anyhow::Result<Output> {
        self.sluice(&["import", "--plain-http", &self.author.image])
    }

    /// The image is refused with this reason code.
    fn refuses(&self, reason: &str) -> anyhow::Result<()> {
        let refused = self.import()?;
        assert_eq!(refused.status.code(), Some(NOT_ELIGIBLE), "{}", message(&refused));
        assert!(message(&refused).contains(&format!("(policy mine: {reason})")), "{}", message(&refused));
        Ok(())
    }

    fn until(&self, wanted: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
        let list = || -> anyhow::Result<Value> {
            Ok(serde_json::from_slice(&self.sluice(&["policy", "ls", "--json"])?.stdout)?)
        };
        for _ in 0..TRIES {
            if wanted(&list()?) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_secs(1));
        }
        bail!("the set was not loaded: {}", list()?)
    }

    /// Changes the policy, and waits until it is in use.
    fn change(&self, source: &str) -> anyhow::Result<()> {
        write_set(&self.file, source)?;
        self.until(|listed| listed["policies"][0]["source"] == *source)
    }
}

fn write_set(file: &Path, source: &str) -> anyhow::Result<()> {
    Ok(fs::write(file, format!("[[eligibility]]\nname = \"mine\"\nsource = \"{source}\"\n"))?)
}

fn message(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_signed_policy_comes_into_a_running_mesh_is_replaced_and_rolled_back() -> anyhow::Result<()> {
    let author = Author::new()?;
    let [first, second] = &author.plugins;
    let mesh = Running::start(&author, first)?;
    mesh.refuses("tag-refused")?;

    write_set(&mesh.file, second)?;
    mesh.until(|listed| listed["last_error"].to_string().contains("it is not signed"))?;
    mesh.refuses("tag-refused")?; // the old set stays
    author.sign(second)?;
    mesh.until(|listed| listed["policies"][0]["source"] == *second)?;
    let accepted = mesh.import()?;
    ensure!(accepted.status.success(), "{}", message(&accepted));

    mesh.change(first)?;
    mesh.refuses("tag-refused")
}

/// The same with an author's first project in each language, and with another version, which gives another reason.
#[test]
fn a_policy_in_each_language_is_replaced_by_another_version_and_rolled_back() -> anyhow::Result<()> {
    let author = Author::new()?;
    let key = format!("{}.pem", author.key);
    let mesh = Running::start(&author, &author.plugins[0])?;
    mesh.refuses("tag-refused")?;
    let begun = |language| begun(&author.scratch, language, "eligibility");
    let pushed = |folder: &Path, version: &str| -> anyhow::Result<String> {
        push(&author.scratch, &author.registry, &build(folder)?, version, &["--key", &key])
    };
    let change_reason = |source: &Path| -> anyhow::Result<()> {
        Ok(fs::write(source, fs::read_to_string(source)?.replace("tag-refused", "tag-unwanted"))?)
    };
    let replaced_and_rolled_back = |first: &str, second: &str| -> anyhow::Result<()> {
        for (source, reason) in [(first, "tag-refused"), (second, "tag-unwanted"), (first, "tag-refused")] {
            mesh.change(source)?;
            mesh.refuses(reason)?;
        }
        Ok(())
    };
    for (language, source) in
        [("rust", "src/lib.rs"), ("c", "policy.c"), ("js", "policy.js"), ("python", "policy.py")]
    {
        let folder = begun(language)?;
        let first = pushed(&folder, &format!("{language}-1"))?;
        change_reason(&folder.join(source))?;
        replaced_and_rolled_back(&first, &pushed(&folder, &format!("{language}-2"))?)?;
    }
    Ok(())
}

#[test]
fn in_one_process_a_pulled_policy_decides_also_without_its_registry() -> anyhow::Result<()> {
    let mut author = Author::new()?;
    let [first, second] = author.plugins.clone();
    let set = format!("policy.set.eligibility=[{{name=\"mine\", source=\"{first}\"}}]");
    let settings = author.settings();
    let mut flags: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    flags.extend(["--set", &set]);
    let image = author.image.clone();
    let refused = author.scratch.run([&flags[..], &["import", "--plain-http", &image]].concat())?;
    assert_eq!(refused.status.code(), Some(NOT_ELIGIBLE), "{}", message(&refused));
    assert!(message(&refused).contains("(policy mine: tag-refused)"), "{}", message(&refused));

    let checked =
        author.scratch.json([&flags[..4], &["policy", "check", "--plain-http", &first]].concat())?;
    assert_eq!((&checked["source"], &checked["world"]), (&first.clone().into(), &"eligibility".into()));
    let pulled = author.scratch.path("pulled.wasm").display().to_string();
    author.scratch.succeed(["policy", "pull", "--plain-http", &second, "-o", &pulled])?;
    ensure!(fs::read(&pulled)? == fs::read(binaries::plugin("schema-version.wasm")?)?, "it is another one");
    let tag = second.split('@').next().unwrap_or_default().to_owned();
    let printed = author.scratch.succeed(["policy", "pull", "--plain-http", &tag])?;
    assert_eq!(printed.trim(), second, "what the tag means");
    let unsigned =
        author.scratch.refuse([&flags[..4], &["policy", "check", "--plain-http", &tag]].concat())?;
    assert!(unsigned.contains("it is not signed"), "{unsigned}");

    author.registry.kill()?;
    let listed = author.scratch.json([&flags[..], &["policy", "ls"]].concat())?;
    assert_eq!(listed["policies"][0]["source"], first, "{listed}");
    let wrong = author.scratch.refuse([
        "--set",
        &format!("policy.set.eligibility=[{{name=\"mine\", source=\"{tag}\"}}]"),
        "policy",
        "ls",
    ])?;
    assert!(wrong.contains("is not pinned") && wrong.contains("sluice policy pull"), "{wrong}");
    Ok(())
}

#[test]
fn keys_are_secret_and_never_overwritten() -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let scratch = Scratch::new()?;
    let key = scratch.path("mine").display().to_string();
    scratch.succeed(["policy", "keygen", &key])?;
    let private = scratch.path("mine.pem");
    assert_eq!(fs::metadata(&private)?.permissions().mode() & 0o777, 0o600);
    let before = fs::read(&private)?;
    let refused = scratch.refuse(["policy", "keygen", &key])?;
    assert!(refused.contains("is there already"), "{refused}");
    fs::remove_file(scratch.path("mine.pub"))?;
    let refused = scratch.refuse(["policy", "keygen", &key])?;
    assert!(refused.contains("a key is never overwritten"), "{refused}");
    assert_eq!(fs::read(&private)?, before);

    // A file, where those must be signed too.
    let plugin = scratch.path("mine.wasm");
    fs::copy(binaries::plugin("tests/no-latest.wasm")?, &plugin)?;
    let plugin = plugin.display().to_string();
    let private = private.display().to_string();
    assert_eq!(
        scratch.succeed(["policy", "sign", &plugin, "--key", &private])?.trim(),
        format!("{plugin}.sig")
    );
    ensure!(!scratch.path("mine.pub").exists(), "signing made a key");
    Ok(())
}

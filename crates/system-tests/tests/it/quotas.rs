//! What a quota that is used up does to who reads: he waits, and it is told why.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use system_tests::kubernetes::busybox;
use system_tests::mesh::Mesh;
use system_tests::services::Service;
use system_tests::{metrics, noise};
use testkit::{ImageSpec, LayoutWriter, port};

const FILES: u64 = 40;
const FILE_LEN: usize = 400_000;
/// Less than the files take, more than a start does.
const LIMIT: u64 = 30;
/// How often a condition is looked at; some minutes in all, which nobody waits for when all is well.
const LOOKS: u32 = 1_500;

/// A mesh with a quota service, and an image of many chunks.
struct Limited {
    mesh: Mesh,
    _quota: Service,
    reference: String,
    admin: u16,
}

impl Limited {
    fn new() -> anyhow::Result<Limited> {
        let admin = port::free()?;
        let settings = [format!("lifecycle.admin=127.0.0.1:{admin}"), "frontend.background=false".to_owned()];
        let mesh = Mesh::start_with(&[], &settings.each_ref().map(String::as_str))?;
        let quota = [format!("quota.limits.content_requests.day={LIMIT}")];
        let quota = mesh.backend.service(mesh.scratch(), "quota", &quota)?;
        let mut layout = LayoutWriter::create(&mesh.scratch().path("layout"))?;
        let tar = busybox()?.directory("data");
        let tar =
            (0..FILES).fold(tar, |tar, file| tar.file(&format!("data/{file:02}"), &noise(file, FILE_LEN)));
        layout.image("app", &ImageSpec::new([tar.finish()]))?;
        let limited = Limited { reference: layout.reference("app"), _quota: quota, mesh, admin };
        limited.until("the quota service answers", || Ok(limited.shown().is_ok()))?;
        Ok(limited)
    }

    fn json(&self, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
        let printed = self.mesh.succeed(&[&["--json"], arguments].concat())?;
        printed.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
    }

    /// The limit of a day, as it is shown.
    fn shown(&self) -> anyhow::Result<Value> {
        let printed = self.mesh.succeed(&["--json", "quota", "show"])?;
        let limits: Vec<Value> = serde_json::from_str(&printed)?;
        let is_it = |limit: &Value| limit["metric"] == "content_requests" && limit["window"] == "day";
        limits.into_iter().find(is_it).context("no limit of content requests")
    }

    fn until(&self, what: &str, holds: impl Fn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
        for _ in 0..LOOKS {
            if holds()? {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(200));
        }
        anyhow::bail!("not so far: {what}\n{}", self.mesh.frontend.server.log())
    }
}

#[test]
fn a_container_that_reads_through_a_used_up_quota_goes_on_when_there_is_more() -> anyhow::Result<()> {
    let limited = Limited::new()?;
    let read = ["run", &limited.reference, "--", "/bin/sh", "-c", "cat /data/* | sha256sum"];
    let printed = thread::scope(|scope| {
        let container = scope.spawn(|| limited.mesh.succeed(&read));
        let events = || limited.json(&["events", "--kind", "quota"]);
        limited.until("the quota is used up, and said to be", || {
            ensure!(!container.is_finished(), "it ended: {:?}", events());
            Ok(!events()?.is_empty())
        })?;
        let told = events()?.remove(0);
        assert_eq!((&told["kind"], &told["reason"]), (&"quota".into(), &"content-quota".into()), "{told}");
        assert_eq!(told["details"]["metric"], "content_requests", "{told}");
        assert_eq!(told["details"]["limit"], "content_requests_per_project_day", "{told}");
        limited.until("a read waits", || {
            Ok(metrics::sum(limited.admin, "sluice_frontend_reads_waited_for_quota_total")? > 0.0)
        })?;
        assert!(metrics::sum(limited.admin, "sluice_frontend_quota_refused_total")? > 0.0);
        let log = limited.mesh.frontend.server.log();
        let line = log.lines().find(|line| line.contains("a read waits for a quota that is used up"));
        let line = line.with_context(|| format!("no line in {log}"))?;
        for field in ["module=", "image=", "path=", "offset=", "size=", "metric=", "limit=", "error="] {
            assert!(line.contains(field), "{field}: {line}");
        }
        let shown = limited.shown()?;
        assert_eq!((&shown["limit"], &shown["used"]), (&LIMIT.into(), &LIMIT.into()), "{shown}");
        assert!(!container.is_finished(), "it waits, and gets no error");
        limited.mesh.succeed(&["quota", "set", "content_requests", "day", "1000000"])?;
        let shown = limited.shown()?;
        assert_eq!((&shown["limit"], &shown["source"]), (&1_000_000.into(), &"project-live".into()));
        container.join().map_err(|_| anyhow::anyhow!("the container's thread panicked"))?
    })?;
    let all = (0..FILES).fold(Sha256::new(), |hash, file| hash.chain_update(noise(file, FILE_LEN)));
    assert!(printed.starts_with(&hex::encode(all.finalize())), "{printed}");
    Ok(())
}

#[test]
fn an_image_too_many_is_not_imported_and_the_reason_is_told() -> anyhow::Result<()> {
    let limited = Limited::new()?;
    limited.mesh.succeed(&["quota", "set", "imports", "day", "0"])?;
    let refused = limited.mesh.succeed(&["import", &limited.reference]).unwrap_err().to_string();
    assert!(refused.contains("imports_per_project_day") && refused.contains("used up"), "{refused}");
    limited.mesh.succeed(&["quota", "set", "imports", "day", "forget"])?;
    limited.until("it is imported", || Ok(limited.mesh.succeed(&["import", &limited.reference]).is_ok()))
}

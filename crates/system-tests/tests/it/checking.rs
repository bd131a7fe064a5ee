//! `sluice check` of a machine alone, and the switch of a project without a mesh.

use system_tests::{Numbered, Scratch};
use testkit::{LayoutWriter, Registry, port};

#[test]
fn registries_and_mirrors_of_the_settings_are_asked() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let (registry, nowhere) = (Registry::start_private()?, format!("127.0.0.1:{}", port::free()?));
    let plain = |host: &str| format!("fetcher.source.plain_http=[\"{host}\"]");
    let good = scratch.succeed(["--set", &plain(&registry.host()), "check"])?;
    assert!(good.contains(&format!("√ the registry {} answers", registry.host())), "{good}");

    let mirrors = format!("fetcher.source.mirrors={{ \"{}\" = [\"http://{nowhere}\"] }}", registry.host());
    let warned = scratch.succeed(["--set", &plain(&registry.host()), "--set", &mirrors, "check"])?;
    assert!(
        warned.contains(&format!("‼ the mirror http://{nowhere}/ of {} answers", registry.host())),
        "{warned}"
    );

    let failed = scratch.run(["--set", &plain(&nowhere), "check"])?;
    let said = String::from_utf8_lossy(&failed.stdout);
    assert!(
        failed.status.code() == Some(1) && said.contains(&format!("× the registry {nowhere} answers")),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_project_is_switched_off_and_on_without_a_mesh() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let numbered = Numbered { files: 2, len: 20_000, seed: 17 };
    let mut layout = LayoutWriter::create(&scratch.path("image"))?;
    layout.image("1", &numbered.image()?)?;
    let (image, root) = (layout.reference("1"), scratch.mount_point("root")?);
    let mount = |project: &str| {
        ["--project", project, "mount", &image, &root.display().to_string()].map(str::to_owned)
    };
    // The node goes on while it is switched.
    let other = scratch.mount_point("other")?.display().to_string();
    scratch.succeed(["mount", &image, &other])?;
    assert!(scratch.succeed(["project"])?.contains("(every other)"));
    scratch.succeed(["project", "team", "--streaming", "off"])?;
    let refused = scratch.refuse(mount("team"))?;
    assert!(refused.contains("switched off for the project team"), "{refused}");
    let shown = scratch.json(["project", "team"])?;
    assert_eq!((&shown[0]["streaming"], &shown[0]["source"]), (&false.into(), &"live".into()));
    scratch.succeed(["project", "team", "--streaming", "forget"])?;
    scratch.succeed(mount("team"))?;
    numbered.read(&root, 0..2)?;
    for root in [root.display().to_string(), other] {
        scratch.succeed(["umount", &root])?;
    }
    Ok(())
}

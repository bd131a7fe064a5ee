//! The files of one node: plans what each is to become, and carries it out.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use super::containerd::{self, Configuration, Release, Source};
use super::docker;
use super::files::Root;
use super::keys::{Format, Wanted};
use super::plan::{self, Action, Entry, Step};
use super::record::{DockerPlaces, Record};
use super::report::Report;
use super::unit::{self, Service};

/// Files of one configuration; more are a mistake.
const IMPORTS_MAX: usize = 1_000;
/// Above the settings of a node that had none.
const FRESH_SETTINGS: &str = "# Made by `sluice install`. All settings: `sluice config show`.\n";

/// The snapshotter that a Docker engine uses by itself, where it keeps images in containerd.
pub const DOCKERS_OWN: &str = "overlayfs";

#[derive(Debug)]
pub struct Node {
    pub root: Root,
    pub record: Record,
    /// The file that containerd is started with.
    pub containerd_config: PathBuf,
    pub dry_run: bool,
}

/// What a node is to be.
#[derive(Debug)]
pub struct Wish {
    /// The file with our settings.
    pub settings: PathBuf,
    /// Where containerd finds our snapshotter.
    pub socket: String,
    /// The state folder.
    pub state: String,
    pub unit: PathBuf,
    pub service: Service,
    /// For a Docker engine instead of Kubernetes.
    pub docker: Option<DockerWish>,
}

/// What a Docker engine is to be.
#[derive(Debug)]
pub struct DockerWish {
    pub places: DockerPlaces,
    /// What it says of itself; none: it could not be asked, as it is of another root.
    pub engine: Option<docker::Engine>,
    /// containerd's socket, and whether layers of images that stream go into its store.
    pub containerd: String,
    pub layers: bool,
    /// The docker configuration that holds the logins.
    pub login: Option<String>,
}

/// One file's way, decided but not gone.
#[derive(Debug)]
pub struct Planned {
    path: PathBuf,
    now: Option<String>,
    step: Step,
}

impl Planned {
    pub fn changes(&self) -> bool {
        self.step.write.is_some()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What our own settings must say.
fn settings(wish: &Wish) -> Vec<Wanted> {
    let mut wanted = vec![Wanted::new(&["frontend", "snapshotter"], wish.socket.as_str())];
    if let Some(docker) = &wish.docker {
        if let Some(login) = &docker.login {
            wanted.push(Wanted::new(&["frontend", "credentials", "docker_config"], login.as_str()));
        }
        wanted.push(Wanted::new(&["docker", "containerd"], docker.containerd.as_str()));
        wanted.push(Wanted::new(&["docker", "layers"], docker.layers));
    }
    wanted
}

impl Node {
    /// Everything that an installation writes, files of others last. Nothing is written yet, so that whatever
    /// cannot be done is known before anything was.
    pub fn plan_install(&mut self, wish: &Wish) -> anyhow::Result<Vec<Planned>> {
        let untried = self.release().map(Release::check).transpose()?.flatten();
        let ours = settings(wish);
        let settings =
            self.plan(&wish.settings, |now, entry| plan::merge(now, FRESH_SETTINGS, &ours, entry))?;
        let text = unit::text(&wish.service);
        let unit = self.plan(&wish.unit, |now, entry| Ok(plan::own(now, &text, entry)))?;
        let mut containerd = self.plan_containerd(wish)?;
        containerd.step.notes.extend(untried);
        let mut planned = vec![settings, unit, containerd];
        if let Some(docker) = &wish.docker {
            planned.push(self.plan_docker(docker)?);
        }
        Ok(planned)
    }

    /// How many of what [`Node::plan_install`] plans are files of others, which those must read anew.
    pub fn files_of_others(wish: &Wish) -> usize {
        1 + usize::from(wish.docker.is_some())
    }

    fn plan_docker(&self, wish: &DockerWish) -> anyhow::Result<Planned> {
        let untried = wish.engine.as_ref().map(docker::Engine::check).transpose()?.flatten();
        let mut planned = self.plan(&wish.places.config, |now, entry| {
            // What is ours already is nobody's choice.
            let wanted = docker::wanted(wish.engine.as_ref(), now)?;
            plan::merge_as(Format::Json, now, "", &wanted, entry)
        })?;
        planned.step.notes.extend(untried);
        Ok(planned)
    }

    fn plan_containerd(&self, wish: &Wish) -> anyhow::Result<Planned> {
        let fresh = self.fresh_configuration();
        let configuration = self.configuration()?;
        let main = Source::read(self.containerd_config.clone(), &fresh, None)?;
        let decisive = configuration.decisive().unwrap_or(&main);
        let wanted = match wish.docker {
            None => containerd::wanted(decisive, &wish.socket, &wish.state),
            Some(_) => containerd::wanted_by_all(&wish.socket, &wish.state),
        };
        let mut planned = self.plan(&decisive.path, |now, entry| plan::merge(now, &fresh, &wanted, entry))?;
        if decisive.path != self.containerd_config {
            let main = self.containerd_config.display();
            planned.step.notes.push(format!("imported by {main}, it has the last word on images"));
        }
        if wish.docker.is_none()
            && let Some(source) = configuration.without_kubernetes()
        {
            let path = source.path.display();
            planned
                .step
                .notes
                .push(format!("{path} disables containerd's CRI plugin: Kubernetes cannot use it"));
        }
        Ok(planned)
    }

    /// What undoes everything that was done here, containerd's own files first.
    pub fn plan_uninstall(&self) -> anyhow::Result<Vec<Planned>> {
        let mut planned = Vec::new();
        for path in self.record.paths() {
            let entry = self.record.get(path).context("an entry that was just there")?;
            planned.push(self.plan(path, |now, _| plan::undo(now, entry))?);
        }
        Ok(planned)
    }

    /// What undoes what was done to one file; none: nothing was.
    pub fn plan_undo(&self, path: &Path) -> anyhow::Result<Option<Planned>> {
        let Some(entry) = self.record.get(path) else { return Ok(None) };
        self.plan(path, |now, _| plan::undo(now, entry)).map(Some)
    }

    fn plan(
        &self,
        path: &Path,
        decide: impl FnOnce(Option<&str>, Option<&Entry>) -> anyhow::Result<Step>,
    ) -> anyhow::Result<Planned> {
        let now = self.root.read(path)?;
        let step = decide(now.as_deref(), self.record.get(path));
        let step = step.with_context(|| format!("change {}", self.root.path(path).display()))?;
        Ok(Planned { path: path.to_owned(), now, step })
    }

    /// Goes the way that was planned.
    pub fn carry_out(&mut self, planned: Planned, report: &mut Report) -> anyhow::Result<()> {
        let Planned { path, now, step } = planned;
        let before = now.as_deref().unwrap_or_default();
        let after = step.write.as_ref().map_or(before, |after| after.as_deref().unwrap_or_default());
        report.file(&self.root.path(&path), step.action, (before, after), step.notes)?;
        if self.dry_run {
            return Ok(());
        }
        match (step.write, step.entry) {
            (Some(text), Some(mut entry)) => {
                entry.folder |= !self.root.path(&path).parent().is_some_and(Path::exists);
                self.record.set_containerd_config(&self.containerd_config);
                self.record.set(&path, Some(entry))?;
                self.root.write(&path, text.as_deref())
            }
            (Some(text), None) => {
                self.root.write(&path, text.as_deref())?;
                if step.action == Action::Removed {
                    self.tidy(&path);
                }
                self.record.set(&path, None)
            }
            (None, None) if self.record.get(&path).is_some() => self.record.set(&path, None),
            (None, _) => Ok(()),
        }
    }

    /// Removes what a removed file leaves behind: a folder that was made for it, and systemd's link to a unit.
    fn tidy(&self, path: &Path) {
        let on_disk = self.root.path(path);
        let (Some(folder), Some(name)) = (on_disk.parent(), on_disk.file_name()) else { return };
        let link = folder.join("multi-user.target.wants").join(name);
        if std::fs::symlink_metadata(&link).is_ok_and(|metadata| metadata.is_symlink()) {
            // Dangling, it would only be complained about at the next start.
            let _ = std::fs::remove_file(&link);
        }
        if self.record.get(path).is_some_and(|entry| entry.folder) {
            // Refused where somebody else has files in it, as it should be.
            let _ = std::fs::remove_dir(folder);
        }
    }

    /// The snapshotter that images of this namespace start under now.
    pub fn snapshotter_of(&self, namespace: &str) -> anyhow::Result<String> {
        Ok(match namespace {
            docker::NAMESPACE if self.record.docker().is_some() => containerd::SNAPSHOTTER.to_owned(),
            docker::NAMESPACE => DOCKERS_OWN.to_owned(),
            _ => self.configuration()?.snapshotter(),
        })
    }

    /// containerd's configuration as it is now, imported files included.
    pub fn configuration(&self) -> anyhow::Result<Configuration> {
        let mut sources: Vec<Source> = Vec::new();
        let mut pending = VecDeque::from([self.containerd_config.clone()]);
        while let Some(path) = pending.pop_front() {
            if sources.iter().any(|source| source.path == path) {
                continue;
            }
            if sources.len() == IMPORTS_MAX {
                bail!("{} imports more than {IMPORTS_MAX} files", self.containerd_config.display());
            }
            let Some(text) = self.root.read(&path)? else {
                match sources.first() {
                    None => break,
                    Some(main) => {
                        bail!("{} imports {}, which is not there", main.path.display(), path.display())
                    }
                }
            };
            let source = Source::read(path, &text, sources.first())?;
            for pattern in source.imports() {
                pending.extend(self.imported(&source, pattern)?);
            }
            sources.push(source);
        }
        Ok(Configuration(sources))
    }

    fn imported(&self, by: &Source, pattern: &str) -> anyhow::Result<Vec<PathBuf>> {
        let path = by.path.parent().unwrap_or(Path::new("/")).join(pattern);
        match pattern.contains('*') {
            true => self.root.matching(&path.to_string_lossy()),
            false => Ok(vec![path]),
        }
    }

    /// The text of a configuration where there is none.
    fn fresh_configuration(&self) -> String {
        let exists = self.root.path(&self.containerd_config).exists();
        containerd::new_text(if exists { None } else { self.release() })
    }

    /// The containerd of this machine; of another root's nothing is run.
    fn release(&self) -> Option<Release> {
        let asked = || std::process::Command::new("containerd").arg("--version").output().ok();
        let output = self.root.is_machine().then(asked).flatten()?;
        Release::of(&String::from_utf8_lossy(&output.stdout))
    }
}

//! Mounting an image: resolve, bring its tree and map, mount.

use std::time::{Duration, Instant, SystemTime};

use proto::refusal;
use proto::{ImportTicket, MountRequest, Mounted, Phase, ResolveRequest, Signed};
use tonic::Status;

use super::resolve::{Answered, Patience, away};
use super::turns::Turn;
use super::{Images, disk_status};
use crate::mount::Target;

/// How long the parts of a mount took, in order.
#[derive(Debug)]
struct Phases {
    asked: Instant,
    began: Instant,
    phases: Vec<Phase>,
}

impl Images {
    /// Mounts an image. `importing` hears how its import goes, if it must be imported first.
    ///
    /// May be dropped at any time until the kernel is asked to mount; what was fetched stays.
    pub(crate) async fn mount(
        &self,
        request: MountRequest,
        importing: impl FnMut(ImportTicket),
    ) -> Result<Mounted, Status> {
        let _busy = self.node.busy.clone();
        if self.node.shutdown.is_cancelled() {
            return Err(Status::unavailable("the node is ending: try again"));
        }
        let mut phases = Phases::begin();
        let mut image =
            request.image.ok_or_else(|| Status::invalid_argument("the request names no image"))?;
        self.sign(&mut image);
        let (point, upper, work) = (request.target, request.upper, request.work);
        // Before anything is fetched, so that a mistake is told at once; and again at the end.
        let target = check_target(self, &point, &upper, &work).await?;
        drop(target);
        let answered = self.resolve(&image, self.node.config.import_timeout, importing).await?;
        phases.end("resolve");

        let manifest = answered.record.manifest_digest.clone();
        let (config, imported) = (answered.record.config.clone(), answered.imported);
        let turn = self.bring(image.clone(), answered, phases.asked).await?;
        phases.end("index");

        self.mount_root(turn, &manifest, point, upper, work).await?;
        phases.end("mount");
        self.report_start(&manifest);
        tracing::info!(image = manifest, reference = image.reference, phases = ?phases.spans(), "mounted");
        Ok(Mounted { manifest_digest: manifest, config, imported, phases: phases.phases })
    }

    /// What the mesh says about the image; while it is away, what this node remembers. `queue`: how long its import may
    /// be queued.
    pub(super) async fn resolve(
        &self,
        request: &ResolveRequest,
        queue: Duration,
        mut importing: impl FnMut(ImportTicket),
    ) -> Result<Answered, Status> {
        let importing = |ticket: ImportTicket| {
            self.node.events.importing(&request.reference, &ticket);
            importing(ticket);
        };
        let config = &self.node.config;
        // What is asked next needs the answer: both round trips at the same time.
        let mesh = self.node.mesh.clone();
        self.node.tasks.spawn(async move { mesh.locate().await });
        let remembered = self.remembered(request).await?;
        if remembered.is_none() {
            self.check_space_unknown(request).await?;
        }
        let answer = if remembered.is_some() { config.known_resolve_timeout } else { config.resolve_timeout };
        let patience = Patience { answer, queue, import: config.import_timeout };
        let answer = self.node.resolver.resolve(request, patience, importing).await;
        match (answer, remembered) {
            (Err(status), Some(remembered)) if away(&status) => {
                let image = &remembered.record.manifest_digest;
                tracing::warn!(image, error = %status, "the mesh is away: mounting what this name meant last");
                self.node.events.mesh_away(&request.reference, image, &status);
                Ok(remembered)
            }
            (answer, _) => answer,
        }
    }

    /// The image that this name meant last, when its record is here and still believed.
    async fn remembered(&self, request: &ResolveRequest) -> Result<Option<Answered>, Status> {
        let request = request.clone();
        let project = refusal::project(&request.project)?;
        let kept = self.blocking(move |node| {
            let read = || {
                let Some(manifest) = node.names.recall(&request)? else { return Ok(None) };
                Ok(node.objects.record(manifest.hex())?.zip(Some(node.kept_grant(manifest.hex()))))
            };
            let kept = read().map_err(|error| disk_status("read the kept record", &error))?;
            Ok(kept.and_then(|(signed, grant)| {
                let record = node.resolver.believe_kept(&signed);
                let record =
                    record.inspect_err(|error| tracing::warn!(%error, "a kept record is of no use")).ok()?;
                (record.project == project.as_str()).then(|| Answered::from_memory(record, signed, grant))
            }))
        });
        kept.await
    }

    /// Mounts the tree and, on the target, the root. A task of its own: not to be left half way.
    async fn mount_root(
        &self,
        turn: Turn,
        manifest: &str,
        point: String,
        upper: String,
        work: String,
    ) -> Result<(), Status> {
        let (images, manifest) = (self.clone(), manifest.to_owned());
        self.whole("the mount", async move {
            let _turns = (turn, images.node.targets.lock().await);
            let tree = images.get(&manifest)?.record.tree.digest;
            let target = images.blocking(move |node| {
                let target = Target::check(&point, &upper, &work)?;
                node.mounts.add_tree(&tree, &node.objects.tree_path(&tree))?;
                node.mounts.add_root(&tree, &target)?;
                Ok(target)
            });
            let target = target.await?;
            if let Some(image) = images.present().get_mut(&manifest) {
                image.targets.insert(target.point);
                image.last_used = SystemTime::now();
            }
            Ok(())
        })
        .await
    }
}

impl Answered {
    pub(super) fn from_memory(record: image::ImageRecord, signed: Vec<u8>, grant: Signed) -> Answered {
        Answered { record, signed, grant, profile: Default::default(), imported: None, remembered: true }
    }
}

impl Phases {
    fn begin() -> Phases {
        let now = Instant::now();
        Phases { asked: now, began: now, phases: Vec::new() }
    }

    fn end(&mut self, name: &str) {
        let took = self.began.elapsed();
        self.began += took;
        self.phases.push(Phase { name: name.to_owned(), microseconds: took.as_micros() as u64 });
    }

    fn spans(&self) -> Vec<(&str, Duration)> {
        self.phases
            .iter()
            .map(|phase| (phase.name.as_str(), Duration::from_micros(phase.microseconds)))
            .collect()
    }
}

async fn check_target(images: &Images, point: &str, upper: &str, work: &str) -> Result<Target, Status> {
    let (point, upper, work) = (point.to_owned(), upper.to_owned(), work.to_owned());
    images.blocking(move |_| Ok(Target::check(&point, &upper, &work)?)).await
}

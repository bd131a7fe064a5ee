//! Brings what a mount needs of an image: its record, tree and map; and begins its download.
//!
//! What is on the disk already is checked against its digest and used; what is missing or damaged is
//! fetched, tree and map at the same time. The download's prefetch begins as soon as the map is here.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use image::record::IndexRef;
use image::{Digest, ImageRecord, Map, Profile};
use prost::Message as _;
use proto::{PlanReply, ResolveRequest, Signed};
use store::Index;
use tokio::sync::oneshot;
use tonic::Status;

use super::openings::Opening;
use super::resolve::{Answered, manifest_digest};
use super::room::Claim;
use super::turns::Turn;
use super::{Images, Node, Present, disk_status, planning};
use crate::content::{Access, Content, FetchError, IndexError};
use crate::downloads::{ImageId, NewImage, Prefetch};
use crate::fuse::NotAdded;
use crate::objects::Incoming;

/// What is to be opened.
struct Opened<'a> {
    record: &'a ImageRecord,
    signed: Vec<u8>,
    grant: Signed,
    profile: Profile,
    claim: Claim,
    kept: Kept,
}

/// What the disk has of what a later mount needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    Nothing,
    /// Of the same image: good, if not the newest.
    Older,
    /// It comes from there.
    All,
}

impl Images {
    /// Makes the image present. Returns with the image's turn, for what is to be done with it next.
    pub(super) async fn bring(
        &self,
        request: ResolveRequest,
        answered: Answered,
        asked: Instant,
    ) -> Result<Turn, Status> {
        let images = self.clone();
        self.whole("bringing the image", async move {
            let turn = images.node.turns.take(&answered.record.manifest_digest).await;
            images.bring_in_turn(&request, answered, asked).await?;
            Ok(turn)
        })
        .await
    }

    async fn bring_in_turn(
        &self,
        request: &ResolveRequest,
        answered: Answered,
        asked: Instant,
    ) -> Result<(), Status> {
        let Answered { record, signed, grant, profile, remembered, .. } = answered;
        let manifest = record.manifest_digest.clone();
        let earlier = self.present().get(&manifest).cloned();
        let kept = match (&earlier, remembered) {
            (_, true) => Kept::All,
            (Some(_), false) => Kept::Older,
            (None, false) => Kept::Nothing,
        };
        if earlier.as_ref().is_some_and(|image| image.done.is_some()) {
            self.keep(request, &record, signed, &grant, kept).await?;
            if let Some(image) = self.present().get_mut(&manifest) {
                image.reference.clone_from(&request.reference);
                image.last_used = SystemTime::now();
            }
            return Ok(());
        }
        let begins = earlier.as_ref().is_none_or(|image| image.content.is_none());
        let (content, learned, opening) = match earlier.as_ref().and_then(|image| image.content.clone()) {
            Some(content) => {
                // One of the image as it was imported since is not for what this node reads by.
                let same =
                    earlier.as_ref().is_some_and(|earlier| earlier.record.map.digest == record.map.digest);
                if same && !grant.payload.is_empty() {
                    content.renew(&grant);
                }
                self.keep(request, &record, signed, &grant, kept).await?;
                (content, 0, None)
            }
            None => {
                // A guess is not what a start read: the first one is reported whatever it reads.
                let learned = if profile.starts > 0 { profile.chunks.len() } else { 0 };
                // In memory or not, it is known here: containers may stand on it.
                let claim = if earlier.is_some() { Claim::Kept } else { Claim::New };
                let opened = Opened { record: &record, signed, grant, profile, claim, kept };
                let (content, opening) = self.open(request, opened, asked).await?;
                (content, learned, Some(opening))
            }
        };
        let mut image = earlier.unwrap_or_else(|| Present::of(record));
        image.reference.clone_from(&request.reference);
        image.content = Some(content);
        image.reported = image.reported.max(learned);
        image.last_used = SystemTime::now();
        if begins {
            self.node.events.streaming(&request.reference, &manifest, asked.elapsed());
        }
        // Those who unmounted meanwhile have already been taken off the list, those of `earlier` may not.
        let mut present = self.present();
        if let Some(now) = present.get(&manifest) {
            image.targets.clone_from(&now.targets);
        }
        present.insert(manifest, image);
        drop(present);
        // Only now does the image itself keep its indexes.
        drop(opening);
        Ok(())
    }

    /// Loads an image and writes it down. Of one that cannot be opened nothing stays, neither in memory nor on the disk.
    async fn open(
        &self,
        request: &ResolveRequest,
        image: Opened<'_>,
        asked: Instant,
    ) -> Result<(Content, Opening), Status> {
        let Opened { record, signed, grant, profile, claim, kept } = image;
        let manifest = &record.manifest_digest;
        let access = Access { project: record.project.clone(), grant, manifest_digest: manifest.clone() };
        let content = self.node.mesh.content(access);
        let content =
            content.map_err(|error| Status::unavailable(format!("cannot open the store: {error}")))?;
        content.renew_by(self.renewer(record, request));
        self.check_space_of(&request.reference, record).await?;
        self.node.room.take(manifest, record.map.plain_len, claim).await?;
        let opening = self.node.openings.begin(record.tree.digest, record.map.digest);
        let opened = async {
            self.load(request, record, &content, profile, claim, asked).await?;
            // It may be another one by now.
            self.keep(request, record, signed, &content.grant(), kept).await
        };
        if let Err(error) = opened.await {
            self.clear_failed(manifest, opening).await;
            return Err(error);
        }
        self.keep_granted(manifest, content.clone());
        self.rest_when_complete(manifest, content.clone());
        Ok((content, opening))
    }

    /// Tree and map to the disk, objects known to the remote file system, download begun.
    async fn load(
        &self,
        request: &ResolveRequest,
        record: &ImageRecord,
        content: &Content,
        profile: Profile,
        claim: Claim,
        asked: Instant,
    ) -> Result<(), Status> {
        let (tree_is_here, when_tree_is_here) = oneshot::channel();
        let tree = async {
            self.tree(record.tree, content).await?;
            // Only a plan that names paths waits for it.
            let _ = tree_is_here.send(());
            Ok(())
        };
        let begin = async {
            let plan = Box::pin(self.plan(request, record, &profile, claim));
            let (map, plan) = tokio::join!(self.map(record.map, content), plan);
            let map = map?;
            let prefetch = match plan {
                Some(plan) => {
                    let files = self.planned_files(&plan, record.tree, when_tree_is_here).await?;
                    let capped = self.node.config.background_cap().is_some();
                    planning::prefetch(plan, &files, capped, &profile, &map)
                }
                None => Prefetch::learned(&profile),
            };
            let manifest = &record.manifest_digest;
            self.make_known(manifest, map.clone()).await?;
            let (id, content) = (ImageId::new(manifest), content.clone());
            let added =
                self.node.downloads.add_image(NewImage { id, map, profile, prefetch, content, asked }).await;
            added.map_err(|error| Status::unavailable(format!("{manifest} cannot be downloaded: {error:#}")))
        };
        tokio::try_join!(tree, begin).map(|_| ())
    }

    /// The objects of the files and folders that a plan names. A path that leads nowhere is no mistake: the policy may know another
    /// version of the image.
    async fn planned_files(
        &self,
        plan: &PlanReply,
        tree: IndexRef,
        when_tree_is_here: oneshot::Receiver<()>,
    ) -> Result<Vec<Vec<Digest>>, Status> {
        let paths = planning::paths(plan);
        if paths.is_empty() || when_tree_is_here.await.is_err() {
            return Ok(Vec::new());
        }
        self.blocking(move |node| {
            node.mounts.add_tree(&tree.digest, &node.objects.tree_path(&tree.digest))?;
            Ok(node.mounts.objects_named(&tree.digest, &paths)?)
        })
        .await
    }

    async fn make_known(&self, manifest: &str, map: Arc<Map>) -> Result<(), Status> {
        let manifest = manifest.to_owned();
        self.blocking(move |node| {
            node.known.add(&manifest, map).map_err(|error| match error {
                NotAdded::Taken(taken) => Status::invalid_argument(format!(
                    "{manifest} cannot be streamed beside this node's other images: {taken}"
                )),
                NotAdded::Names(error) => disk_status("compare the image with those at rest", &error),
            })
        })
        .await
    }

    async fn tree(&self, tree: IndexRef, content: &Content) -> Result<(), Status> {
        if self.blocking(move |node| Ok(node.objects.has_good_tree(&tree.digest))).await? {
            return Ok(());
        }
        let incoming = self.fetch(Index::Tree, tree, content).await?;
        self.blocking(move |node| {
            let kept = node.objects.keep_tree(&tree.digest, incoming);
            kept.map_err(|error| disk_status("keep the tree", &error))
        })
        .await
    }

    async fn map(&self, map: IndexRef, content: &Content) -> Result<Arc<Map>, Status> {
        let kept = self.blocking(move |node| node.kept_map(map)).await?;
        if let Some(kept) = kept {
            return Ok(Arc::new(kept));
        }
        let incoming = self.fetch(Index::Map, map, content).await?;
        self.blocking(move |node| {
            let kept = node.objects.keep_map(&map.digest, incoming);
            kept.map_err(|error| disk_status("keep the map", &error))?;
            let read = node.kept_map(map)?;
            read.map(Arc::new).ok_or_else(|| Status::data_loss("the map cannot be read"))
        })
        .await
    }

    async fn fetch(&self, kind: Index, index: IndexRef, content: &Content) -> Result<Incoming, Status> {
        let objects = self.node.objects.clone();
        let fetched = Box::pin(content.index(kind, index, move || objects.incoming())).await;
        let what = match kind {
            Index::Tree => "tree",
            Index::Map => "map",
        };
        fetched.map_err(|error| match error {
            IndexError::Fetch(error) => fetch_status(what, &error),
            IndexError::Keep(error) => disk_status(&format!("keep the {what}"), &error),
        })
    }

    /// Writes down what a later mount without the mesh needs. An image that is here can be opened whatever the disk's state is: of
    /// it what is new is kept if it can be.
    async fn keep(
        &self,
        request: &ResolveRequest,
        record: &ImageRecord,
        signed: Vec<u8>,
        grant: &Signed,
        kept: Kept,
    ) -> Result<(), Status> {
        let (request, manifest) = (request.clone(), record.manifest_digest.clone());
        let (images, grant) = (self.clone(), grant.encode_to_vec());
        self.blocking(move |node| {
            let digest = manifest_digest(&manifest)?;
            let hex = digest.hex();
            let keep = || {
                if kept != Kept::All {
                    node.objects.put_record(hex, &signed)?;
                    node.objects.put_grant(hex, &grant)?;
                }
                node.names.keep(&request, &manifest)
            };
            keep().or_else(|error| {
                if kept != Kept::Nothing {
                    tracing::warn!(image = manifest, %error, "the newest record, grant or name of an image is not kept");
                    return Ok(());
                }
                if !images.is_here(&manifest) {
                    // Half of it would be an image that nobody brought.
                    node.objects.remove_record(hex).ok();
                    node.objects.remove_grant(hex).ok();
                    node.names.forget(&manifest).ok();
                }
                Err(disk_status("keep the record", &error))
            })
        })
        .await
    }

    /// Takes the image out of memory: the reverse of [`Images::load`], as far as it went.
    pub(super) fn unload(&self, manifest: &str) {
        self.node.downloads.remove_image(&ImageId::new(manifest));
        self.node.known.remove(manifest);
        self.node.room.give_back(manifest);
    }
}

impl Node {
    /// The map as it is on the disk, if it is, and good.
    fn kept_map(&self, map: IndexRef) -> Result<Option<Map>, Status> {
        self.objects.map(&map.digest).map_err(|error| disk_status("read the map", &error))
    }
}

impl Present {
    pub(super) fn of(record: ImageRecord) -> Present {
        Present {
            reference: record.references.first().cloned().unwrap_or_default(),
            record: Arc::new(record),
            targets: Default::default(),
            content: None,
            last_used: SystemTime::UNIX_EPOCH,
            reported: 0,
            starts: 0,
            done: None,
            found: None,
        }
    }
}

fn fetch_status(what: &str, error: &FetchError) -> Status {
    let message = format!("cannot fetch the image's {what}: {error}");
    match error {
        FetchError::Missing(_) => Status::not_found(message),
        FetchError::Corrupt(_) => Status::data_loss(message),
        FetchError::Denied { .. } => Status::permission_denied(message),
        FetchError::Quota { refused, .. } => refused.status(message),
        FetchError::Unavailable { .. } | FetchError::Cancelled(_) => Status::unavailable(message),
    }
}

//! Brings what a mount needs of an image: its record, tree and map; and begins its download.
//!
//! What is on the disk already is checked against its digest and used; what is missing or damaged is
//! fetched, tree and map at the same time. The download's prefetch begins as soon as the map is here.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use image::record::IndexRef;
use image::{ImageRecord, Map, Profile};
use prost::Message as _;
use proto::{ResolveRequest, Signed};
use store::Index;
use tonic::Status;

use super::resolve::{Answered, manifest_hex};
use super::turns::Turn;
use super::{Images, Present, disk_status, planning};
use crate::content::{Access, Content, FetchError};
use crate::downloads::{ImageId, NewImage, Prefetch};

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
        let Answered { record, signed, grant, profile, .. } = answered;
        let manifest = record.manifest_digest.clone();
        let earlier = self.present().get(&manifest).cloned();
        if earlier.as_ref().is_some_and(|image| image.done.is_some()) {
            self.keep(request, &record, signed, &grant).await?;
            if let Some(image) = self.present().get_mut(&manifest) {
                image.reference.clone_from(&request.reference);
                image.last_used = SystemTime::now();
            }
            return Ok(());
        }
        let begins = earlier.as_ref().is_none_or(|image| image.content.is_none());
        let (content, learned) = match earlier.as_ref().and_then(|image| image.content.clone()) {
            Some(content) => {
                if !grant.payload.is_empty() {
                    content.renew(&grant);
                }
                (content, 0)
            }
            None => {
                let project = record.project.clone();
                let access = Access { project, grant: grant.clone(), manifest_digest: manifest.clone() };
                let content = self.node.mesh.content(access);
                let content = content
                    .map_err(|error| Status::unavailable(format!("cannot open the store: {error}")))?;
                // A guess is not what a start read: the first one is reported whatever it reads.
                let learned = if profile.starts > 0 { profile.chunks.len() } else { 0 };
                if let Err(error) = self.load(&record, &content, profile, asked).await {
                    self.unload(&manifest);
                    return Err(error);
                }
                self.keep_granted(&record, content.clone(), request.clone());
                self.rest_when_complete(&manifest, content.clone());
                (content, learned)
            }
        };
        // Only now: of an image that cannot be opened nothing is to stay.
        self.keep(request, &record, signed, &grant).await?;
        let mut image = earlier.unwrap_or_else(|| Present::of(record));
        image.reference.clone_from(&request.reference);
        image.content = Some(content);
        image.reported = image.reported.max(learned);
        image.last_used = SystemTime::now();
        // Those who unmounted meanwhile have already been taken off the list, those of `earlier` may not.
        if begins {
            self.node.events.streaming(&request.reference, &manifest);
        }
        let mut present = self.present();
        if let Some(now) = present.get(&manifest) {
            image.targets.clone_from(&now.targets);
        }
        present.insert(manifest, image);
        Ok(())
    }

    /// Tree and map to the disk, objects known to the remote file system, download begun.
    async fn load(
        &self,
        record: &ImageRecord,
        content: &Content,
        profile: Profile,
        asked: Instant,
    ) -> Result<(), Status> {
        let begin = async {
            let (map, plan) =
                tokio::join!(self.map(record.map, content), Box::pin(self.plan(record, &profile)));
            let map = map?;
            let prefetch = match plan {
                Some(plan) => planning::prefetch(plan, &profile, &map),
                None => Prefetch::learned(&profile),
            };
            let manifest = &record.manifest_digest;
            self.node.known.add(manifest, map.clone()).map_err(|taken| {
                Status::invalid_argument(format!(
                    "{manifest} cannot be streamed beside this node's other images: {taken}"
                ))
            })?;
            let (id, content) = (ImageId::new(manifest), content.clone());
            let added =
                self.node.downloads.add_image(NewImage { id, map, profile, prefetch, content, asked }).await;
            added.map_err(|error| Status::unavailable(format!("{manifest} cannot be downloaded: {error:#}")))
        };
        tokio::try_join!(self.tree(record.tree, content), begin).map(|_| ())
    }

    async fn tree(&self, tree: IndexRef, content: &Content) -> Result<(), Status> {
        if self.blocking(move |node| Ok(node.objects.has_good_tree(&tree.digest))).await? {
            return Ok(());
        }
        let plain = content.index(Index::Tree, tree).await.map_err(|error| fetch_status("tree", &error))?;
        self.blocking(move |node| {
            node.objects.put_tree(&tree.digest, &plain).map_err(|error| disk_status("keep the tree", &error))
        })
        .await
    }

    async fn map(&self, map: IndexRef, content: &Content) -> Result<Arc<Map>, Status> {
        let kept = self.blocking(move |node| {
            let kept = node.objects.map(&map.digest).map_err(|error| disk_status("read the map", &error))?;
            Ok(kept.and_then(|encoded| Map::decode(&encoded).ok()))
        });
        if let Some(kept) = kept.await? {
            return Ok(Arc::new(kept));
        }
        let encoded = content.index(Index::Map, map).await.map_err(|error| fetch_status("map", &error))?;
        self.blocking(move |node| {
            let decoded = Map::decode(&encoded)
                .map_err(|error| Status::data_loss(format!("the map cannot be read: {error}")))?;
            node.objects
                .put_map(&map.digest, &encoded)
                .map_err(|error| disk_status("keep the map", &error))?;
            Ok(Arc::new(decoded))
        })
        .await
    }

    /// Writes down what a later mount without the mesh needs.
    async fn keep(
        &self,
        request: &ResolveRequest,
        record: &ImageRecord,
        signed: Vec<u8>,
        grant: &Signed,
    ) -> Result<(), Status> {
        let (request, manifest) = (request.clone(), record.manifest_digest.clone());
        let grant = grant.encode_to_vec();
        self.blocking(move |node| {
            let keep = |hex| {
                node.objects.put_record(hex, &signed)?;
                node.objects.put_grant(hex, &grant)?;
                node.names.keep(&request, &manifest)
            };
            keep(manifest_hex(&manifest)?).map_err(|error| disk_status("keep the record", &error))
        })
        .await
    }

    /// Takes the image out of memory: the reverse of [`Images::load`], as far as it went.
    pub(super) fn unload(&self, manifest: &str) {
        self.node.downloads.remove_image(&ImageId::new(manifest));
        self.node.known.remove(manifest);
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
        }
    }
}

fn fetch_status(what: &str, error: &FetchError) -> Status {
    let message = format!("cannot fetch the image's {what}: {error}");
    match error {
        FetchError::Missing(_) => Status::not_found(message),
        FetchError::Corrupt(_) => Status::data_loss(message),
        FetchError::Denied { .. } => Status::permission_denied(message),
        FetchError::Unavailable { .. } | FetchError::Cancelled(_) => Status::unavailable(message),
    }
}

//! An image that a registry told of is imported before anybody asks for it.
//!
//! By the same ways as one that is asked for: the registry is asked, with what the fetcher's own configuration has for it, the
//! policies are, and the project pays. Nobody is granted anything: whoever pulls the image shows a credential of their own.

use std::sync::Arc;

use allowance::Class;
use names::ImageName;
use proto::{Platform, ResolveRequest};
use store::ProjectStore;
use tonic::Status;

use super::Service;
use super::judging::Asker;
use crate::import::Order;
use crate::push::{Pushed, Registry};
use crate::source::Access;

/// What was to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Imported,
    /// It was here already, for that repository.
    Here,
}

impl Service {
    pub(crate) async fn import_pushed(
        self: &Arc<Self>,
        registry: &Registry,
        pushed: &Pushed,
    ) -> Result<Taken, Status> {
        let project = self.project(registry.project.as_str())?;
        self.projects.check(project.name())?;
        let own = [Platform::default()];
        let platforms = if registry.platforms.is_empty() { &own[..] } else { &registry.platforms };
        let (mut taken, mut failed) = (None, None);
        for platform in platforms {
            match self.import_for(&project, registry, pushed, platform).await {
                Ok(one) => taken = taken.filter(|before| *before == Taken::Imported).or(Some(one)),
                Err(status) => failed = Some(status),
            }
        }
        // An image need not be there for each of the platforms.
        match (taken, failed) {
            (_, Some(status)) if status.code() != tonic::Code::InvalidArgument => Err(status),
            (Some(taken), _) => Ok(taken),
            (None, Some(status)) => Err(status),
            (None, None) => Ok(Taken::Here),
        }
    }

    async fn import_for(
        self: &Arc<Self>,
        project: &ProjectStore,
        registry: &Registry,
        pushed: &Pushed,
        platform: &Platform,
    ) -> Result<Taken, Status> {
        let malformed = || Status::invalid_argument(format!("{}: no image is called so", pushed.repository));
        let (asked, pinned) = registry.reference(pushed).ok_or_else(malformed)?;
        let (image, name) = (asked.to_string(), ImageName::Registry(pinned));
        let (source, found) = self.find(&name, Access::own(), platform).await?;
        let asker = Asker { project: project.name(), node: "", said: None };
        let judged = self.judge(&name, &found, asker).await?;
        judged.permit(&name)?;
        let place = self.place(&name);
        let here = self.records.image(project, &found.manifest_digest).await?;
        if let Some(here) = here
            && self.is_readable(&source, &place, &here, &found).await?
        {
            self.also_named(project, here, &image).await?;
            return Ok(Taken::Here);
        }
        if judged.unasked {
            self.unjudged.tell(self.bus.events(), &image, &found.manifest_digest, "");
        }
        let origin = ResolveRequest {
            project: project.name().to_owned(),
            reference: name.to_string(),
            platform: Some(platform.clone()),
            ..ResolveRequest::default()
        };
        let project = project.clone();
        let order = Order { image, project, source, place, proven: false, found, origin, repair: false };
        let job = self.begin(order, Class::Background);
        // Who asked for the image meanwhile follows the same import.
        let outcome = job.wait().await?;
        tracing::debug!(manifest = outcome.image.record.manifest_digest, "imported what was pushed");
        Ok(Taken::Imported)
    }
}

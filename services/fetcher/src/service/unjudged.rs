//! Images that were granted although no policy was asked about them: told once for each image and while.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bus::Events;
use proto::{Event, EventKind};

/// How long an image is not told of again.
const TOLD_KEPT: Duration = Duration::from_secs(60 * 60);
/// Images that are remembered; the one told longest ago goes first.
const IMAGES_MAX: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Unjudged {
    told: Mutex<BTreeMap<String, Instant>>,
}

impl Unjudged {
    pub(super) fn tell(&self, events: &Events, image: &str, manifest: &str, node: &str) {
        if !self.is_first(manifest, Instant::now()) {
            return;
        }
        let message = "no policy was asked about this image, so it may stream: no policy service answers. Run one, or require one \
                       (fetcher.judging.unanswered = \"refuse\")";
        events.tell(Event {
            service: "fetcher".to_owned(),
            node: node.to_owned(),
            image: image.to_owned(),
            manifest_digest: manifest.to_owned(),
            ..Event::new(EventKind::Unjudged, "no-policy-answers", message)
        });
    }

    fn is_first(&self, manifest: &str, now: Instant) -> bool {
        // Each change is one insertion or removal.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, at| now.saturating_duration_since(*at) < TOLD_KEPT);
        if told.contains_key(manifest) {
            return false;
        }
        if told.len() >= IMAGES_MAX
            && let Some(oldest) = told.iter().min_by_key(|(_, at)| **at).map(|(image, _)| image.clone())
        {
            told.remove(&oldest);
        }
        told.insert(manifest.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_image_is_told_once_an_hour_and_few_are_remembered() {
        let (unjudged, start) = (Unjudged::default(), Instant::now());
        assert!(unjudged.is_first("a", start) && !unjudged.is_first("a", start));
        assert!(unjudged.is_first("b", start));
        assert!(unjudged.is_first("a", start + TOLD_KEPT));
        for number in 0..2 * IMAGES_MAX {
            assert!(unjudged.is_first(&number.to_string(), start + TOLD_KEPT));
        }
        assert!(unjudged.told.lock().unwrap().len() <= IMAGES_MAX);
    }
}

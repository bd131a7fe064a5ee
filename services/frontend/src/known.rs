//! What events say beyond what their place knows: the name of an image, the pods that pulled it.
//!
//! The image service sees each pull with the pod that it is for; what happens to the image later is known by its name or its digest
//! alone. Nothing is guessed: a pod that pulled by another way is not among these, and no pod is after a restart.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use names::Reference;
use proto::Pod;

/// Images whose pods are remembered; the ones pulled longest ago go first.
const IMAGES_MAX: usize = 256;
/// Pods of one image: a node rarely has more, and an event names no more.
const PODS_MAX: usize = 8;
/// How long a pod counts as concerned by what happens to the image.
const PODS_KEPT: Duration = Duration::from_secs(60 * 60);
/// Names of images by their digest.
const NAMES_MAX: usize = 256;
/// An import that is over sooner is not told; and how much later it is told again.
const PROGRESS_AFTER: Duration = Duration::from_secs(5);
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct KnownImages {
    tables: Mutex<Tables>,
}

#[derive(Debug, Default)]
struct Tables {
    pods: BTreeMap<String, Pulled>,
    names: BTreeMap<String, (Instant, String)>,
    progress: BTreeMap<String, Progress>,
}

/// When the next news of an import is due, and what was told last.
#[derive(Debug)]
struct Progress {
    due: Instant,
    told: Option<u64>,
}

#[derive(Debug)]
struct Pulled {
    last: Instant,
    /// The newest first.
    pods: VecDeque<(Instant, Pod)>,
}

impl KnownImages {
    /// A pull for this pod begins.
    pub(crate) fn pulled(&self, image: &str, pod: Pod) {
        self.pulled_at(image, pod, Instant::now());
    }

    fn pulled_at(&self, image: &str, pod: Pod, now: Instant) {
        let mut tables = self.tables();
        make_room(&mut tables.pods, IMAGES_MAX, |pulled| pulled.last);
        let pulled = tables.pods.entry(key(image));
        let pulled = pulled.or_insert_with(|| Pulled { last: now, pods: VecDeque::new() });
        pulled.last = now;
        pulled.pods.retain(|(_, known)| known.uid != pod.uid || known.name != pod.name);
        pulled.pods.push_front((now, pod));
        pulled.pods.truncate(PODS_MAX);
    }

    /// The pods that pulled the image within the last hour, the newest first.
    pub(crate) fn pods_of(&self, image: &str) -> Vec<Pod> {
        self.pods_of_at(image, Instant::now())
    }

    fn pods_of_at(&self, image: &str, now: Instant) -> Vec<Pod> {
        let tables = self.tables();
        let Some(pulled) = tables.pods.get(&key(image)) else { return Vec::new() };
        let fresh = pulled.pods.iter().filter(|(at, _)| now.saturating_duration_since(*at) < PODS_KEPT);
        fresh.map(|(_, pod)| pod.clone()).collect()
    }

    /// The image's name: the one that is given, which is remembered for its digest, or the one it had last.
    pub(crate) fn name_of(&self, name: &str, manifest: &str) -> String {
        let mut tables = self.tables();
        if manifest.is_empty() {
            return name.to_owned();
        }
        if name.is_empty() {
            return tables.names.get(manifest).map(|(_, name)| name.clone()).unwrap_or_default();
        }
        make_room(&mut tables.names, NAMES_MAX, |(at, _)| *at);
        tables.names.insert(manifest.to_owned(), (Instant::now(), name.to_owned()));
        name.to_owned()
    }

    /// Whether it is time to tell how far the image's import is: when it takes long, and then when something was done, now and again.
    pub(crate) fn is_news(&self, manifest: &str, done: u64) -> bool {
        self.is_news_at(manifest, done, Instant::now())
    }

    fn is_news_at(&self, manifest: &str, done: u64, now: Instant) -> bool {
        let mut tables = self.tables();
        let due = |after: Duration| now + after;
        match tables.progress.get_mut(manifest) {
            None => {
                make_room(&mut tables.progress, NAMES_MAX, |progress| progress.due);
                let progress = Progress { due: due(PROGRESS_AFTER), told: None };
                tables.progress.insert(manifest.to_owned(), progress);
                false
            }
            Some(progress) if now < progress.due || progress.told == Some(done) => false,
            Some(progress) => {
                *progress = Progress { due: due(PROGRESS_EVERY), told: Some(done) };
                true
            }
        }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Each change is one insertion or removal.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One name for what kubelets, containerd and we call the image: with its tag; or without any, where a digest was asked for, as
/// containerd leaves the tag out then, and the digest may be that of an index.
fn key(image: &str) -> String {
    let Some(name) = Reference::parse(image) else { return image.to_owned() };
    let repository = format!("{}/{}", name.registry(), name.repository());
    match name.tag() {
        Some(tag) if name.digest().is_none() => format!("{repository}:{tag}"),
        _ => repository,
    }
}

fn make_room<V>(table: &mut BTreeMap<String, V>, max: usize, at: impl Fn(&V) -> Instant) {
    if table.len() >= max
        && let Some(oldest) = table.iter().min_by_key(|(_, value)| at(value)).map(|(key, _)| key.clone())
    {
        table.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Pod {
        Pod { namespace: "shop".to_owned(), name: name.to_owned(), uid: format!("uid-{name}") }
    }

    fn names(pods: Vec<Pod>) -> Vec<String> {
        pods.into_iter().map(|pod| pod.name).collect()
    }

    #[test]
    fn a_pod_is_found_by_any_name_of_its_image() {
        let known = KnownImages::default();
        known.pulled("debian:12", pod("a"));
        let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
        known.pulled(&format!("r.io:5000/app@{}", digest("a")), pod("b"));
        known.pulled(&format!("r.io:5000/app:3@{}", digest("a")), pod("c"));
        known.pulled("other", pod("d"));
        assert_eq!(names(known.pods_of("docker.io/library/debian:12")), ["a"]);
        assert_eq!(names(known.pods_of(&format!("r.io:5000/app@{}", digest("b")))), ["c", "b"]);
        assert_eq!(names(known.pods_of("docker.io/library/other:latest")), ["d"]);
        assert!(known.pods_of("debian:11").is_empty() && known.pods_of("").is_empty());
    }

    #[test]
    fn few_pods_of_few_images_are_remembered_and_not_for_long() {
        let (known, start) = (KnownImages::default(), Instant::now());
        for number in 0..20 {
            known.pulled_at("a:1", pod(&number.to_string()), start);
        }
        known.pulled_at("a:1", pod("15"), start);
        let of_a = names(known.pods_of_at("a:1", start));
        assert_eq!((of_a.len(), of_a[0].as_str(), of_a[1].as_str()), (PODS_MAX, "15", "19"));
        assert!(known.pods_of_at("a:1", start + PODS_KEPT).is_empty());
        for number in 0..2 * IMAGES_MAX as u64 {
            known.pulled_at(&format!("b:{number}"), pod("p"), start + Duration::from_millis(number + 1));
        }
        assert_eq!(known.tables().pods.len(), IMAGES_MAX);
        assert!(known.pods_of_at("a:1", start).is_empty());
    }

    #[test]
    fn an_image_that_is_known_by_its_digest_alone_has_the_name_it_had_last() {
        let known = KnownImages::default();
        assert_eq!(known.name_of("", "sha256:m"), "");
        assert_eq!(known.name_of("a:1", "sha256:m"), "a:1");
        assert_eq!(known.name_of("", "sha256:m"), "a:1");
        (0..2 * NAMES_MAX).for_each(|number| drop(known.name_of("b:1", &number.to_string())));
        assert_eq!(known.tables().names.len(), NAMES_MAX);
    }

    #[test]
    fn progress_of_long_imports_is_told_now_and_again() {
        let (known, start) = (KnownImages::default(), Instant::now());
        assert!(!known.is_news_at("m", 0, start), "it may be over soon");
        assert!(!known.is_news_at("m", 5, start + PROGRESS_AFTER / 2));
        let first = start + PROGRESS_AFTER;
        assert!(known.is_news_at("m", 5, first));
        assert!(!known.is_news_at("m", 9, first + PROGRESS_EVERY / 2));
        assert!(!known.is_news_at("m", 5, first + PROGRESS_EVERY), "nothing was done");
        assert!(known.is_news_at("m", 9, first + PROGRESS_EVERY));
        assert!((0..2 * NAMES_MAX).all(|number| !known.is_news_at(&number.to_string(), 0, start)));
        assert_eq!(known.tables().progress.len(), NAMES_MAX);
    }
}

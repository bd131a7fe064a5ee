//! The newest events, and which of them repeat themselves.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use proto::Event;

/// Events that are kept for whoever asks later.
const RECENT_MAX: usize = 256;
/// Repeats within this time are told together.
const REPEATS_WITHIN: Duration = Duration::from_secs(10);
/// Different events whose repeats are waited for at once; beyond, each is told by itself.
const WATCHED_MAX: usize = 256;
/// Each text of an event is cut here, in bytes: images choose some of them.
const TEXT_MAX: usize = 1024;
/// Details beyond this number are left out.
const DETAILS_MAX: usize = 16;
/// And pods.
const PODS_MAX: usize = 8;

/// Kind, reason, image.
type Key = (i32, String, String, String);

#[derive(Debug, Default)]
pub(super) struct Journal {
    recent: VecDeque<Event>,
    watched: HashMap<Key, Watched>,
}

#[derive(Debug)]
struct Watched {
    told: Instant,
    /// The last one that was not told, with the count of all of them.
    repeat: Option<Event>,
}

impl Journal {
    /// Takes the event; returns it when it is to be told now.
    pub(super) fn note(&mut self, event: Event, now: Instant) -> Option<Event> {
        let event = bounded(event);
        let key = key(&event);
        if let Some(watched) = self.watched.get_mut(&key)
            && now.saturating_duration_since(watched.told) < REPEATS_WITHIN
        {
            let before = watched.repeat.take().map_or(0, |repeat| repeat.count);
            watched.repeat = Some(Event { count: before.saturating_add(event.count), ..event });
            return None;
        }
        if self.watched.len() < WATCHED_MAX {
            self.watched.insert(key, Watched { told: now, repeat: None });
        }
        self.keep(event.clone());
        Some(event)
    }

    /// Repeats whose time is over: to be told now.
    pub(super) fn repeats(&mut self, now: Instant) -> Vec<Event> {
        let over = |watched: &Watched| now.saturating_duration_since(watched.told) >= REPEATS_WITHIN;
        let repeats: Vec<Event> = self
            .watched
            .values_mut()
            .filter(|watched| over(watched))
            .filter_map(|watched| watched.repeat.take())
            .collect();
        self.watched.retain(|_, watched| !over(watched));
        for repeat in &repeats {
            // What goes on repeating itself is told once in a while, not twice.
            self.watched.insert(key(repeat), Watched { told: now, repeat: None });
            self.keep(repeat.clone());
        }
        repeats
    }

    pub(super) fn recent(&self) -> Vec<Event> {
        self.recent.iter().cloned().collect()
    }

    fn keep(&mut self, event: Event) {
        if self.recent.len() == RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(event);
    }
}

fn key(event: &Event) -> Key {
    (event.kind, event.reason.clone(), event.image.clone(), event.manifest_digest.clone())
}

fn bounded(mut event: Event) -> Event {
    let cut = |text: &mut String| text.truncate(text.floor_char_boundary(TEXT_MAX));
    let Event { reason, message, service, node, image, manifest_digest, details, pods, .. } = &mut event;
    for text in [reason, message, service, node, image, manifest_digest] {
        cut(text);
    }
    while details.len() > DETAILS_MAX {
        let Some(name) = details.keys().next().cloned() else { break };
        details.remove(&name);
    }
    details.values_mut().for_each(cut);
    pods.truncate(PODS_MAX);
    for pod in pods {
        [&mut pod.namespace, &mut pod.name, &mut pod.uid].into_iter().for_each(cut);
    }
    event
}

#[cfg(test)]
mod tests {
    use proto::EventKind;

    use super::*;

    fn event(image: &str) -> Event {
        let event = Event::new(EventKind::Degraded, "read-failed", "it failed");
        Event { image: image.to_owned(), ..event }
    }

    #[test]
    fn repeats_are_told_together_when_their_time_is_over() {
        let (mut journal, start) = (Journal::default(), Instant::now());
        assert_eq!(journal.note(event("a"), start).unwrap().count, 1);
        for _ in 0..3 {
            assert_eq!(journal.note(event("a"), start + Duration::from_secs(1)), None);
        }
        assert!(journal.note(event("b"), start + Duration::from_secs(1)).is_some());
        assert_eq!(journal.repeats(start + Duration::from_secs(2)), []);
        let told = journal.repeats(start + REPEATS_WITHIN);
        assert_eq!(
            told.iter().map(|event| (event.image.as_str(), event.count)).collect::<Vec<_>>(),
            [("a", 3)]
        );
        // Repeats of what was just told wait again.
        assert_eq!(journal.note(event("a"), start + REPEATS_WITHIN), None);
        let counts: Vec<u64> = journal.recent().iter().map(|event| event.count).collect();
        assert_eq!(counts, [1, 1, 3]);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let (mut journal, now) = (Journal::default(), Instant::now());
        for number in 0..10 * RECENT_MAX {
            let event = Event { message: "ä".repeat(TEXT_MAX), ..event(&number.to_string()) };
            assert!(journal.note(event, now).is_some(), "different events are never merged");
        }
        assert_eq!(journal.recent.len(), RECENT_MAX);
        assert!(journal.watched.len() <= WATCHED_MAX);
        assert!(journal.recent().iter().all(|event| event.message.len() <= TEXT_MAX));
        assert_eq!(journal.recent().last().unwrap().image, (10 * RECENT_MAX - 1).to_string());
        journal.repeats(now + REPEATS_WITHIN);
        assert!(journal.watched.is_empty());
    }

    #[test]
    fn details_and_pods_are_bounded() {
        let mut many =
            (0..100).fold(event("a"), |event, number| event.with(&number.to_string(), "x".repeat(9_000)));
        many.pods = vec![proto::Pod { name: "x".repeat(9_000), ..proto::Pod::default() }; 100];
        let kept = Journal::default().note(many, Instant::now()).unwrap();
        assert_eq!((kept.pods.len(), kept.pods[0].name.len()), (PODS_MAX, TEXT_MAX));
        assert_eq!(kept.details.len(), DETAILS_MAX);
        assert!(kept.details.values().all(|value| value.len() == TEXT_MAX));
    }
}

//! A prefetch policy that does what none should: for tests of the host. The label `misbehave` of the image says what.

#[path = "../../hostile/src/misbehave.rs"]
mod misbehave;

use sluice_policy::{About, Facts, Item, Level, Mode, Prefetch, PrefetchPlan, Profile, Settings, about, log};

use misbehave::misbehave;

struct HostilePlanner;

impl Prefetch for HostilePlanner {
    fn about() -> About {
        about("hostile-planner", "1.0.0", "Misbehaves.", [])
    }

    fn plan(_: &Settings, facts: &Facts, _: &Profile) -> Result<PrefetchPlan, String> {
        let how = facts.image.labels.iter().find(|(name, _)| name == "misbehave");
        let how = how.map_or("", |(_, how)| how.as_str());
        let (mut items, mut bandwidth, mut reason) = (vec![Item::Chunk(0)], None, how.to_owned());
        match how {
            "error" => return Err("no list for this image".to_owned()),
            // Small for the guest, large for the host: an item of the host's has more bytes.
            "million-items" => items = vec![Item::Chunk(0); 1_000_000],
            "many-items" => items = vec![Item::Chunk(0); 10_001],
            "long-path" => items = vec![Item::Path("a/".repeat(300_000))],
            "many-paths" => items = vec![Item::Path("a/".repeat(100)); 9_999],
            "megabytes" => reason = "x".repeat(8 << 20),
            "no-bandwidth" => bandwidth = Some(0),
            "log-megabytes" => log(Level::Info, &"x".repeat(8 << 20)),
            // SAFETY: deliberately none: the host must not trust that what a guest calls text is text.
            "not-text" => items = vec![Item::Path(unsafe { String::from_utf8_unchecked(vec![0xff; 9]) })],
            "absurd" => (items, bandwidth, reason) = absurd(),
            how => misbehave(how),
        }
        Ok(PrefetchPlan { mode: Mode::ListedOnly, items, bandwidth, reason })
    }
}

/// What no image has, to be passed over; and at last a file that one may have, by a path that would lead out of it.
fn absurd() -> (Vec<Item>, Option<u64>, String) {
    let paths = [
        "",
        "/proc/self/exe",
        "a\0b",
        "\u{1b}[31m",
        "data/nothing/..",
        &"d/".repeat(3_000),
        &"n".repeat(10_000),
        "../../../../../../data/wanted",
    ];
    let paths = paths.iter().map(|path| Item::Path((*path).to_owned()));
    let runs = [(0, 0), (0, u32::MAX), (u32::MAX, u32::MAX), (u32::MAX, 1), (1, u32::MAX), (7, 0)];
    let numbers = [u32::MAX, u32::MAX - 1, 1 << 31, 1_000_000];
    let chunks = runs.map(Item::Chunks).into_iter().chain(numbers.map(Item::Chunk));
    (paths.chain(chunks).collect(), Some(u64::MAX), "\u{1b}[31m\n".repeat(1_000))
}

sluice_policy::prefetch!(HostilePlanner);

//! What threads and processes have taken of the processor, as the kernel counts it: in ticks, mostly of 10 ms.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// Of the threads of this process that have this name, as long as they live.
pub fn of_threads(name: &str) -> Duration {
    let threads = stats(Path::new("/proc/self/task"));
    ticks(threads.filter(|thread| thread.name == name).map(|thread| thread.own).sum())
}

/// Of this process and all that came from it: those that ended count with those that waited for them.
pub fn of_tree() -> Duration {
    let all: Vec<Stat> = stats(Path::new("/proc")).collect();
    let mut children: HashMap<u32, Vec<&Stat>> = HashMap::new();
    for process in &all {
        children.entry(process.parent).or_default().push(process);
    }
    let own = std::process::id();
    let mut waiting: Vec<&Stat> = all.iter().filter(|process| process.id == own).collect();
    let mut sum = 0;
    while let Some(process) = waiting.pop() {
        sum += process.own + process.waited_for;
        waiting.extend(children.remove(&process.id).unwrap_or_default());
    }
    ticks(sum)
}

/// Of proc_pid_stat(5).
#[derive(Debug, PartialEq)]
struct Stat {
    id: u32,
    name: String,
    parent: u32,
    /// In user mode and in the kernel.
    own: u64,
    /// Of children that ended.
    waited_for: u64,
}

/// Of everything in `folder` that has one; what ends meanwhile has none.
fn stats(folder: &Path) -> impl Iterator<Item = Stat> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .filter_map(|entry| Stat::parse(&fs::read_to_string(entry.path().join("stat")).ok()?))
}

impl Stat {
    /// The name may hold anything, blanks and brackets as well: the last bracket ends it.
    fn parse(line: &str) -> Option<Stat> {
        let (front, rest) = line.rsplit_once(')')?;
        let (id, name) = front.split_once(" (")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // The third field, the state, is the first of these.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Stat {
            id: id.parse().ok()?,
            name: name.to_owned(),
            parent: number(4)?.try_into().ok()?,
            own: number(14)? + number(15)?,
            waited_for: number(16)? + number(17)?,
        })
    }
}

fn ticks(count: u64) -> Duration {
    let a_second = rustix::param::clock_ticks_per_second().max(1);
    Duration::from_secs_f64(count as f64 / a_second as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_of_any_kind() {
        let line = "7 (a) b (c)) S 3 7 7 0 -1 4 1 2 3 4 10 20 300 400 20 0 1 0 99\n";
        let stat = Stat { id: 7, name: "a) b (c)".to_owned(), parent: 3, own: 30, waited_for: 700 };
        assert_eq!(Stat::parse(line), Some(stat));
        assert_eq!(Stat::parse("7 (a"), None);
    }

    #[test]
    fn what_threads_and_children_take_is_counted() {
        let before = of_tree();
        let busy = std::thread::Builder::new().name("busy".to_owned()).spawn(|| {
            while of_threads("busy").is_zero() {
                std::hint::black_box([0_u8; 4096]);
            }
        });
        busy.unwrap().join().unwrap();
        assert!(of_tree() > before);
        // A child that ended was waited for: it counts here.
        let before = of_tree();
        let script = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
        assert!(std::process::Command::new("sh").args(["-c", script]).status().unwrap().success());
        assert!(of_tree() > before);
        assert!(of_threads("no such name").is_zero());
    }
}

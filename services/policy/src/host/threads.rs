//! Threads that run guests, and how much of the processor they get.
//!
//! ```text
//! quick --its guest has run for a tick's time--> slow --the call ends--> (ended)
//!   ^------------the call ends------------/
//! ```
//!
//! An ordinary question takes some ten microseconds. A guest that takes milliseconds is one of an interpreter, or one that loops:
//! its thread goes on with a third of what others get, and in long time slices, so that the kernel lets in at once whoever wakes up
//! beside it. Without privilege a thread cannot take that back: it ends with the call. Source: `sched_setattr(2)`, sched(7)
//! and Documentation/scheduler/sched-eevdf.rst, Linux 6.12; an older kernel knows no slices and only lowers the priority.

use std::cell::Cell;
use std::io;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::Duration;

/// The shortest slice that the kernel knows, and the longest.
const QUICK: Duration = Duration::from_micros(100);
const SLOW: Duration = Duration::from_millis(100);
/// A third of the weight of others (sched(7)): so much that a policy of an interpreter ends in time beside others that never wait,
/// and that one that loops has used up its time before the question's is over.
const SLOW_NICE: i32 = 5;

type Job = Box<dyn FnOnce() + Send>;

/// As many threads as there were calls at the same time. Their number is bounded by whoever calls. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Threads {
    waiting: Arc<Mutex<Vec<Sender<Job>>>>,
}

thread_local! {
    /// Of a thread that runs nothing but guests.
    static PACE: Cell<Option<Pace>> = const { Cell::new(None) };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    Quick,
    Slow,
}

impl Threads {
    /// Runs `work` on a thread of its own; the receiver learns the result, or nothing should `work` panic.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<tokio::sync::oneshot::Receiver<T>> {
        let (done, result) = tokio::sync::oneshot::channel();
        let mut job: Job = Box::new(move || drop(done.send(work())));
        let waiting = lock(&self.waiting).pop();
        if let Some(thread) = waiting {
            match thread.send(job) {
                Ok(()) => return Ok(result),
                Err(mpsc::SendError(unsent)) => job = unsent,
            }
        }
        self.start(job)?;
        Ok(result)
    }

    fn start(&self, first: Job) -> io::Result<()> {
        let threads = Arc::downgrade(&self.waiting);
        let run = move || {
            PACE.set(Some(Pace::Quick));
            wish(QUICK, nice());
            let mut next = Some(first);
            while let Some(job) = next.take() {
                job();
                let Some(waiting) = threads.upgrade().filter(|_| PACE.get() == Some(Pace::Quick)) else {
                    return;
                };
                let (sender, jobs) = mpsc::channel();
                lock(&waiting).push(sender);
                drop(waiting);
                // Nothing comes any more once the last of those who may call is gone.
                next = jobs.recv().ok();
            }
        };
        thread::Builder::new().name("policy-guest".to_owned()).spawn(run).map(drop)
    }
}

fn lock(waiting: &Mutex<Vec<Sender<Job>>>) -> MutexGuard<'_, Vec<Sender<Job>>> {
    // Each change is one push or pop.
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The guest on this thread takes long. Does nothing on threads that have other work, too.
pub(super) fn slow_down() {
    if PACE.get() != Some(Pace::Quick) {
        return;
    }
    PACE.set(Some(Pace::Slow));
    wish(SLOW, nice() + SLOW_NICE);
}

/// A machine that does not allow it is slower beside bad guests, no more.
fn wish(slice: Duration, nice: i32) {
    static TOLD: Once = Once::new();
    if let Err(error) = ask(slice, nice) {
        TOLD.call_once(|| tracing::info!(%error, "guests take as much of the processor as others"));
    }
}

fn nice() -> i32 {
    rustix::process::getpriority_process(None).unwrap_or_default()
}

fn ask(slice: Duration, nice: i32) -> io::Result<()> {
    let wish = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: 0,
        sched_nice: nice.min(19),
        sched_priority: 0,
        sched_runtime: slice.as_nanos() as u64,
        sched_deadline: 0,
        sched_period: 0,
    };
    #[expect(unsafe_code, reason = "no library has this call of the kernel")]
    // SAFETY: the kernel reads `size` bytes of `wish`, which lives until it returns, and writes nothing. 0 is this thread.
    let answer = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wish, 0) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the thread that asks, as the kernel tells it. Kernels that are built without these details tell none.
    fn slice() -> Option<Duration> {
        let told = std::fs::read_to_string("/proc/thread-self/sched").ok()?;
        let line = told.lines().find(|line| line.contains("se.slice"))?;
        line.rsplit(':').next()?.trim().parse().ok().map(Duration::from_nanos)
    }

    /// Whether the kernel gives threads slices of their own.
    fn fair_slices() -> bool {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut numbers = release.split('.').map_while(|part| part.parse::<u32>().ok());
        (numbers.next(), numbers.next()) >= (Some(6), Some(12))
    }

    fn has_slice(wished: Duration) -> bool {
        !fair_slices() || slice().is_none_or(|slice| slice == wished)
    }

    #[tokio::test]
    async fn a_quick_thread_is_used_again_and_a_slow_one_is_not() {
        let (threads, before) = (Threads::default(), nice());
        let id = || (thread::current().id(), nice());
        let (first, its) = threads.run(id).unwrap().await.unwrap();
        assert_eq!(its, before);
        let slow = move || {
            assert!(has_slice(QUICK));
            slow_down();
            slow_down();
            assert!(has_slice(SLOW));
            id()
        };
        // A thread waits again only a moment after its answer was sent.
        while lock(&threads.waiting).is_empty() {
            thread::yield_now();
        }
        let (second, its) = threads.run(slow).unwrap().await.unwrap();
        assert_eq!((second, its), (first, (before + SLOW_NICE).min(19)), "the same thread, then slow");
        let (third, its) = threads.run(id).unwrap().await.unwrap();
        assert!(third != first && its == before);
    }

    #[tokio::test]
    async fn work_that_panics_harms_no_other() {
        let threads = Threads::default();
        assert!(threads.run(|| panic!("as a test wants it")).unwrap().await.is_err());
        assert_eq!(threads.run(|| 7).unwrap().await, Ok(7));
    }

    #[test]
    fn threads_that_have_other_work_stay_as_they_are() {
        let before = nice();
        slow_down();
        assert_eq!(nice(), before);
    }
}

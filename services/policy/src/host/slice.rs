//! Short turns on the processor, for threads that run guests.
//!
//! When others wait for the processor, who has it keeps it for the rest of its time slice: some milliseconds, many times what
//! an ordinary question takes. A guest that loops would make well-behaved ones wait as long. With a slice of
//! [`SLICE`] it is put aside almost at once, and, by the same rule, whoever has short slices is let in first. Source:
//! `sched_setattr(2)` and Documentation/scheduler/sched-eevdf.rst, Linux 6.12; an older kernel ignores the wish.

use std::cell::Cell;
use std::io;
use std::sync::Once;
use std::time::Duration;

/// The shortest that the kernel knows.
const SLICE: Duration = Duration::from_micros(100);

thread_local! {
    static SHORT: Cell<bool> = const { Cell::new(false) };
}

/// Gives this thread short slices, from now on. A machine that does not allow it is slower beside bad guests, no more.
pub(super) fn shorten() {
    static TOLD: Once = Once::new();
    if SHORT.replace(true) {
        return;
    }
    if let Err(error) = ask() {
        TOLD.call_once(|| tracing::info!(%error, "guests keep the processor for whole time slices"));
    }
}

fn ask() -> io::Result<()> {
    let wish = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: 0,
        sched_nice: rustix::process::getpriority_process(None)?,
        sched_priority: 0,
        sched_runtime: SLICE.as_nanos() as u64,
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

    /// Of this thread, as the kernel tells it.
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

    #[test]
    fn a_thread_may_wish_for_short_slices_and_keeps_its_priority() {
        std::thread::spawn(|| {
            rustix::process::nice(3).unwrap();
            ask().unwrap();
            assert_eq!(rustix::process::getpriority_process(None).unwrap(), 3);
            // Kernels before 6.12 take the wish and keep their own; those built without this file's details tell none.
            if fair_slices() {
                assert_eq!(slice().unwrap_or(SLICE), SLICE);
            }
        })
        .join()
        .unwrap();
    }
}

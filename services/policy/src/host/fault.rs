//! How a call can fail: precise for the author, countable for the operator.

use std::time::Duration;

use bytesize::ByteSize;
use wasmtime::Trap;

use super::state::State;
use crate::foreign::reason;

/// Why a policy gave no usable answer. The message is for its author, who has a hand in much of what it says.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum Fault {
    #[error("it trapped: {}", reason(.0))]
    Trap(String),
    #[error("it used more than {0:?} of a processor")]
    Time(Duration),
    /// No failure of its own: whatever waits, waits outside of it.
    #[error("it was not done when the time for all policies was over")]
    Late,
    /// Of a call that ran when the policy's circuit opened, or came later.
    #[error("it failed too often and rests")]
    Rests,
    #[error("it needs more than {} of memory", .0.display().iec())]
    Memory(ByteSize),
    #[error("its calls are nested too deeply: the stack is full")]
    Stack,
    #[error("it hands over more than {} at once", .0.display().iec())]
    Output(ByteSize),
    #[error("its answer makes no sense: {}", reason(.0))]
    Nonsense(String),
    #[error("it reports an error: {}", reason(.0))]
    Own(String),
    #[error("the host could not run it: {}", reason(.0))]
    Host(String),
}

impl Fault {
    /// For metrics and verdicts.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Fault::Trap(_) => "trap",
            Fault::Time(_) => "time",
            Fault::Late => "late",
            Fault::Rests => "bypassed",
            Fault::Memory(_) => "memory",
            Fault::Stack => "stack",
            Fault::Output(_) => "output",
            Fault::Nonsense(_) => "nonsense",
            Fault::Own(_) => "error",
            Fault::Host(_) => "host",
        }
    }

    /// What ended a call. Where the host did, it noted why. A guest that was refused memory mostly gives up by itself a moment later;
    /// but it may as well go on, and fail in another way.
    pub(super) fn of(error: &wasmtime::Error, state: &State) -> Fault {
        let limits = &state.limits;
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => state.ended.clone().unwrap_or(Fault::Time(limits.time)),
            Some(Trap::StackOverflow) => Fault::Stack,
            None if Fault::is_output(error) => Fault::Output(limits.output),
            _ if state.memory.refused() => Fault::Memory(limits.memory),
            Some(Trap::UnreachableCodeReached) => {
                let said = state.last_words().map_or_else(String::new, |words| format!(" ({words})"));
                Fault::Trap(format!("it gave up, as a panic or an abort does{said}"))
            }
            Some(trap) => Fault::Trap(trap.to_string()),
            None => Fault::of_host(error),
        }
    }

    /// wasmtime has no type for these: what it says is the only difference.
    fn is_output(error: &wasmtime::Error) -> bool {
        format!("{error:#}").contains("fuel allocated for hostcalls")
    }

    fn of_host(error: &wasmtime::Error) -> Fault {
        let text = format!("{error:#}");
        let answer = ["string", "list", "utf", "discriminant", "pointer", "bounds", "char"];
        match answer.iter().any(|word| text.contains(word)) {
            true => Fault::Nonsense(text),
            false => Fault::Host(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use wasmtime::ResourceLimiter as _;

    use super::*;
    use crate::Limits;

    #[test]
    fn memory_that_was_refused_hides_nothing_that_ended_the_call_for_another_reason() {
        let time = Fault::Time(Duration::from_millis(100));
        let memory = Fault::Memory(ByteSize::mib(64));
        let cases = [
            (Trap::Interrupt.into(), Some(Fault::Rests), Fault::Rests),
            (Trap::Interrupt.into(), Some(Fault::Late), Fault::Late),
            (Trap::Interrupt.into(), Some(time.clone()), time),
            (Trap::StackOverflow.into(), None, Fault::Stack),
            (Trap::UnreachableCodeReached.into(), None, memory.clone()),
            (Trap::MemoryOutOfBounds.into(), None, memory.clone()),
            (wasmtime::Error::msg("memory minimum size exceeds memory limits"), None, memory),
            (
                wasmtime::Error::msg("fuel allocated for hostcalls has been exhausted"),
                None,
                Fault::Output(ByteSize::mib(1)),
            ),
        ];
        for (error, ended, expected) in cases {
            let mut state = State::new("x".into(), Arc::new(Limits::default()));
            assert!(!state.memory.memory_growing(0, 1 << 30, None).unwrap());
            state.ended = ended;
            assert_eq!(Fault::of(&error, &state), expected, "{error:#}");
        }
    }
}

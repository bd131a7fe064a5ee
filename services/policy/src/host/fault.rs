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

    /// What ended a call. A guest that was refused memory mostly traps by itself a moment later, so what the
    /// state noted comes first.
    pub(super) fn of(error: &wasmtime::Error, state: &State) -> Fault {
        let limits = &state.limits;
        if state.memory.refused() {
            return Fault::Memory(limits.memory);
        }
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => state.ended.clone().unwrap_or(Fault::Time(limits.time)),
            Some(Trap::StackOverflow) => Fault::Stack,
            Some(Trap::UnreachableCodeReached) => {
                let said = state.last_words().map_or_else(String::new, |words| format!(" ({words})"));
                Fault::Trap(format!("it gave up, as a panic or an abort does{said}"))
            }
            Some(trap) => Fault::Trap(trap.to_string()),
            None => Fault::of_host(error, limits.output),
        }
    }

    /// wasmtime has no type for these: what it says is the only difference.
    fn of_host(error: &wasmtime::Error, output: ByteSize) -> Fault {
        let text = format!("{error:#}");
        if text.contains("fuel allocated for hostcalls") {
            return Fault::Output(output);
        }
        let answer = ["string", "list", "utf", "discriminant", "pointer", "bounds", "char"];
        match answer.iter().any(|word| text.contains(word)) {
            true => Fault::Nonsense(text),
            false => Fault::Host(text),
        }
    }
}

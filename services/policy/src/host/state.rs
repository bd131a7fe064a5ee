//! What the host keeps for one call: how much memory it has used, what it has logged.

use std::sync::Arc;

use wasmtime::{ResourceLimiter, Result};

use super::bindings::log::{self, Level};
use super::fault::Fault;
use crate::Limits;

/// Lines that one call may log, and what is kept of one, in bytes.
const LOG_LINES_MAX: usize = 32;
const LOG_LINE_MAX: usize = 1024;
/// Memories, tables and core instances of one component: interpreters have some forty.
const PARTS_MAX: usize = 128;
/// What one element of a table takes, in bytes.
const TABLE_ELEMENT: usize = 16;

pub(crate) struct State {
    policy: Arc<str>,
    pub(super) limits: Arc<Limits>,
    pub(super) memory: Memory,
    /// Why the host ended the call.
    pub(super) ended: Option<Fault>,
    lines: usize,
    last_words: Option<String>,
}

/// All that an instance has allocated, of all its memories and tables.
#[derive(Debug, Default)]
pub(super) struct Memory {
    used: usize,
    max: usize,
    refused: bool,
}

impl State {
    pub(super) fn new(policy: Arc<str>, limits: Arc<Limits>) -> State {
        let max = usize::try_from(limits.memory.as_u64()).unwrap_or(usize::MAX);
        let memory = Memory { max, ..Memory::default() };
        State { policy, limits, memory, ended: None, lines: 0, last_words: None }
    }

    /// The last line of level `error`: what a guest said before it gave up.
    pub(super) fn last_words(&self) -> Option<&str> {
        self.last_words.as_deref()
    }
}

impl Memory {
    /// At the most. Memory never shrinks while a guest runs.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    pub(super) fn refused(&self) -> bool {
        self.refused
    }

    fn grow(&mut self, current: usize, desired: usize) -> bool {
        let used = self.used.saturating_add(desired.saturating_sub(current));
        if used > self.max {
            self.refused = true;
            return false;
        }
        self.used = used;
        true
    }
}

impl ResourceLimiter for Memory {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        Ok(self.grow(current, desired))
    }

    fn table_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> Result<bool> {
        Ok(self.grow(current.saturating_mul(TABLE_ELEMENT), desired.saturating_mul(TABLE_ELEMENT)))
    }

    fn instances(&self) -> usize {
        PARTS_MAX
    }

    fn tables(&self) -> usize {
        PARTS_MAX
    }

    fn memories(&self) -> usize {
        PARTS_MAX
    }
}

impl log::Host for State {
    fn write(&mut self, level: Level, mut message: String) {
        message.truncate(message.floor_char_boundary(LOG_LINE_MAX));
        let policy = &*self.policy;
        self.lines += 1;
        if self.lines > LOG_LINES_MAX {
            metrics::counter!("sluice_policy_log_lines_dropped_total", "policy" => policy.to_owned())
                .increment(1);
            return;
        }
        match level {
            Level::Debug => tracing::debug!(policy, "{message:?}"),
            Level::Info => tracing::info!(policy, "{message:?}"),
            Level::Warn => tracing::warn!(policy, "{message:?}"),
            Level::Error => tracing::warn!(policy, error = true, "{message:?}"),
        }
        if matches!(level, Level::Error) {
            self.last_words = Some(message);
        }
    }
}

impl super::bindings::facts::Host for State {}

impl super::bindings::eligibility::sluice::policy::settings::Host for State {}

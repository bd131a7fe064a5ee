//! Spends what the quota service hands out, without a call for each time.
//!
//! ```text
//! Allowances --> Spender      a project and a metric: async, asks the quota service when it must
//!                  `-- Purse      pure: two windows, how much to draw, what to do while nobody answers
//!                        `-- Block    pure: the tickets of one window, a few atomics
//! grant, calendar                 pure: what the quota service itself gives, and when windows end
//! ```
//!
//! A ticket is drawn once, from a counter that only grows, and is good in its window alone. So a limit is never exceeded,
//! whoever dies and whatever answer is lost; what is lost with them is not used by anybody. `docs/quota.md` has the bounds.
//!
//! Time: windows are those of the quota service's clock. What it hands out says how long it is good for, so that the clock of who
//! spends it does not matter.

mod allowances;
mod block;
mod config;
pub mod grant;
mod meters;
mod purse;

pub mod calendar;

pub use allowances::{Allowances, Spender};
pub use block::{Block, Take};
pub use config::{Config, Unanswered};
pub use purse::{Class, Purse, Spend};

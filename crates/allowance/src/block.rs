//! The tickets that one spender holds of one window. Pure: it is told what time it is, in milliseconds of the process.
//!
//! [`Block::take`] may be called by any number of threads; everything else by one at a time, who has asked the quota service.
//! Nothing is ever put back: what is taken in vain is lost, since the block may have become that of another window meanwhile.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};

use proto::{QuotaBlock, QuotaMode, QuotaWindow};

use crate::calendar::length_ms;

/// What is used up is asked for again after this long, should its limit have been raised. To ask draws nothing.
const ASK_AGAIN_MS: u64 = 15_000;
/// No window has this number.
const NO_NUMBER: u64 = u64::MAX;

/// The tickets of one window, and what is known of its limit.
#[derive(Debug)]
pub struct Block {
    window: QuotaWindow,
    /// Tickets. Below 0 where nothing is refused.
    left: AtomicI64,
    /// When the window ends.
    ends: AtomicU64,
    rule: AtomicU8,
    /// There is nothing to draw any more in this window.
    exhausted: AtomicBool,
    ask_again: AtomicU64,
    /// With so many tickets left it is time to draw more.
    low: AtomicI64,
    /// As it was last heard of.
    limit: AtomicU64,
    /// Of the limit, for everyone, as it was last heard of.
    remaining: AtomicU64,
    number: AtomicU64,
    safe: AtomicU64,
    /// The end of the window in which the safe share was taken.
    safe_taken: AtomicU64,
}

/// What holds for a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Nobody has said.
    Unheard,
    Unlimited,
    Shadow,
    Enforced,
}

/// What became of an attempt to take tickets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// `draw`: it is time to draw more; `over`: beyond a limit that is only watched.
    Taken {
        draw: bool,
        over: bool,
    },
    /// There may be more: draw first.
    Draw,
    Exhausted {
        ends_in_ms: u64,
    },
}

impl Block {
    pub fn new(window: QuotaWindow) -> Block {
        Block {
            window,
            left: AtomicI64::new(0),
            ends: AtomicU64::new(0),
            rule: AtomicU8::new(Rule::Unheard as u8),
            exhausted: AtomicBool::new(false),
            ask_again: AtomicU64::new(0),
            low: AtomicI64::new(0),
            limit: AtomicU64::new(u64::MAX),
            remaining: AtomicU64::new(u64::MAX),
            number: AtomicU64::new(NO_NUMBER),
            safe: AtomicU64::new(0),
            safe_taken: AtomicU64::new(u64::MAX),
        }
    }

    pub fn window(&self) -> QuotaWindow {
        self.window
    }

    /// As it was last heard of; `u64::MAX` when there is none.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Acquire)
    }

    pub(crate) fn is_unheard(&self) -> bool {
        self.rule() == Rule::Unheard
    }

    /// Takes `amount` tickets, or none. More than the limit is as much as the limit: else it could never be had.
    pub fn take(&self, amount: u64, now: u64) -> Take {
        let (rule, ends) = (self.rule(), self.ends.load(Ordering::Acquire));
        if rule == Rule::Enforced {
            let amount = self.possible(amount);
            if now < ends {
                let take = |left: i64| left.checked_sub(amount).filter(|left| *left >= 0);
                if let Ok(before) = self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, take) {
                    let low = before - amount <= self.low.load(Ordering::Acquire);
                    return Take::Taken { draw: low && !self.exhausted.load(Ordering::Acquire), over: false };
                }
            }
            return self.nothing_left(ends, now);
        }
        let amount = clamped(amount);
        let left = self.left.fetch_sub(amount, Ordering::AcqRel).saturating_sub(amount);
        let ended = now >= ends;
        let used_up = self.exhausted.load(Ordering::Acquire) && !ended;
        let low = left <= self.low.load(Ordering::Acquire);
        let draw = ended || low && (!used_up || now >= self.ask_again.load(Ordering::Acquire));
        Take::Taken { draw, over: rule == Rule::Shadow && used_up && left < 0 }
    }

    /// What [`Block::take`] would come to, without taking anything.
    pub fn look(&self, amount: u64, now: u64) -> Take {
        let ends = self.ends.load(Ordering::Acquire);
        if self.rule() != Rule::Enforced
            || now < ends && self.left.load(Ordering::Acquire) >= self.possible(amount)
        {
            return Take::Taken { draw: false, over: false };
        }
        self.nothing_left(ends, now)
    }

    fn nothing_left(&self, ends: u64, now: u64) -> Take {
        let known = now < ends && now < self.ask_again.load(Ordering::Acquire);
        match known && self.exhausted.load(Ordering::Acquire) {
            true => Take::Exhausted { ends_in_ms: ends - now },
            false => Take::Draw,
        }
    }

    /// Until when nobody may spend who must leave so many percent of the limit to others; in milliseconds from now.
    pub fn kept_for_others(&self, percent: u64, now: u64) -> Option<u64> {
        let ends = self.ends.load(Ordering::Acquire);
        if percent == 0 || self.rule() != Rule::Enforced || now >= ends {
            return None;
        }
        let (limit, remaining) = (self.limit(), self.remaining.load(Ordering::Acquire));
        let kept = u128::from(remaining) * 100 < u128::from(limit) * u128::from(percent);
        kept.then(|| ends - now)
    }

    /// Tickets to draw for a block of `target`, and how many of them somebody waits for who needs `need`.
    pub(crate) fn wanted(&self, target: u64, need: u64, now: u64) -> (u64, u64) {
        let (rule, left) = (self.rule(), self.left.load(Ordering::Acquire));
        let ended = now >= self.ends.load(Ordering::Acquire);
        match rule {
            // Of what is not known yet it is not known either whether somebody may go on without.
            Rule::Enforced | Rule::Unheard => {
                let left = if ended { 0 } else { left.max(0).unsigned_abs() };
                let need = need.min(self.limit().max(1)).saturating_sub(left);
                (target.saturating_sub(left).max(need), need)
            }
            // What was spent beyond a limit that is only watched is no debt.
            Rule::Shadow if ended => (target, 0),
            // What was spent already is drawn as well, so that it is counted.
            _ => (clamped(target).saturating_sub(left).max(0).unsigned_abs(), 0),
        }
    }

    /// The quota service answered a claim that was made at `asked_at`. `keep`: more is drawn before everything is used up.
    pub(crate) fn answered(&self, block: &QuotaBlock, asked_at: u64, keep: bool) {
        let rule = match (block.limit, block.mode()) {
            (None, _) => Rule::Unlimited,
            (Some(_), QuotaMode::Shadow) => Rule::Shadow,
            (Some(_), QuotaMode::Enforce) => Rule::Enforced,
        };
        let granted = clamped(block.granted);
        let same = self.number.swap(block.number, Ordering::AcqRel) == block.number;
        if same {
            if rule == Rule::Enforced {
                self.left.fetch_max(0, Ordering::AcqRel);
            }
            self.left.fetch_add(granted, Ordering::AcqRel);
        } else {
            self.left.store(granted, Ordering::Release);
        }
        let left = self.left.load(Ordering::Acquire);
        self.low.store(if keep { left.max(0) / 4 } else { -1 }, Ordering::Release);
        self.limit.store(block.limit.unwrap_or(u64::MAX), Ordering::Release);
        self.remaining.store(block.limit.map_or(u64::MAX, |_| block.left), Ordering::Release);
        self.safe.store(block.safe, Ordering::Release);
        self.exhausted.store(block.limit.is_some() && block.left == 0, Ordering::Release);
        self.ask_again.store(asked_at.saturating_add(ASK_AGAIN_MS), Ordering::Release);
        // Last: from here on the tickets count. The service said when it ends after it was asked, so this is never too late.
        let lasts = block.ends_in_ms.min(length_ms(self.window));
        self.ends.store(asked_at.saturating_add(lasts), Ordering::Release);
        self.rule.store(rule as u8, Ordering::Release);
    }

    /// Nobody answered: of a limit that was heard of, the safe share is taken, once in each window.
    pub(crate) fn unanswered(&self, now: u64) {
        match self.rule() {
            Rule::Unheard => {}
            // What was spent meanwhile is not made up for later, all at once.
            Rule::Unlimited | Rule::Shadow => self.left.store(0, Ordering::Release),
            Rule::Enforced => self.take_safe_share(now),
        }
    }

    fn take_safe_share(&self, now: u64) {
        let (known, length) = (self.ends.load(Ordering::Acquire), length_ms(self.window));
        let ended = now >= known;
        if !ended && self.exhausted.load(Ordering::Acquire) {
            return self.ask_again.store(now.saturating_add(ASK_AGAIN_MS), Ordering::Release);
        }
        let ends = if ended { known + (1 + (now - known) / length) * length } else { known };
        // Answers took different times, so one window may seem to end a little earlier or later.
        if self.safe_taken.swap(ends, Ordering::AcqRel).abs_diff(ends) < length / 2 {
            return;
        }
        let share = clamped(self.safe.load(Ordering::Acquire));
        self.low.store(-1, Ordering::Release);
        if ended {
            self.number.store(NO_NUMBER, Ordering::Release);
            self.exhausted.store(false, Ordering::Release);
            self.remaining.store(self.limit(), Ordering::Release);
            self.left.store(share, Ordering::Release);
            self.ends.store(ends, Ordering::Release);
        } else {
            self.left.fetch_add(share, Ordering::AcqRel);
        }
    }

    #[cfg(test)]
    pub(crate) fn left_now(&self) -> i64 {
        self.left.load(Ordering::Acquire)
    }

    fn possible(&self, amount: u64) -> i64 {
        clamped(amount.min(self.limit().max(1)))
    }

    fn rule(&self) -> Rule {
        match self.rule.load(Ordering::Acquire) {
            rule if rule == Rule::Unlimited as u8 => Rule::Unlimited,
            rule if rule == Rule::Shadow as u8 => Rule::Shadow,
            rule if rule == Rule::Enforced as u8 => Rule::Enforced,
            _ => Rule::Unheard,
        }
    }
}

/// As a number of tickets: far from where sums of them could overflow.
fn clamped(amount: u64) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX).min(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAKEN: Take = Take::Taken { draw: false, over: false };

    fn answer(number: u64, granted: u64, limit: u64, left: u64) -> QuotaBlock {
        QuotaBlock {
            window: QuotaWindow::Minute.into(),
            number,
            ends_in_ms: 10_000,
            granted,
            limit: Some(limit),
            left,
            safe: 7,
            ..QuotaBlock::default()
        }
    }

    fn heard(block: &QuotaBlock) -> Block {
        let heard = Block::new(QuotaWindow::Minute);
        heard.answered(block, 1_000, true);
        heard
    }

    #[test]
    fn tickets_are_taken_once_and_more_are_drawn_when_a_quarter_is_left() {
        let block = heard(&answer(1, 8, 100, 92));
        assert_eq!((block.take(5, 1_000), block.look(1, 1_000)), (TAKEN, TAKEN));
        assert_eq!(block.take(1, 1_000), Take::Taken { draw: true, over: false });
        assert_eq!((block.take(3, 1_000), block.look(3, 1_000)), (Take::Draw, Take::Draw));
        assert_eq!(block.wanted(8, 3, 1_000), (6, 1));
        block.answered(&answer(1, 6, 100, 86), 2_000, true);
        assert_eq!(block.take(8, 2_000), Take::Taken { draw: true, over: false });
    }

    #[test]
    fn tickets_of_a_window_that_ended_are_worth_nothing() {
        let block = heard(&answer(1, 8, 100, 92));
        assert_eq!(block.take(1, 10_999), TAKEN);
        assert_eq!(block.take(1, 11_000), Take::Draw);
        block.answered(&answer(2, 3, 100, 97), 11_000, true);
        assert_eq!(block.take(4, 11_000), Take::Draw, "those before are gone");
        assert_eq!(block.take(3, 11_000), Take::Taken { draw: true, over: false });
    }

    #[test]
    fn what_is_used_up_is_refused_until_the_window_ends() {
        let block = heard(&answer(1, 2, 100, 0));
        assert_eq!(block.take(2, 1_000), TAKEN, "nothing more is drawn");
        assert_eq!(block.take(1, 4_000), Take::Exhausted { ends_in_ms: 7_000 });
        assert_eq!(block.take(1, 11_000), Take::Draw);
        let day = Block::new(QuotaWindow::Day);
        day.answered(&QuotaBlock { ends_in_ms: 80_000_000, ..answer(1, 0, 100, 0) }, 0, true);
        assert!(matches!(day.take(1, ASK_AGAIN_MS - 1), Take::Exhausted { .. }));
        assert_eq!(day.take(1, ASK_AGAIN_MS), Take::Draw, "its limit may have been raised");
    }

    #[test]
    fn a_limit_that_is_smaller_than_what_is_asked_for_is_enough_for_it() {
        let block = heard(&answer(1, 3, 3, 0));
        assert_eq!(block.take(100, 1_000), TAKEN);
        assert!(matches!(block.take(100, 1_000), Take::Exhausted { .. }));
        let nothing = heard(&answer(1, 0, 0, 0));
        assert!(matches!(nothing.take(1, 1_000), Take::Exhausted { .. }));
    }

    #[test]
    fn a_limit_that_is_only_watched_refuses_nothing_and_says_when_it_would() {
        let shadow =
            |granted, left| QuotaBlock { mode: QuotaMode::Shadow.into(), ..answer(1, granted, 10, left) };
        let block = heard(&shadow(10, 0));
        assert!(matches!(block.take(10, 1_000), Take::Taken { over: false, .. }));
        assert_eq!(block.take(1, 1_000), Take::Taken { draw: false, over: true });
        assert_eq!(block.wanted(5, 1, 11_000), (5, 0), "no debt in the next window");
        let unlimited = heard(&QuotaBlock { limit: None, ..answer(1, 4, 0, 0) });
        assert_eq!(unlimited.take(10, 1_000), Take::Taken { draw: true, over: false });
        assert_eq!(unlimited.wanted(4, 1, 1_000), (10, 0), "all that is spent is counted");
    }

    #[test]
    fn a_safe_share_is_taken_once_in_each_window_without_an_answer() {
        let block = heard(&answer(1, 1, 100, 50));
        for (now, tickets) in [(1_000, 8), (2_000, 0), (11_000, 7), (12_000, 0), (80_000, 7)] {
            block.unanswered(now);
            let taken = (0..100).take_while(|_| block.take(1, now) != Take::Draw).count();
            assert_eq!(taken, tickets, "at {now}");
        }
        block.answered(&answer(3, 5, 100, 50), 81_000, true);
        assert_eq!(block.take(6, 81_000), Take::Draw, "what is handed out again is all there is");
        let used_up = heard(&answer(1, 0, 100, 0));
        used_up.unanswered(2_000);
        assert!(matches!(used_up.take(1, 2_000), Take::Exhausted { .. }), "that is known");
    }

    #[test]
    fn lower_classes_leave_the_rest_to_others() {
        let block = heard(&answer(1, 1, 100, 24));
        assert_eq!(block.kept_for_others(25, 1_000), Some(10_000));
        assert_eq!(block.kept_for_others(24, 1_000), None);
        assert_eq!(block.kept_for_others(0, 1_000), None);
        assert_eq!(block.kept_for_others(25, 11_000), None, "another window");
    }
}

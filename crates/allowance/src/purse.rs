//! What one spender holds of one project and metric: tickets of the minute and of the day. Pure, as [`Block`] is.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proto::{QuotaBlock, QuotaMetric, QuotaWant, QuotaWindow};

use crate::Unanswered;
use crate::block::{Block, Take};

/// A block lasts about so long at the pace of the last one.
const BLOCK_LASTS_MS: u64 = 500;
/// A block is at most so many times the one before: a burst is not a pace.
const GROWTH_MAX: u64 = 8;
/// After a claim that nobody answered, the next one waits so long.
pub(crate) const CLAIM_PAUSE_MS: u64 = 2_000;

/// Who spends. What is left of a limit is for the higher classes alone, once it is little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Demand,
    Prefetch,
    Background,
}

/// Tickets of both windows.
#[derive(Debug)]
pub struct Purse {
    metric: QuotaMetric,
    unanswered: Unanswered,
    minute: Block,
    day: Block,
    /// The first claim has ended, one way or the other.
    asked: AtomicBool,
    /// Since the last claim.
    spent: AtomicU64,
    claimed_at: AtomicU64,
    target: AtomicU64,
    /// No claim is made before.
    ask_again: AtomicU64,
}

/// What became of an attempt to spend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spend {
    /// `draw`: it is time to claim more; `over`: beyond a limit that is only watched.
    Spent {
        draw: bool,
        over: bool,
    },
    /// Claim first.
    Draw,
    Refused {
        window: QuotaWindow,
        limit: u64,
        ends_in_ms: u64,
    },
}

impl Class {
    /// Of a limit, in percent.
    fn leaves(self) -> u64 {
        match self {
            Class::Demand => 0,
            Class::Prefetch => 10,
            Class::Background => 25,
        }
    }
}

impl Purse {
    pub fn new(metric: QuotaMetric, unanswered: Unanswered) -> Purse {
        Purse {
            metric,
            unanswered,
            minute: Block::new(QuotaWindow::Minute),
            day: Block::new(QuotaWindow::Day),
            asked: AtomicBool::new(false),
            spent: AtomicU64::new(0),
            claimed_at: AtomicU64::new(0),
            target: AtomicU64::new(first_block(metric)),
            ask_again: AtomicU64::new(0),
        }
    }

    /// Spends `amount` of both windows, or of none.
    pub fn spend(&self, amount: u64, class: Class, now: u64) -> Spend {
        let unknown = self.minute.is_unheard();
        if unknown && (self.unanswered == Unanswered::Closed || !self.asked.load(Ordering::Acquire)) {
            return Spend::Draw;
        }
        for block in [&self.day, &self.minute] {
            if let Some(ends_in_ms) = block.kept_for_others(class.leaves(), now) {
                return refused(block, ends_in_ms);
            }
        }
        // Looked at before anything is taken: what one window gives is lost when the other has nothing.
        if let Err(not) = outcome(&self.day, self.day.look(amount, now)) {
            return not;
        }
        let (minute, day) = match outcome(&self.minute, self.minute.take(amount, now)) {
            Ok(minute) => match outcome(&self.day, self.day.take(amount, now)) {
                Ok(day) => (minute, day),
                Err(not) => return not,
            },
            Err(not) => return not,
        };
        self.spent.fetch_add(amount, Ordering::AcqRel);
        Spend::Spent { draw: minute.0 || day.0, over: minute.1 || day.1 }
    }

    /// Whether a claim is due, or nobody answered only just now.
    pub fn may_ask(&self, now: u64) -> bool {
        now >= self.ask_again.load(Ordering::Acquire)
    }

    /// What to claim, when somebody waits who needs `need`.
    pub fn wants(&self, need: u64, now: u64) -> Vec<QuotaWant> {
        let target = self.next_target(now);
        let want = |block: &Block| {
            let (amount, need) = block.wanted(target, need, now);
            QuotaWant { window: block.window().into(), amount, need }
        };
        vec![want(&self.minute), want(&self.day)]
    }

    /// Tickets came, for a claim that was made at `asked_at`.
    pub fn answered(&self, blocks: &[QuotaBlock], asked_at: u64) {
        for block in blocks {
            let keep = first_block(self.metric) > 0;
            match block.window() {
                QuotaWindow::Minute => self.minute.answered(block, asked_at, keep),
                QuotaWindow::Day => self.day.answered(block, asked_at, keep),
                QuotaWindow::Unspecified => {}
            }
        }
        self.ask_again.store(0, Ordering::Release);
        self.asked.store(true, Ordering::Release);
    }

    /// A claim was not answered, or is not even made because the last one was not.
    pub fn unanswered(&self, now: u64) {
        if self.may_ask(now) {
            self.ask_again.store(now.saturating_add(CLAIM_PAUSE_MS), Ordering::Release);
        }
        if self.unanswered == Unanswered::Safe {
            self.minute.unanswered(now);
            self.day.unanswered(now);
        }
        self.asked.store(true, Ordering::Release);
    }

    /// Of the minute, as it was last heard of.
    pub fn limit(&self) -> u64 {
        self.minute.limit()
    }

    /// As much as lasts for a while at the pace since the last claim.
    fn next_target(&self, now: u64) -> u64 {
        let first = first_block(self.metric);
        let spent = self.spent.swap(0, Ordering::AcqRel);
        let passed = now.saturating_sub(self.claimed_at.swap(now, Ordering::AcqRel)).max(1);
        let paced = spent.saturating_mul(BLOCK_LASTS_MS) / passed;
        let most = self.target.load(Ordering::Acquire).saturating_mul(GROWTH_MAX);
        let target = paced.min(most).max(first);
        self.target.store(target, Ordering::Release);
        target
    }
}

/// Tickets of the first block; none where each is drawn when it is needed, as imports are few and slow.
fn first_block(metric: QuotaMetric) -> u64 {
    match metric {
        QuotaMetric::ContentRequests => 64,
        QuotaMetric::ContentBytes => 16 * 1024 * 1024,
        QuotaMetric::Imports | QuotaMetric::Unspecified => 0,
    }
}

/// Whether to draw more, and whether it is over; or why nothing was taken.
fn outcome(block: &Block, take: Take) -> Result<(bool, bool), Spend> {
    match take {
        Take::Taken { draw, over } => Ok((draw, over)),
        Take::Draw => Err(Spend::Draw),
        Take::Exhausted { ends_in_ms } => Err(refused(block, ends_in_ms)),
    }
}

fn refused(block: &Block, ends_in_ms: u64) -> Spend {
    Spend::Refused { window: block.window(), limit: block.limit(), ends_in_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(window: QuotaWindow, granted: u64, left: u64) -> QuotaBlock {
        let (number, ends_in_ms, limit) = (1, 10_000, Some(1000));
        let window = window.into();
        QuotaBlock { window, number, ends_in_ms, granted, limit, left, safe: 3, ..QuotaBlock::default() }
    }

    fn purse(minute: u64, day: u64) -> Purse {
        let purse = Purse::new(QuotaMetric::ContentRequests, Unanswered::Safe);
        let blocks = [block(QuotaWindow::Minute, minute, 500), block(QuotaWindow::Day, day, 500)];
        purse.answered(&blocks, 0);
        purse
    }

    fn is_spent(spend: Spend) -> bool {
        matches!(spend, Spend::Spent { .. })
    }

    #[test]
    fn both_windows_must_have_it_and_none_loses_what_the_other_lacks() {
        let purse = purse(10, 5);
        assert!(is_spent(purse.spend(5, Class::Demand, 0)));
        assert_eq!(purse.spend(5, Class::Demand, 0), Spend::Draw, "of the day");
        assert_eq!(purse.minute.left_now(), 5);
        let wants = purse.wants(5, 0);
        assert_eq!((wants[0].need, wants[1].need), (0, 5));
    }

    #[test]
    fn the_first_one_asks_and_then_nobody_waits_for_who_is_not_there() {
        for (unanswered, open) in
            [(Unanswered::Safe, true), (Unanswered::Open, true), (Unanswered::Closed, false)]
        {
            let purse = Purse::new(QuotaMetric::ContentRequests, unanswered);
            assert_eq!(purse.spend(1, Class::Demand, 5), Spend::Draw);
            purse.unanswered(5);
            assert_eq!(is_spent(purse.spend(1, Class::Background, 6)), open, "{unanswered:?}");
            assert!(!purse.may_ask(6) && purse.may_ask(5 + CLAIM_PAUSE_MS));
        }
    }

    #[test]
    fn blocks_follow_the_pace() {
        let purse = purse(1_000_000, 1_000_000);
        let target = |spent: u64, now| {
            assert!(spent == 0 || is_spent(purse.spend(spent, Class::Demand, 0)));
            purse.next_target(now)
        };
        assert_eq!(target(0, 1_000), 64);
        assert_eq!(target(600, 2_000), 300, "half a second of it");
        assert_eq!(target(1000, 2_001), 2_400, "not everything at once");
        assert_eq!(target(10, 9_000), 64);
    }

    #[test]
    fn the_background_starves_first_then_what_is_only_expected() {
        let purse = purse(10, 10);
        let refused = |left, class| {
            purse.answered(&[block(QuotaWindow::Minute, 0, left)], 0);
            matches!(purse.spend(1, class, 0), Spend::Refused { window: QuotaWindow::Minute, .. })
        };
        assert!(!refused(250, Class::Background) && refused(249, Class::Background));
        assert!(!refused(249, Class::Prefetch) && refused(99, Class::Prefetch));
        assert!(!refused(1, Class::Demand));
    }

    #[test]
    fn imports_are_drawn_one_by_one() {
        let purse = Purse::new(QuotaMetric::Imports, Unanswered::Safe);
        assert_eq!(purse.spend(1, Class::Demand, 0), Spend::Draw);
        purse.answered(&[block(QuotaWindow::Minute, 0, 9), block(QuotaWindow::Day, 0, 9)], 0);
        let wants = purse.wants(1, 0);
        assert_eq!((wants[0].amount, wants[0].need), (1, 1));
        purse.answered(&[block(QuotaWindow::Minute, 1, 8), block(QuotaWindow::Day, 1, 8)], 0);
        assert_eq!(purse.spend(1, Class::Demand, 0), Spend::Spent { draw: false, over: false });
        assert_eq!(purse.spend(1, Class::Demand, 0), Spend::Draw);
    }
}

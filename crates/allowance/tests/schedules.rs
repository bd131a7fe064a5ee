//! Generated schedules of spending, with spenders and allocators that die, questions and answers that are lost or late, and clocks
//! that differ: no window is over-granted, and what is not used is what was lost.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::collections::HashMap;

use allowance::{Class, Purse, Spend, Unanswered, calendar, grant};
use proptest::prelude::*;
use proto::{QuotaBlock, QuotaMetric, QuotaWant, QuotaWindow};

const MINUTE: u64 = 60_000;
/// As far apart as clocks are here: ten minutes.
const SKEW: i64 = 600_000;

#[derive(Clone, Copy, Debug)]
enum Fate {
    Answered,
    QuestionLost,
    AnswerLost,
    /// It takes so long, in milliseconds.
    Late(u64),
}

#[derive(Clone, Debug)]
enum Op {
    Spend {
        who: usize,
        amount: u64,
        allocator: usize,
        fate: Fate,
    },
    Advance(u64),
    SpenderDies(usize),
    /// It forgets what it knew of the counters.
    AllocatorDies,
}

/// Who spends, since its start.
struct Spender {
    purse: Purse,
    /// What this machine's clock says when it is 0.
    clock: u64,
    /// Tickets that it was given and did not spend, by window of minutes.
    held: HashMap<u64, u64>,
}

struct World {
    unanswered: Unanswered,
    limits: HashMap<QuotaWindow, u64>,
    /// What it really is, in milliseconds since 1970.
    now: u64,
    /// By how much each allocator's clock is wrong.
    skews: Vec<i64>,
    knows: bool,
    spenders: Vec<Spender>,
    /// The counters, and what was given of them.
    sums: HashMap<(QuotaWindow, u64), u64>,
    given: HashMap<(QuotaWindow, u64), u64>,
    /// Spent and lost, by real minute.
    spent: HashMap<u64, u64>,
    lost: HashMap<u64, u64>,
    starts: u64,
}

impl World {
    fn new(unanswered: Unanswered, spenders: usize, minute: u64, day: u64, skews: Vec<i64>) -> World {
        let mut world = World {
            unanswered,
            limits: HashMap::from([(QuotaWindow::Minute, minute), (QuotaWindow::Day, day)]),
            now: 29_934_420 * MINUTE,
            skews,
            knows: true,
            spenders: Vec::new(),
            sums: HashMap::new(),
            given: HashMap::new(),
            spent: HashMap::new(),
            lost: HashMap::new(),
            starts: 0,
        };
        for _ in 0..spenders {
            let spender = world.start();
            world.spenders.push(spender);
        }
        world
    }

    fn start(&mut self) -> Spender {
        self.starts += 1;
        let purse = Purse::new(QuotaMetric::ContentRequests, self.unanswered);
        Spender { purse, clock: self.now - 1, held: HashMap::new() }
    }

    fn minute(&self) -> u64 {
        self.now / MINUTE
    }

    /// What the quota service does: one counter for each window of its own clock.
    fn allocate(&mut self, allocator: usize, wants: &[QuotaWant]) -> Vec<QuotaBlock> {
        let skew = self.skews[allocator % self.skews.len()];
        let clock = self.now.saturating_add_signed(skew);
        let spenders = self.spenders.len() as u64;
        let mut blocks = Vec::new();
        for want in wants {
            let window = want.window();
            let (limit, at) = (self.limits[&window], calendar::window(window, clock));
            let sum = self.sums.entry((window, at.number)).or_default();
            let used = if self.knows { *sum } else { 0 };
            let drawn = grant::to_draw(want.amount, want.need, Some(limit), used, spenders);
            *sum += drawn;
            let granted = grant::granted(Some(limit), *sum, drawn);
            *self.given.entry((window, at.number)).or_default() += granted;
            blocks.push(QuotaBlock {
                window: window.into(),
                number: at.number,
                ends_in_ms: at.ends_in_ms,
                granted,
                limit: Some(limit),
                left: limit.saturating_sub(*sum),
                safe: grant::safe_share(Some(limit), spenders),
                ..QuotaBlock::default()
            });
        }
        self.knows = true;
        blocks
    }

    fn clock_of(&self, who: usize) -> u64 {
        self.now - self.spenders[who].clock
    }

    /// Spends as `Allowances` does; whether it was refused.
    fn spend(&mut self, who: usize, amount: u64, allocator: usize, fate: Fate) -> bool {
        let mut spend = self.spenders[who].purse.spend(amount, Class::Demand, self.clock_of(who));
        if spend == Spend::Draw {
            self.claim(who, amount, allocator, fate);
            spend = self.spenders[who].purse.spend(amount, Class::Demand, self.clock_of(who));
        }
        match spend {
            Spend::Spent { .. } => {
                // More than the limit costs the limit.
                let cost = amount.min(self.limits[&QuotaWindow::Minute]).min(self.limits[&QuotaWindow::Day]);
                *self.spent.entry(self.minute()).or_default() += cost;
                let minute = self.minute();
                let held = self.spenders[who].held.entry(minute).or_default();
                *held = held.saturating_sub(cost);
                false
            }
            Spend::Draw | Spend::Refused { .. } => true,
        }
    }

    fn claim(&mut self, who: usize, need: u64, allocator: usize, fate: Fate) {
        let asked_at = self.clock_of(who);
        if !self.spenders[who].purse.may_ask(asked_at) {
            return self.spenders[who].purse.unanswered(asked_at);
        }
        let wants = self.spenders[who].purse.wants(need, asked_at);
        if matches!(fate, Fate::QuestionLost) {
            return self.spenders[who].purse.unanswered(asked_at);
        }
        let minute = self.minute();
        let blocks = self.allocate(allocator, &wants);
        let granted = blocks.iter().find(|block| block.window() == QuotaWindow::Minute).unwrap().granted;
        if let Fate::Late(after) = fate {
            self.now += after;
        }
        if matches!(fate, Fate::AnswerLost) {
            *self.lost.entry(minute).or_default() += granted;
            return self.spenders[who].purse.unanswered(asked_at);
        }
        *self.spenders[who].held.entry(minute).or_default() += granted;
        self.spenders[who].purse.answered(&blocks, asked_at);
    }

    fn apply(&mut self, op: &Op) {
        let count = self.spenders.len();
        match op {
            Op::Spend { who, amount, allocator, fate } => {
                self.spend(who % count, *amount, *allocator, *fate);
            }
            Op::Advance(by) => self.now += by,
            Op::SpenderDies(who) => {
                let (minute, fresh) = (self.minute(), self.start());
                let dead = std::mem::replace(&mut self.spenders[who % count], fresh);
                *self.lost.entry(minute).or_default() += dead.held.get(&minute).copied().unwrap_or(0);
            }
            Op::AllocatorDies => self.knows = false,
        }
    }

    fn check_given(&self) {
        for ((window, number), given) in &self.given {
            assert!(*given <= self.limits[window], "{given} were given of {window:?} {number}");
        }
    }
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Answered),
        1 => Just(Fate::QuestionLost),
        1 => Just(Fate::AnswerLost),
        1 => (1..5_000_u64).prop_map(Fate::Late),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => (0..8_usize, 1..20_u64, 0..4_usize, fate())
            .prop_map(|(who, amount, allocator, fate)| Op::Spend { who, amount, allocator, fate }),
        4 => (1..30_000_u64).prop_map(Op::Advance),
        1 => (0..8_usize).prop_map(Op::SpenderDies),
        1 => Just(Op::AllocatorDies),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_window_is_over_granted_whatever_the_clocks_say(
        ops in prop::collection::vec(op(), 1..400),
        skews in prop::collection::vec(-SKEW..SKEW, 1..4),
        spenders in 1..8_usize,
        minute in 0..400_u64,
        day in 0..4_000_u64,
    ) {
        let mut world = World::new(Unanswered::Safe, spenders, minute, day, skews);
        for op in &ops {
            world.apply(op);
            world.check_given();
        }
    }

    /// However wrong the spenders' clocks are: they have no say.
    #[test]
    fn what_is_spent_in_a_minute_is_the_limit_at_most(
        ops in prop::collection::vec(op(), 1..400),
        spenders in 1..8_usize,
        minute in 1..400_u64,
        day in 1..4_000_u64,
    ) {
        let mut world = World::new(Unanswered::Closed, spenders, minute, day, vec![0]);
        ops.iter().for_each(|op| world.apply(op));
        for (at, spent) in &world.spent {
            prop_assert!(*spent <= minute, "{spent} of {minute} in minute {at}");
        }
        prop_assert!(world.spent.values().sum::<u64>() <= day * (1 + (world.now / 86_400_000) - 29_934_420 * MINUTE / 86_400_000));
    }

    /// While nobody answers everyone has a share of what he had heard of, once in each window.
    #[test]
    fn what_is_spent_unasked_is_bounded(
        ops in prop::collection::vec(op(), 1..400),
        spenders in 1..8_usize,
        minute in 1..400_u64,
    ) {
        let mut world = World::new(Unanswered::Safe, spenders, minute, 1_000_000, vec![0]);
        (0..spenders).for_each(|who| { world.spend(who, 1, 0, Fate::Answered); });
        ops.iter().filter(|op| !matches!(op, Op::SpenderDies(_))).for_each(|op| world.apply(op));
        let bound = minute + minute / spenders as u64 * spenders as u64;
        for (at, spent) in &world.spent {
            prop_assert!(*spent <= bound, "{spent} of {minute} in minute {at}");
        }
    }

    /// All of a window is used, but what died with somebody, and what is too little for one more.
    #[test]
    fn what_is_not_used_is_what_was_lost(
        ops in prop::collection::vec(op(), 0..100),
        spenders in 1..8_usize,
        minute in 1..400_u64,
        amount in 1..20_u64,
    ) {
        let mut world = World::new(Unanswered::Closed, spenders, minute, 1_000_000, vec![0]);
        // What happens does so within one minute, and after it somebody wants more until nobody gets any.
        for op in ops.iter().filter(|op| !matches!(op, Op::Advance(_))) {
            world.apply(&match op {
                Op::Spend { who, allocator, fate: Fate::Late(_), .. } =>
                    Op::Spend { who: *who, amount, allocator: *allocator, fate: Fate::Answered },
                Op::Spend { who, allocator, fate, .. } =>
                    Op::Spend { who: *who, amount, allocator: *allocator, fate: *fate },
                other => other.clone(),
            });
        }
        // Who was not answered asks again after a pause.
        world.now += 3_000;
        let mut idle = 0;
        let mut at = 0;
        while idle < spenders {
            idle = if world.spend(at % spenders, amount, 0, Fate::Answered) { idle + 1 } else { 0 };
            at += 1;
        }
        let (spent, lost) = (world.spent.values().sum::<u64>(), world.lost.values().sum::<u64>());
        let remainders = spenders as u64 * (amount.min(minute) - 1);
        prop_assert!(spent + lost + remainders >= minute, "{spent} spent and {lost} lost of {minute}");
        prop_assert!(spent <= minute);
    }
}

/// Where all want as much, all get about as much.
#[test]
fn what_there_is_of_a_limit_is_shared_between_those_who_want_it() {
    let (spenders, limit) = (8, 10_000);
    let mut world = World::new(Unanswered::Safe, spenders, limit, 1_000_000, vec![0]);
    let mut got = vec![0_u64; spenders];
    let mut refused = 0;
    let mut at = 0;
    while refused < spenders {
        let who = at % spenders;
        let is_refused = world.spend(who, 1, 0, Fate::Answered);
        got[who] += u64::from(!is_refused);
        refused = if is_refused { refused + 1 } else { 0 };
        at += 1;
        // Some hundred a second.
        world.now += u64::from(at % 8 == 0);
    }
    assert_eq!(got.iter().sum::<u64>(), limit);
    let (least, most) = (got.iter().min().unwrap(), got.iter().max().unwrap());
    assert!(least * 5 >= most * 4, "{got:?}");
}

//! What the quota service gives for what was drawn from a counter.

/// Tickets of one claim, whatever is asked for.
pub const AMOUNT_MAX: u64 = 1 << 40;

/// Of `drawn` tickets, the last of which has the number `sum`, those within the limit. Claims draw different tickets, so that what
/// all of them are given together is the limit at most.
pub fn granted(limit: Option<u64>, sum: u64, drawn: u64) -> u64 {
    match limit {
        None => drawn,
        Some(limit) => limit.min(sum).saturating_sub(sum.saturating_sub(drawn)),
    }
}

/// How many tickets to draw for a claim that could use `want` and waits for `need`: blocks are a part of the limit, and of what is
/// left of it, so that none of `spenders` gets what others wait for. `used`: drawn so far, as far as is known.
pub fn to_draw(want: u64, need: u64, limit: Option<u64>, used: u64, spenders: u64) -> u64 {
    let Some(limit) = limit else { return want.max(need).min(AMOUNT_MAX) };
    let (spenders, left) = (spenders.max(1), limit.saturating_sub(used));
    let most = (limit / (4 * spenders)).min(left / (2 * spenders));
    // What is not there is not drawn: it would be missing when the limit is raised.
    want.min(most).max(need).min(left).min(AMOUNT_MAX)
}

/// What each of `spenders` may spend in a window in which nobody answers: all of them together the limit.
pub fn safe_share(limit: Option<u64>, spenders: u64) -> u64 {
    limit.map_or(0, |limit| limit / spenders.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_together_is_the_limit() {
        let (limit, mut sum, mut given) = (Some(100), 0, Vec::new());
        for drawn in [30, 1, 40, 50, 7] {
            sum += drawn;
            given.push(granted(limit, sum, drawn));
        }
        assert_eq!(given, [30, 1, 40, 29, 0]);
        assert_eq!(granted(None, 7, 7), 7);
        assert_eq!(granted(Some(10), 3, 7), 3, "no sum is less than what was added to it");
    }

    #[test]
    fn blocks_leave_something_for_others_and_always_what_is_waited_for() {
        assert_eq!(to_draw(1000, 1, Some(1000), 0, 5), 50);
        assert_eq!(to_draw(1000, 1, Some(1000), 900, 5), 10);
        assert_eq!(to_draw(1000, 80, Some(1000), 900, 5), 80);
        assert_eq!(to_draw(1000, 80, Some(1000), 950, 5), 50, "no more than there is");
        assert_eq!(to_draw(1000, 1, Some(1000), 1000, 5), 0);
        assert_eq!(to_draw(1000, 1, None, 1000, 5), 1000);
        assert_eq!(to_draw(u64::MAX, 1, None, 0, 0), AMOUNT_MAX);
    }
}

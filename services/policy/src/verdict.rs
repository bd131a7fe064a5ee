//! Verdicts: which answers of a policy make sense, and how several become one. Pure.

use proto::{Decision, Pair, Verdict};

use crate::config::{Combine, OnFailure};
use crate::foreign::brief;
use crate::host::{Fault, judge};

/// A reason code: a few words.
const REASON_MAX: usize = 64;
/// A sentence, in bytes.
const MESSAGE_MAX: usize = 1024;
const DETAILS_MAX: usize = 32;
/// Of one detail, name and value together, in bytes.
const DETAIL_MAX: usize = 1024;

/// What a policy answered, if it makes sense.
pub(crate) fn sensible(verdict: judge::Verdict) -> Result<Verdict, Fault> {
    let refuse = |what: String| Err(Fault::Nonsense(what));
    let judge::Verdict { decision, reason, message, details } = verdict;
    let refused = matches!(decision, judge::Decision::Refuse);
    if refused && (reason.is_empty() || message.is_empty()) {
        return refuse("it refuses without a reason code and a message".to_owned());
    }
    if !reason.is_empty() && !is_code(&reason) {
        return refuse(format!(
            "its reason code is {:?}: at most {REASON_MAX} of a-z, 0-9 and -",
            brief(&reason)
        ));
    }
    if message.len() > MESSAGE_MAX || message.chars().any(char::is_control) {
        return refuse(format!("its message is not one line of at most {MESSAGE_MAX} bytes"));
    }
    if details.len() > DETAILS_MAX
        || details.iter().any(|(name, value)| name.len() + value.len() > DETAIL_MAX)
    {
        return refuse(format!(
            "it has more than {DETAILS_MAX} details, or one of more than {DETAIL_MAX} bytes"
        ));
    }
    let decision = match decision {
        judge::Decision::Accept => Decision::Accept,
        judge::Decision::Refuse => Decision::Refuse,
        judge::Decision::Abstain => Decision::Abstain,
    };
    let details = details.into_iter().map(|(name, value)| Pair { name, value }).collect();
    Ok(Verdict { decision: decision.into(), reason, message, details, ..Verdict::default() })
}

/// What stands for the verdict of a policy that failed, by its failure rule.
pub(crate) fn after_failure(rule: OnFailure, kind: &str, message: &str) -> Verdict {
    let decision = match rule {
        OnFailure::Refuse => Decision::Refuse,
        OnFailure::Accept => Decision::Accept,
        OnFailure::Abstain => Decision::Abstain,
    };
    Verdict {
        decision: decision.into(),
        reason: "policy-failed".to_owned(),
        message: format!("the policy failed: {}", brief(message)),
        failure: kind.to_owned(),
        ..Verdict::default()
    }
}

/// Whether this verdict, met in order, decides by itself.
pub(crate) fn decides(combine: Combine, verdict: &Verdict) -> bool {
    combine == Combine::First && !verdict.monitored && verdict.decision() != Decision::Abstain
}

/// One decision of all verdicts. What is only monitored has no say; where nobody refuses, an image may stream.
pub(crate) fn combined(combine: Combine, verdicts: &[Verdict]) -> Decision {
    let mut voices = verdicts.iter().filter(|verdict| !verdict.monitored).map(Verdict::decision);
    let refused = match combine {
        Combine::All => voices.any(|decision| decision == Decision::Refuse),
        Combine::First => voices.find(|decision| *decision != Decision::Abstain) == Some(Decision::Refuse),
    };
    if refused { Decision::Refuse } else { Decision::Accept }
}

fn is_code(text: &str) -> bool {
    text.len() <= REASON_MAX && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(decision: Decision, monitored: bool) -> Verdict {
        Verdict { decision: decision.into(), monitored, ..Verdict::default() }
    }

    #[test]
    fn one_refusal_refuses_where_all_must_agree_and_the_first_decides_where_it_decides() {
        use Decision::{Abstain, Accept, Refuse};
        let cases: [(&[Decision], Decision, Decision); 6] = [
            (&[], Accept, Accept),
            (&[Abstain, Abstain], Accept, Accept),
            (&[Accept, Refuse], Refuse, Accept),
            (&[Refuse, Accept], Refuse, Refuse),
            (&[Abstain, Refuse, Accept], Refuse, Refuse),
            (&[Abstain, Accept, Accept], Accept, Accept),
        ];
        for (decisions, all, first) in cases {
            let verdicts: Vec<Verdict> = decisions.iter().map(|decision| verdict(*decision, false)).collect();
            assert_eq!(combined(Combine::All, &verdicts), all, "all of {decisions:?}");
            assert_eq!(combined(Combine::First, &verdicts), first, "first of {decisions:?}");
        }
    }

    #[test]
    fn what_is_monitored_has_no_say() {
        let verdicts = [verdict(Decision::Refuse, true), verdict(Decision::Accept, false)];
        for combine in [Combine::All, Combine::First] {
            assert_eq!(combined(combine, &verdicts), Decision::Accept);
            assert!(!decides(combine, &verdicts[0]));
        }
        assert!(decides(Combine::First, &verdicts[1]) && !decides(Combine::All, &verdicts[1]));
    }

    fn answer(decision: judge::Decision, reason: &str, message: &str) -> Result<Verdict, Fault> {
        sensible(judge::Verdict { decision, reason: reason.into(), message: message.into(), details: vec![] })
    }

    #[test]
    fn nonsense_is_a_failure() {
        use judge::Decision::{Accept, Refuse};
        assert_eq!(answer(Refuse, "too-large", "it is too large").unwrap().reason, "too-large");
        assert!(answer(Accept, "", "").is_ok());
        let long = "a".repeat(REASON_MAX + 1);
        let endless = "a".repeat(MESSAGE_MAX + 1);
        for (decision, reason, message, expected) in [
            (Refuse, "", "why", "without a reason code"),
            (Refuse, "why", "", "without a reason code"),
            (Refuse, "Too Large", "why", "\"Too Large\""),
            (Accept, long.as_str(), "", "at most 64"),
            (Refuse, "why", endless.as_str(), "one line"),
            (Refuse, "why", "a\u{1b}[31m", "one line"),
        ] {
            let fault = answer(decision, reason, message).unwrap_err();
            assert_eq!(fault.kind(), "nonsense");
            assert!(fault.to_string().contains(expected), "{fault}");
        }
    }

    #[test]
    fn the_failure_rule_says_what_stands_for_a_verdict() {
        for (rule, decision) in [
            (OnFailure::Refuse, Decision::Refuse),
            (OnFailure::Accept, Decision::Accept),
            (OnFailure::Abstain, Decision::Abstain),
        ] {
            let verdict = after_failure(rule, "trap", "it trapped:\nunreachable");
            assert_eq!(verdict.decision(), decision);
            assert_eq!((verdict.failure.as_str(), verdict.reason.as_str()), ("trap", "policy-failed"));
            assert_eq!(verdict.message, "the policy failed: it trapped: unreachable");
        }
    }
}

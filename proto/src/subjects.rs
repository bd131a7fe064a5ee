//! Every request that crosses the bus: its subject, and the answer it promises; and the subjects of what is only told.

use crate as v1;

/// One request the system can make.
pub trait Call: prost::Message + Default + 'static {
    /// `sluice.v1.<service>.<verb>`
    const SUBJECT: &'static str;
    type Reply: prost::Message + Default + 'static;
}

macro_rules! conversation {
    ($($subject:literal: $request:ident -> $reply:ident;)*) => {
        $(impl Call for v1::$request {
            const SUBJECT: &'static str = $subject;
            type Reply = v1::$reply;
        })*
        /// All subjects, for permissions and documentation.
        pub const SUBJECTS: &[&str] = &[$($subject),*];
    };
}

conversation! {
    "sluice.v1.fetcher.resolve": ResolveRequest -> ResolveReply;
    "sluice.v1.fetcher.follow": FollowRequest -> ResolveReply;
    "sluice.v1.fetcher.renew": RenewRequest -> RenewReply;
    "sluice.v1.fetcher.inspect": InspectRequest -> InspectReply;
    "sluice.v1.fetcher.list": ListRequest -> ListReply;
    "sluice.v1.fetcher.remove": RemoveRequest -> RemoveReply;
    "sluice.v1.fetcher.collect": CollectRequest -> CollectReply;
    "sluice.v1.fetcher.report": ReportRequest -> ReportReply;
    "sluice.v1.fetcher.repair": RepairRequest -> RepairReply;
    "sluice.v1.policy.judge": JudgeRequest -> JudgeReply;
    "sluice.v1.policy.plan": PlanRequest -> PlanReply;
    "sluice.v1.policy.policies": PoliciesRequest -> PoliciesReply;
    "sluice.v1.policy.record": RecordRequest -> RecordReply;
    "sluice.v1.cache.locate": LocateRequest -> LocateReply;
    "sluice.v1.cache.refresh": RefreshRequest -> RefreshReply;
    "sluice.v1.cache.present": PresentRequest -> LocateReply;
}

/// Events are told on `sluice.v1.event.<kind>`.
pub const EVENTS: &str = "sluice.v1.event";
/// Decisions of policies, each a `RecordedDecision`, for as long as somebody asks for them.
pub const DECISIONS: &str = "sluice.v1.policy.decision";

impl v1::EventKind {
    /// As users and subjects name it.
    pub fn code(self) -> &'static str {
        match self {
            v1::EventKind::Unspecified => "other",
            v1::EventKind::Streaming => "streaming",
            v1::EventKind::Complete => "complete",
            v1::EventKind::Fallback => "fallback",
            v1::EventKind::Denied => "denied",
            v1::EventKind::Quota => "quota",
            v1::EventKind::Degraded => "degraded",
            v1::EventKind::PolicyFailed => "policy-failed",
            v1::EventKind::PolicySet => "policy-set",
            v1::EventKind::Importing => "importing",
            v1::EventKind::Unjudged => "unjudged",
        }
    }

    pub fn from_code(code: &str) -> Option<v1::EventKind> {
        (0..).map_while(|number| v1::EventKind::try_from(number).ok()).find(|kind| kind.code() == code)
    }
}

/// The reason of a policy set that is in use now.
pub const SET_LOADED: &str = "loaded";

impl v1::Event {
    /// One that happened now, once.
    pub fn new(kind: v1::EventKind, reason: impl Into<String>, message: impl Into<String>) -> v1::Event {
        let (reason, message) = (reason.into(), message.into());
        v1::Event { kind: kind.into(), reason, message, count: 1, ..v1::Event::default() }
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: impl ToString) -> v1::Event {
        self.details.insert(name.to_owned(), value.to_string());
        self
    }

    /// Whether somebody should look.
    pub fn is_warning(&self) -> bool {
        match self.kind() {
            v1::EventKind::Streaming
            | v1::EventKind::Complete
            | v1::EventKind::Importing
            | v1::EventKind::Unjudged => false,
            v1::EventKind::PolicySet => self.reason != SET_LOADED,
            _ => true,
        }
    }

    /// `sluice.v1.event.<kind>`
    pub fn subject(&self) -> String {
        format!("{EVENTS}.{}", self.kind().code())
    }
}

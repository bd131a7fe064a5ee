//! Every request that crosses the bus: its subject, who asks, who answers, and the answer it promises; and what is only told.

use crate as v1;
use crate::conversation::{Asked, Method, Role, Told};
use crate::says::{self, Said};

/// One request the system can make.
pub trait Call: prost::Message + Default + 'static {
    /// `sluice.v1.<service>.<verb>`; `sluice.v1.admin.<service>.<verb>` for what changes or deletes what others use.
    const SUBJECT: &'static str;
    type Reply: prost::Message + Default + 'static;

    /// What it says of its sender: what a connection proves must be the same.
    fn says(&self) -> Said<'_> {
        Said::default()
    }
}

macro_rules! conversation {
    ($($subject:literal: $request:ident -> $reply:ident, $($by:ident)|+ => $of:ident $(, says $says:ident)?;)*) => {
        $(impl Call for v1::$request {
            const SUBJECT: &'static str = $subject;
            type Reply = v1::$reply;
            $(fn says(&self) -> Said<'_> {
                says::$says(self)
            })?
        })*
        /// All requests: what is asked, by whom, and who answers.
        pub const CONVERSATION: &[Asked] = &[$(Asked {
            subject: $subject,
            by: &[$(Role::$by),+],
            of: Role::$of,
            request: stringify!($request),
            reply: stringify!($reply),
        }),*];
    };
}

conversation! {
    "sluice.v1.fetcher.resolve": ResolveRequest -> ResolveReply, Frontend | Operator => Fetcher, says resolve;
    "sluice.v1.fetcher.follow": FollowRequest -> ResolveReply, Frontend | Operator => Fetcher, says follow;
    "sluice.v1.fetcher.sealing": SealingRequest -> SealingReply, Frontend | Operator => Fetcher;
    "sluice.v1.fetcher.renew": RenewRequest -> RenewReply, Frontend => Fetcher, says renew;
    "sluice.v1.fetcher.inspect": InspectRequest -> InspectReply, Operator => Fetcher;
    "sluice.v1.fetcher.list": ListRequest -> ListReply, Operator => Fetcher;
    "sluice.v1.fetcher.projects": ProjectsRequest -> ProjectsReply, Operator => Fetcher;
    "sluice.v1.fetcher.nodes": NodesRequest -> NodesReply, Operator => Fetcher;
    "sluice.v1.fetcher.clock": ClockRequest -> ClockReply, Frontend | Operator => Fetcher;
    "sluice.v1.fetcher.report": ReportRequest -> ReportReply, Frontend => Fetcher, says report;
    "sluice.v1.admin.fetcher.remove": RemoveRequest -> RemoveReply, Operator => Fetcher;
    "sluice.v1.admin.fetcher.collect": CollectRequest -> CollectReply, Operator => Fetcher;
    "sluice.v1.admin.fetcher.repair": RepairRequest -> RepairReply, Cache | Operator => Fetcher;
    "sluice.v1.admin.fetcher.revoke": RevokeRequest -> RevokeReply, Operator => Fetcher;
    "sluice.v1.admin.fetcher.switch": SwitchRequest -> SwitchReply, Operator => Fetcher;
    "sluice.v1.policy.judge": JudgeRequest -> JudgeReply, Fetcher => Policy;
    "sluice.v1.policy.plan": PlanRequest -> PlanReply, Frontend => Policy, says plan;
    "sluice.v1.policy.policies": PoliciesRequest -> PoliciesReply, Operator => Policy;
    "sluice.v1.policy.record": RecordRequest -> RecordReply, Operator => Policy;
    "sluice.v1.quota.claim": QuotaClaimRequest -> QuotaClaimReply, Fetcher | Cache => Quota;
    "sluice.v1.quota.show": QuotaShowRequest -> QuotaShowReply, Operator => Quota;
    "sluice.v1.admin.quota.set": QuotaSetRequest -> QuotaSetReply, Operator => Quota;
    "sluice.v1.cache.locate": LocateRequest -> LocateReply, Frontend => Cache;
    "sluice.v1.cache.refresh": RefreshRequest -> RefreshReply, Fetcher => Cache;
    "sluice.v1.cache.present": PresentRequest -> LocateReply, Cache => Cache;
}

/// Events are told on `sluice.v1.event.<kind>`.
pub const EVENTS: &str = "sluice.v1.event";
/// Sums of counters are kept on `sluice.v1.counter.<name>.<key>`, in a stream for each name.
pub const COUNTERS: &str = "sluice.v1.counter";
/// Decisions of policies, each a `RecordedDecision`, for as long as somebody asks for them.
pub const DECISIONS: &str = "sluice.v1.policy.decision";

/// All that was revoked, as a `Signed`, when it changes.
pub const REVOCATIONS: &str = "sluice.v1.fetcher.revocations";
/// Which nodes are there: told, as there may be too many to ask.
pub const PRESENCE: &str = "sluice.v1.mesh.present";
/// Who is there: asked of all services at once.
pub const HELLO: &str = "sluice.v1.mesh.hello";

impl Call for v1::HelloRequest {
    const SUBJECT: &'static str = HELLO;
    type Reply = v1::HelloReply;
}

/// All that is told.
pub const TOLD: &[Told] = &[
    Told {
        subject: "sluice.v1.event.*",
        by: &[Role::Fetcher, Role::Cache, Role::Frontend, Role::Policy, Role::Quota, Role::Events],
        to: &[Role::Events, Role::Operator],
        message: "Event",
    },
    Told { subject: REVOCATIONS, by: &[Role::Fetcher], to: &[Role::Fetcher, Role::Cache], message: "Signed" },
    Told { subject: PRESENCE, by: &[Role::Frontend], to: &[Role::Fetcher], message: "Presence" },
    Told { subject: DECISIONS, by: &[Role::Policy], to: &[Role::Operator], message: "RecordedDecision" },
];

/// All that is called over gRPC between machines.
pub const METHODS: &[Method] = &[
    Method { path: "/sluice.v1.Content/GetIndex", by: &[Role::Frontend], of: Role::Cache },
    Method { path: "/sluice.v1.Content/GetChunks", by: &[Role::Frontend], of: Role::Cache },
];

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

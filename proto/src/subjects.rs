//! Every request that crosses the bus: its subject, and the answer it promises.

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
    "sluice.v1.cache.locate": LocateRequest -> LocateReply;
    "sluice.v1.cache.present": PresentRequest -> LocateReply;
}

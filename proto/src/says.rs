//! What a request says of its sender.
//!
//! Where a connection proves who asks, a request that says something else is refused, whatever it asks for: in one place for all
//! services ([`crate::Call::says`]).

use std::borrow::Cow;

use prost::Message as _;

use crate::speaker::{DEFAULT_PROJECT, Speaker};
use crate::{
    AskerFacts, Facts, FollowRequest, Grant, PlanRequest, RenewRequest, ReportRequest, ResolveRequest,
};

/// The project and the node that a request names as its sender's; none where it names none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said<'a> {
    pub project: Option<Cow<'a, str>>,
    pub node: Option<Cow<'a, str>>,
}

impl<'a> Said<'a> {
    fn of(project: &'a str, node: Option<&'a str>) -> Said<'a> {
        let project = if project.is_empty() { DEFAULT_PROJECT } else { project };
        Said { project: Some(project.into()), node: node.map(Cow::Borrowed) }
    }

    /// An error: what it says instead.
    pub fn agrees_with(&self, speaker: &Speaker) -> Result<(), String> {
        let same =
            |said: &Option<Cow<'_, str>>, proven: &str| said.as_ref().is_none_or(|said| said == proven);
        match same(&self.project, &speaker.project) && same(&self.node, &speaker.node) {
            true => Ok(()),
            false => {
                let shown = |said: &Option<Cow<'_, str>>| said.clone().unwrap_or_default().into_owned();
                Err(format!("node {:?} of project {:?}", shown(&self.node), shown(&self.project)))
            }
        }
    }
}

pub(crate) fn resolve(request: &ResolveRequest) -> Said<'_> {
    Said::of(&request.project, Some(&request.node))
}

pub(crate) fn follow(request: &FollowRequest) -> Said<'_> {
    Said::of(&request.project, Some(&request.node))
}

pub(crate) fn report(request: &ReportRequest) -> Said<'_> {
    Said::of(&request.project, None)
}

pub(crate) fn plan(request: &PlanRequest) -> Said<'_> {
    asker(request.facts.as_ref())
}

/// The grant's own words; whether a fetcher signed them is seen later, and of those that none signed nothing follows.
pub(crate) fn renew(request: &RenewRequest) -> Said<'_> {
    let payload = request.grant.as_ref().map(|grant| grant.payload.as_slice()).unwrap_or_default();
    let Grant { project, node, .. } = Grant::decode(payload).unwrap_or_default();
    let project = if project.is_empty() { DEFAULT_PROJECT.to_owned() } else { project };
    Said { project: Some(project.into()), node: Some(node.into()) }
}

fn asker(facts: Option<&Facts>) -> Said<'_> {
    match facts.and_then(|facts| facts.asker.as_ref()) {
        Some(AskerFacts { project, node, .. }) => Said::of(project, Some(node)),
        None => Said::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Call as _, Signed};

    fn speaker(project: &str, node: &str) -> Speaker {
        Speaker { project: project.to_owned(), node: node.to_owned() }
    }

    #[test]
    fn a_request_must_say_what_the_connection_proves() {
        let request = ResolveRequest { node: "n1".to_owned(), ..ResolveRequest::default() };
        request.says().agrees_with(&speaker("default", "n1")).unwrap();
        for (project, node) in [("default", "n2"), ("other", "n1"), ("", "n1")] {
            assert!(request.says().agrees_with(&speaker(project, node)).is_err(), "{project} {node}");
        }
        let nameless = ResolveRequest::default();
        assert!(nameless.says().agrees_with(&speaker("default", "n1")).is_err(), "no name is another's");
    }

    #[test]
    fn a_grant_is_renewed_by_whom_it_names() {
        let grant = Grant { project: "p".to_owned(), node: "n1".to_owned(), ..Grant::default() };
        let signed = Signed { payload: grant.encode_to_vec(), ..Signed::default() };
        let request = RenewRequest { grant: Some(signed), ..RenewRequest::default() };
        request.says().agrees_with(&speaker("p", "n1")).unwrap();
        assert!(request.says().agrees_with(&speaker("p", "n2")).is_err());
        assert!(request.says().agrees_with(&speaker("q", "n1")).is_err());
        assert!(RenewRequest::default().says().agrees_with(&speaker("p", "n1")).is_err());
    }

    #[test]
    fn plans_are_asked_for_by_the_node_that_they_are_for() {
        let asker = AskerFacts { project: "p".to_owned(), node: "n1".to_owned(), ..AskerFacts::default() };
        let facts = Facts { asker: Some(asker), ..Facts::default() };
        let request = PlanRequest { facts: Some(facts), ..PlanRequest::default() };
        assert!(request.says().agrees_with(&speaker("p", "n2")).is_err());
        request.says().agrees_with(&speaker("p", "n1")).unwrap();
    }
}

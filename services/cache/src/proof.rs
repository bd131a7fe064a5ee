//! Whether who shows a grant is who it was given to, and whether it still counts.
//!
//! A grant that leaks is of no use to others: the connection must prove the node that it names, with the key that it was given for.
//! Where there is no TLS, which is on one machine or where somebody said so, a grant that names no key is all there is.

use proto::conversation::may_call;
use proto::speaker::DEFAULT_PROJECT;
use proto::{Grant, Refusal};
use revocations::Revocations;
use tls::{ConnectInfo, Peer};
use tonic::{Request, Status};

use crate::meters;

#[derive(Clone, Debug)]
pub(crate) struct Proof {
    revocations: Revocations,
}

impl Proof {
    pub(crate) fn new(revocations: Revocations) -> Proof {
        Proof { revocations }
    }

    /// Whether `method` may be called over this connection, under this grant, now.
    pub(crate) fn check<T>(&self, method: &str, request: &Request<T>, grant: &Grant) -> Result<(), Status> {
        let refused = |(reason, status): (&'static str, Status)| {
            metrics::counter!(meters::REFUSED, "reason" => reason).increment(1);
            status
        };
        proves(&tls::connection_of(request), method, grant).map_err(refused)?;
        self.revocations.admit(grant).map_err(|revoked| refused(("revoked", revoked.into())))
    }
}

fn proves(connection: &ConnectInfo, method: &str, grant: &Grant) -> Result<(), (&'static str, Status)> {
    match (connection.secured, &connection.peer) {
        (true, Some(peer)) => {
            let role = peer.role().and_then(proto::Role::from_name);
            if !role.is_some_and(|role| may_call(role, method)) {
                let message = format!("{method} is not for {:?}", peer.role().unwrap_or("nobody"));
                return Err(("role", Refusal::Denied.status(message)));
            }
            belongs_to(grant, peer)
        }
        (true, None) => Err(("role", Status::unauthenticated("the connection proves no node"))),
        (false, _) if grant.node_key.is_empty() => Ok(()),
        (false, _) => {
            let message = "the grant is for a node's key, which a connection without TLS does not prove";
            Err(("key", Refusal::Denied.status(message)))
        }
    }
}

fn belongs_to(grant: &Grant, peer: &Peer) -> Result<(), (&'static str, Status)> {
    let project = if grant.project.is_empty() { DEFAULT_PROJECT } else { &grant.project };
    if !peer.is_node(project, &grant.node) {
        let message = format!("the grant is for node {:?}, which this connection does not prove", grant.node);
        return Err(("node", Refusal::Denied.status(message)));
    }
    if !grant.node_key.is_empty() && grant.node_key != peer.thumbprint {
        // A node that has a new key renews its grants, and asks again.
        return Err(("key", Status::unauthenticated("the grant is for another key of this node")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tls::Name;
    use tonic::Code;

    use super::*;

    const METHOD: &str = "/sluice.v1.Content/GetChunks";

    fn connection(name: Name) -> ConnectInfo {
        let peer = Peer { names: vec![name], thumbprint: [7; 32] };
        ConnectInfo { secured: true, peer: Some(Arc::new(peer)), ..ConnectInfo::default() }
    }

    fn grant(project: &str, node: &str, key: &[u8]) -> Grant {
        Grant {
            project: project.to_owned(),
            node: node.to_owned(),
            node_key: key.to_vec(),
            ..Grant::default()
        }
    }

    fn code(connection: &ConnectInfo, method: &str, grant: &Grant) -> Code {
        proves(connection, method, grant).map_or_else(|(_, status)| status.code(), |()| Code::Ok)
    }

    #[test]
    fn a_grant_is_of_use_to_its_node_and_its_key() {
        let node = connection(Name::node("default", "n1").unwrap());
        for (grant, expected) in [
            (grant("", "n1", &[7; 32]), Code::Ok),
            (grant("default", "n1", &[7; 32]), Code::Ok),
            (grant("default", "n1", &[]), Code::Ok),
            (grant("default", "n2", &[7; 32]), Code::PermissionDenied),
            (grant("other", "n1", &[7; 32]), Code::PermissionDenied),
            (grant("default", "n1", &[8; 32]), Code::Unauthenticated),
            (grant("default", "n1", &[7]), Code::Unauthenticated),
        ] {
            assert_eq!(code(&node, METHOD, &grant), expected, "{grant:?}");
        }
        let service = connection(Name::service("policy").unwrap());
        assert_eq!(code(&service, METHOD, &grant("", "n1", &[7; 32])), Code::PermissionDenied);
        assert_eq!(
            code(&node, "/sluice.v1.Other/Method", &grant("", "n1", &[7; 32])),
            Code::PermissionDenied
        );
    }

    #[test]
    fn without_tls_only_grants_that_need_no_proof() {
        let plain = ConnectInfo::default();
        assert_eq!(code(&plain, METHOD, &grant("", "n1", &[])), Code::Ok);
        assert_eq!(code(&plain, METHOD, &grant("", "n1", &[7; 32])), Code::PermissionDenied);
        let nobody = ConnectInfo { secured: true, ..ConnectInfo::default() };
        assert_eq!(code(&nobody, METHOD, &grant("", "n1", &[])), Code::Unauthenticated);
    }
}

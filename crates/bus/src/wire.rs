//! How requests, replies and errors look on the wire.
//!
//! Both bodies are protobuf. A request's header [`DEADLINE_HEADER`] says how many milliseconds the
//! caller will wait. A reply with the header [`STATUS_HEADER`] carries an encoded `google.rpc.Status`
//! instead of the reply, details included.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tonic::{Code, Status};

/// No message is larger, in bytes: NATS refuses 1 MiB, headers included.
pub const MESSAGE_MAX: usize = 1024 * 1024 - 16 * 1024;
/// An error's text is cut here, in bytes: it is for a person to read, and must always fit.
const ERROR_TEXT_MAX: usize = 8 * 1024;
/// Error details beyond this many bytes are left out, for the same reason.
const ERROR_DETAILS_MAX: usize = 64 * 1024;

pub(crate) const DEADLINE_HEADER: &str = "Sluice-Deadline-Ms";
pub(crate) const STATUS_HEADER: &str = "Sluice-Status";

pub(crate) fn encode_request(subject: &str, request: &impl Message) -> Result<Bytes, Status> {
    let payload = request.encode_to_vec();
    if payload.len() > MESSAGE_MAX {
        let refusal = format!(
            "request to {subject} is {} bytes long, at most {MESSAGE_MAX} are carried",
            payload.len()
        );
        return Err(Status::invalid_argument(refusal));
    }
    Ok(payload.into())
}

pub(crate) fn decode_request<Request: Message + Default>(
    subject: &str,
    payload: Bytes,
) -> Result<Request, Status> {
    Request::decode(payload)
        .map_err(|error| Status::invalid_argument(format!("decoding a request to {subject}: {error}")))
}

pub(crate) fn encode_reply(subject: &str, reply: &impl Message) -> Result<Bytes, Status> {
    let payload = reply.encode_to_vec();
    if payload.len() > MESSAGE_MAX {
        let refusal =
            format!("reply of {subject} is {} bytes long, at most {MESSAGE_MAX} are carried", payload.len());
        return Err(Status::internal(refusal));
    }
    Ok(payload.into())
}

pub(crate) fn decode_reply<Reply: Message + Default>(subject: &str, payload: Bytes) -> Result<Reply, Status> {
    Reply::decode(payload)
        .map_err(|error| Status::internal(format!("decoding a reply of {subject}: {error}")))
}

pub(crate) fn encode_status(status: &Status) -> Bytes {
    let details = if status.details().len() > ERROR_DETAILS_MAX { &[] } else { status.details() };
    // tonic keeps details as an encoded google.rpc.Status, which repeats code and message.
    let details = tonic_types::pb::Status::decode(details).map(|inner| inner.details).unwrap_or_default();
    let mut message = status.message().to_owned();
    message.truncate(message.floor_char_boundary(ERROR_TEXT_MAX));
    tonic_types::pb::Status { code: status.code().into(), message, details }.encode_to_vec().into()
}

pub(crate) fn decode_status(payload: Bytes) -> Status {
    match tonic_types::pb::Status::decode(payload.clone()) {
        Ok(status) if status.details.is_empty() => Status::new(Code::from(status.code), status.message),
        Ok(status) => Status::with_details(Code::from(status.code), status.message, payload),
        Err(error) => Status::internal(format!("decoding an error: {error}")),
    }
}

pub(crate) fn deadline_exceeded(subject: &str, deadline: Duration) -> Status {
    Status::deadline_exceeded(format!("{subject} was not answered within {deadline:?}"))
}

/// The last token of the subject that everyone hears; no instance has this name.
const ALL: &str = "all";

/// The subject on which all who answer `subject` are asked at once.
pub(crate) fn all_subject(subject: &str) -> String {
    format!("{subject}.{ALL}")
}

/// The subject that only `instance` answers. Its name must be one subject token.
pub(crate) fn instance_subject(subject: &str, instance: &str) -> Result<String, Status> {
    let is_token = !instance.is_empty()
        && instance != ALL
        && instance.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    if !is_token {
        return Err(Status::invalid_argument(format!("not an instance name: {instance:?}")));
    }
    Ok(format!("{subject}.{instance}"))
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    #[test]
    fn a_status_arrives_with_its_details() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(3)));
        let sent = Status::with_error_details(Code::ResourceExhausted, "too many requests", details);
        let received = decode_status(encode_status(&sent));
        assert_eq!(received.code(), Code::ResourceExhausted);
        assert_eq!(received.message(), "too many requests");
        let retry = received.get_details_retry_info().and_then(|info| info.retry_delay);
        assert_eq!(retry, Some(Duration::from_secs(3)));
    }

    #[test]
    fn an_endless_message_is_cut_between_characters() {
        let received = decode_status(encode_status(&Status::not_found("ä".repeat(MESSAGE_MAX))));
        assert_eq!(received.code(), Code::NotFound);
        assert!(received.message().len() <= ERROR_TEXT_MAX);
        assert!(received.message().chars().all(|letter| letter == 'ä'));
    }

    #[test]
    fn garbage_is_an_error_not_a_status() {
        assert_eq!(decode_status(Bytes::from_static(&[0xff; 9])).code(), Code::Internal);
    }

    #[test]
    fn instance_names_cannot_change_the_subject() {
        for wrong in ["", "all", "a.b", "*", ">", "a b", "ä"] {
            assert!(instance_subject("s", wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(instance_subject("s", "fetcher-1_a").unwrap(), "s.fetcher-1_a");
    }
}

//! The asking side: encode, wait no longer than the deadline, ask again while nobody answers and while who answers is busy.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use proto::Refusal;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::{Transport, Undelivered, wire};

/// First and longest pause before somebody who does not answer yet is asked again: a service
/// restarts within a second or two, and asking costs next to nothing.
const BACK_OFF_MIN: Duration = Duration::from_millis(50);
const BACK_OFF_MAX: Duration = Duration::from_millis(500);

pub(crate) async fn until_answered<Request, Reply>(
    transport: &Transport,
    subject: &str,
    request: &Request,
    deadline: Duration,
) -> Result<Reply, Status>
where
    Request: Message,
    Reply: Message + Default,
{
    let payload = wire::encode_request(subject, request)?;
    let end = Instant::now() + deadline;
    let (mut pause, mut nobody) = (BACK_OFF_MIN, false);
    let mut busy;
    loop {
        let remaining = end.saturating_duration_since(Instant::now());
        match ask(transport, subject, payload.clone(), remaining).await {
            Err(Undelivered::NoResponder) => (nobody, busy) = (true, None),
            // It goes to another instance, or finds this one with less to do.
            Err(Undelivered::Status(status)) if Refusal::of(&status) == Some(Refusal::Busy) => {
                (nobody, busy) = (false, Some(status));
            }
            // There was no time left to hear whether that is still so.
            Err(Undelivered::Status(status))
                if nobody && remaining < BACK_OFF_MIN && status.code() == Code::DeadlineExceeded =>
            {
                return Err(nobody_answers(subject));
            }
            Err(Undelivered::Status(status)) => return Err(status),
            Ok(reply) => return wire::decode_reply(subject, reply),
        }
        // Spread, so that those who wait for one service do not come back all at once.
        let spread = pause.mul_f64(rand::random_range(0.5..1.0));
        if end.saturating_duration_since(Instant::now()) <= spread {
            return Err(busy.unwrap_or_else(|| nobody_answers(subject)));
        }
        tokio::time::sleep(spread).await;
        pause = (pause * 2).min(BACK_OFF_MAX);
    }
}

pub(crate) async fn once<Request, Reply>(
    transport: &Transport,
    subject: &str,
    request: &Request,
    deadline: Duration,
) -> Result<Reply, Status>
where
    Request: Message,
    Reply: Message + Default,
{
    let payload = wire::encode_request(subject, request)?;
    match ask(transport, subject, payload, deadline).await {
        Ok(reply) => wire::decode_reply(subject, reply),
        Err(Undelivered::NoResponder) => Err(nobody_answers(subject)),
        Err(Undelivered::Status(status)) => Err(status),
    }
}

async fn ask(
    transport: &Transport,
    subject: &str,
    payload: Bytes,
    deadline: Duration,
) -> Result<Bytes, Undelivered> {
    match tokio::time::timeout(deadline, transport.request(subject, payload, deadline)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Undelivered::Status(wire::deadline_exceeded(subject, deadline))),
    }
}

fn nobody_answers(subject: &str) -> Status {
    Refusal::Unreachable.status(format!("nobody answers {subject}"))
}

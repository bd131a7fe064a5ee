//! Signatures of webhooks, as Standard Webhooks describe them: HMAC-SHA256 over id, time and body.

use std::path::Path;

use anyhow::{Context as _, ensure};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const PREFIX: &str = "whsec_";
/// Bytes of a secret: what the convention allows.
const LENGTHS: std::ops::RangeInclusive<usize> = 24..=64;
/// Secrets that sign at the same time.
const SECRETS_MAX: usize = 8;

/// Those who sign each message.
#[derive(Default)]
pub(super) struct Secrets {
    keys: Vec<hmac::Key>,
}

impl Secrets {
    /// Blocks. Errors name the file, never what is in it.
    pub(super) fn read(path: &Path) -> anyhow::Result<Secrets> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Secrets::parse(&text).with_context(|| format!("webhook.secret_file {}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Secrets> {
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        ensure!(!lines.is_empty(), "it holds no secret");
        ensure!(lines.len() <= SECRETS_MAX, "it holds more than {SECRETS_MAX} secrets");
        let keys = lines.into_iter().enumerate().map(|(number, line)| {
            // The decoder's own message would quote a part of it.
            let secret = line.strip_prefix(PREFIX).and_then(|encoded| STANDARD.decode(encoded).ok());
            let secret =
                secret.with_context(|| format!("line {}: {PREFIX} and base64 expected", number + 1))?;
            ensure!(
                LENGTHS.contains(&secret.len()),
                "line {}: a secret of {} to {} bytes expected",
                number + 1,
                LENGTHS.start(),
                LENGTHS.end()
            );
            Ok(hmac::Key::new(hmac::HMAC_SHA256, &secret))
        });
        Ok(Secrets { keys: keys.collect::<anyhow::Result<_>>()? })
    }

    /// The value of `webhook-signature`; none: there is no secret.
    pub(super) fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> Option<String> {
        let message = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
        let signature = |key| format!("v1,{}", STANDARD.encode(hmac::sign(key, &message)));
        let signatures: Vec<String> = self.keys.iter().map(signature).collect();
        (!signatures.is_empty()).then(|| signatures.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_as_the_convention_does() {
        // The example of the specification's own test vectors.
        let secrets = Secrets::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        let signature =
            secrets.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b"{\"test\": 2432232314}");
        assert_eq!(signature.unwrap(), "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        let two =
            Secrets::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\nwhsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(two.unwrap().sign("a", 1, b"b").unwrap().split(' ').count(), 2);
        assert_eq!(Secrets::default().sign("a", 1, b"b"), None);
    }

    #[test]
    fn a_wrong_secret_is_named_by_its_line_and_never_shown() {
        let short = format!("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\nwhsec_{}", STANDARD.encode("hunter2"));
        for text in ["", "\n \n", "hunter2hunter2", "whsec_hunter2!", &short] {
            let error = format!("{:#}", Secrets::parse(text).err().unwrap());
            assert!(!error.contains("hunter2") && !error.contains("aHVudGVyMg"), "{error}");
        }
        assert!(format!("{:#}", Secrets::parse(&short).err().unwrap()).contains("line 2"));
    }
}

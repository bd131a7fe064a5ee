//! Chain ids: how a stack of layers is named, whatever image it is part of.
//!
//! Of the lowest layer it is the diff id; of another, `sha256("<chain id below> <diff id>")`. Source: the OCI image
//! specification, config.md, "Layer ChainID".

use sha2::{Digest as _, Sha256};

/// The chain id of every layer; from the lowest up, as the diff ids are.
pub fn chain_ids<'a>(diff_ids: impl IntoIterator<Item = &'a str>) -> impl Iterator<Item = String> {
    let mut below: Option<String> = None;
    diff_ids.into_iter().map(move |diff_id| {
        let chain = match &below {
            None => diff_id.to_owned(),
            Some(below) => format!("sha256:{}", hex::encode(Sha256::digest(format!("{below} {diff_id}")))),
        };
        below = Some(chain.clone());
        chain
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_names_all_below_it() {
        let diff_id = |digit: &str| format!("sha256:{}", digit.repeat(64));
        let (a, b) = (diff_id("a"), diff_id("b"));
        let chains: Vec<String> = chain_ids([a.as_str(), &b, &b]).collect();
        // Computed with sha256sum over the two names.
        let second = "sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c";
        assert_eq!(&chains[..2], [a, second.to_owned()]);
        assert_ne!(chains[2], chains[1]);
    }
}

//! What a sealed credential is for: it opens for no other request.

/// Of the request that it travels with. With lengths, so that no part can pass for another.
pub fn context(project: &str, reference: &str, node: &str) -> Vec<u8> {
    let mut context = Vec::new();
    for part in [project, reference, node] {
        context.extend((part.len() as u64).to_le_bytes());
        context.extend(part.as_bytes());
    }
    context
}

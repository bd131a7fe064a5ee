//! Text that others wrote, such as authors of plugins, on its way into messages: of a bounded length, and on one line.

/// A sentence, in characters: with the longest ones it fits the message of a verdict.
const SENTENCE_MAX: usize = 256;
/// What is wrong with a plugin, in characters.
const REASON_MAX: usize = 1024;

/// A sentence at the most.
pub(crate) fn brief(text: &str) -> String {
    on_one_line(text, SENTENCE_MAX)
}

/// What is wrong with a plugin, for its author: several sentences.
pub(crate) fn reason(text: &str) -> String {
    on_one_line(text, REASON_MAX)
}

fn on_one_line(text: &str, max: usize) -> String {
    text.chars().take(max).map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_move_the_cursor_or_fill_a_disk_does_not() {
        assert_eq!(brief("a\u{1b}[31m\nä"), "a [31m ä");
        assert_eq!(brief(&"ä".repeat(10_000)).chars().count(), SENTENCE_MAX);
        assert_eq!(reason(&"\u{85}".repeat(10_000)), " ".repeat(REASON_MAX));
    }
}

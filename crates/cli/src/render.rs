//! Output: data on stdout, tables for people and JSON for programs; what else there is to say on stderr.

use std::io::{ErrorKind, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// Stdout is a pipe that nobody reads any more.
static UNREAD: AtomicBool = AtomicBool::new(false);

/// Prints `value` as JSON, indented, to stdout.
pub fn json<T: Serialize>(value: &T) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(value)?)
}

/// Prints one line to stdout. A reader that has seen enough (`| head`) is no error: the command does what it was to do.
pub fn line(text: &str) -> anyhow::Result<()> {
    print(format!("{text}\n").as_bytes())
}

/// The same for text that has its lines already.
pub fn print(text: &[u8]) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => UNREAD.store(true, Ordering::Relaxed),
        printed => printed.context("print the result")?,
    }
    Ok(())
}

/// Whether what is printed reaches nobody any more: then a command that does nothing else ends.
pub fn is_unread() -> bool {
    UNREAD.load(Ordering::Relaxed)
}

/// Says one line on stderr. What cannot be said there (a closed or full stderr) is no reason to stop.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Text of somebody else's, on one line: nothing in it can steer a terminal.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter.is_control() {
            true => shown.extend(letter.escape_default()),
            false => shown.push(letter),
        }
    }
    shown
}

/// A table without lines: columns of text to the left, those named in `numbers` to the right.
pub fn table(header: &[&str], numbers: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().map(|name| name.to_uppercase()));
    table.add_rows(rows);
    for &column in numbers {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// `1.5 MB`: decimal units, as registries and networks count.
pub fn bytes(count: u64) -> String {
    bytesize::ByteSize::b(count).display().si().to_string()
}

/// `2 hours ago`; the coarsest unit only.
pub fn age(then_unix: u64, now_unix: u64) -> String {
    let seconds = now_unix.saturating_sub(then_unix);
    let (count, unit) = match seconds {
        0..60 => return "just now".to_owned(),
        60..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

/// The start of a digest, as long as people compare.
pub fn short(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..12).unwrap_or(hex)
}

/// Seconds since 1970.
pub fn now_unix() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_carry_no_trailing_spaces() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned()], vec!["bcd".to_owned(), "20".to_owned()]];
        assert_eq!(table(&["name", "size"], &[1], rows), "NAME  SIZE\na        1\nbcd     20\n");
    }

    #[test]
    fn ages_and_digests_are_short() {
        assert_eq!(age(1_000, 1_030), "just now");
        assert_eq!(age(1_000, 1_060), "1 minute ago");
        assert_eq!(age(0, 7_200), "2 hours ago");
        assert_eq!(age(9, 3), "just now");
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!(short("abc"), "abc");
    }
}

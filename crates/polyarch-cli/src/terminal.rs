//! Standard output, lines of input, colours.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, IsTerminal, Read, StdoutLock, Write};
use std::path::{Path, PathBuf};

use clap::builder::styling::{AnsiColor, Style};
use serde::Serialize;
use tokio::sync::oneshot;

use crate::failure::Failure;

/// Longest line of input. The longest value that the wire carries has 16 MiB, and base64 adds a third.
pub(crate) const LINE_BYTES_MAX: u64 = 32 << 20;

/// Standard output, buffered: the one way in which commands print. A reader that has gone ends the command quietly, any
/// other failure with words.
#[derive(Debug)]
pub(crate) struct Output {
    stdout: BufWriter<StdoutLock<'static>>,
}

impl Output {
    pub(crate) fn stdout() -> Self {
        Self { stdout: BufWriter::new(io::stdout().lock()) }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stdout.write_all(bytes).map_err(|error| broken(&error))
    }

    pub(crate) fn line(&mut self, line: impl std::fmt::Display) -> Result<(), Failure> {
        writeln!(self.stdout, "{line}").map_err(|error| broken(&error))
    }

    /// One object on one line.
    pub(crate) fn json(&mut self, object: &impl Serialize) -> Result<(), Failure> {
        write_json(&mut self.stdout, object).map_err(|error| broken(&error))
    }

    /// Passes everything on. What is not flushed when a command ends is lost with its errors.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.stdout.flush().map_err(|error| broken(&error))
    }
}

/// Writes one object and a line's end.
pub(crate) fn write_json(out: &mut impl Write, object: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, object).map_err(io::Error::from)?;
    out.write_all(b"\n")
}

/// What a failed write to standard output is to the command.
pub(crate) fn broken(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::BrokenPipe,
        _ => Failure::usage(format_args!("cannot write to standard output: {error}")),
    }
}

/// `-` for standard input or output, or a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Standard,
    File(PathBuf),
}

impl From<&OsStr> for Place {
    fn from(text: &OsStr) -> Self {
        match text == "-" {
            true => Self::Standard,
            false => Self::File(text.into()),
        }
    }
}

impl Place {
    /// Opens it to be read, with its size where it has one.
    pub(crate) fn open(&self) -> Result<(Box<dyn BufRead + Send>, Option<u64>), Failure> {
        match self {
            Self::Standard => Ok((Box::new(BufReader::new(io::stdin())), None)),
            Self::File(path) => {
                let failed = |error: io::Error| Failure::file(path, &error);
                let file = File::open(path).map_err(failed)?;
                let metadata = file.metadata().map_err(failed)?;
                Ok((Box::new(BufReader::new(file)), metadata.is_file().then_some(metadata.len())))
            }
        }
    }

    /// What to call it in a message.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Standard => "standard input".to_owned(),
            Self::File(path) => path.display().to_string(),
        }
    }
}

/// All of standard input, of at most `bytes_max`.
pub(crate) fn read_stdin(bytes_max: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    io::stdin().lock().take(bytes_max + 1).read_to_end(&mut bytes).map_err(|error| unreadable(&error))?;
    match bytes.len() as u64 > bytes_max {
        true => Err(Failure::usage(format_args!("standard input has more than {bytes_max} bytes"))),
        false => Ok(bytes),
    }
}

/// Waits until somebody presses Enter, or standard input ends. It is read on a thread of its own, which a signal need not
/// wait for.
pub(crate) async fn enter() -> Result<(), Failure> {
    let (sender, read) = oneshot::channel();
    std::thread::spawn(move || {
        // An error says that the command has ended meanwhile.
        let _ = sender.send(io::stdin().read_line(&mut String::new()));
    });
    match read.await {
        Ok(Err(error)) => Err(unreadable(&error)),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

fn unreadable(error: &io::Error) -> Failure {
    Failure::usage(format_args!("standard input: {error}"))
}

/// The lines of an input that are not empty, with their numbers from 1 on.
pub(crate) struct Lines {
    input: Box<dyn BufRead + Send>,
    number: u64,
    line_bytes_max: u64,
}

/// A line of input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) number: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Lines {
    pub(crate) fn of(input: Box<dyn BufRead + Send>) -> Self {
        Self { input, number: 0, line_bytes_max: LINE_BYTES_MAX }
    }

    fn read(&mut self) -> Result<Option<Line>, String> {
        loop {
            let mut bytes = Vec::new();
            let read = (&mut self.input).take(self.line_bytes_max).read_until(b'\n', &mut bytes);
            self.number += 1;
            match read {
                Err(error) => return Err(error.to_string()),
                Ok(0) => return Ok(None),
                Ok(read) if read as u64 == self.line_bytes_max && !bytes.ends_with(b"\n") => {
                    return Err(format!("line {} has more than {} bytes", self.number, self.line_bytes_max));
                }
                Ok(_) if bytes.trim_ascii().is_empty() => {}
                Ok(_) => return Ok(Some(Line { number: self.number, bytes })),
            }
        }
    }
}

impl Iterator for Lines {
    type Item = Result<Line, String>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// Bytes for people: text as it is, without anything that would move the cursor or pass for something else.
pub(crate) fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                character if character.is_control() => text.extend(character.escape_default()),
                character => text.push(character),
            }
        }
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

/// A word for a POSIX shell, quoted if it has to be.
pub(crate) fn shell_word(path: &Path) -> String {
    let text = path.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// Whether what goes to `stream` may have colours.
pub(crate) fn has_colours(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Prints why a command failed, and what to do about it, on stderr.
pub(crate) fn complain(message: &str, hint: Option<&str>) {
    labelled("error", AnsiColor::Red, message);
    if let Some(hint) = hint {
        labelled("hint", AnsiColor::Cyan, hint);
    }
}

/// Prints something on stderr that the output itself does not say.
pub(crate) fn note(message: &str) {
    labelled("note", AnsiColor::Cyan, message);
}

fn labelled(label: &str, colour: AnsiColor, message: &str) {
    let stderr = io::stderr();
    let style = match has_colours(&stderr) {
        true => Style::new().bold().fg_color(Some(colour.into())),
        false => Style::new(),
    };
    // Nobody left to be told that nobody can be told.
    let _ = writeln!(stderr.lock(), "{style}{label}:{style:#} {message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8], line_bytes_max: u64) -> Vec<Result<Line, String>> {
        let input = Box::new(io::Cursor::new(text.to_vec()));
        Lines { line_bytes_max, ..Lines::of(input) }.collect()
    }

    #[test]
    fn empty_lines_are_passed_over_and_counted() {
        let found = lines(b"\na\r\n  \nb", 10);
        let expected = [(2, "a\r\n"), (4, "b")].map(|(number, text)| Ok(Line { number, bytes: text.into() }));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_line_without_end_is_refused_and_not_read_to_its_end() {
        assert_eq!(lines(b"12345678\n", 8)[0], Err("line 1 has more than 8 bytes".to_owned()));
        assert_eq!(lines(b"1234567\n", 8).len(), 1);
    }

    #[test]
    fn what_is_escaped_can_be_told_from_what_is_not() {
        assert_eq!(escaped("grün\t\\n\n".as_bytes()), "grün\\t\\\\n\\n");
        assert_eq!(escaped(b"a\xffb\x1b[31m"), "a\\xffb\\u{1b}[31m");
    }

    #[test]
    fn a_shell_reads_back_a_quoted_word() {
        assert_eq!(shell_word(Path::new("certs/node-1.toml")), "certs/node-1.toml");
        assert_eq!(shell_word(Path::new("it's here")), r"'it'\''s here'");
    }
}

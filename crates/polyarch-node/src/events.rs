//! The ledger of events: what this node has told its operator, newest last.
//!
//! It is kept in memory and in two files beside the data, `events.jsonl` and the one before it,
//! `events.1.jsonl`: a JSON object a line. It is a convenience for people. Nothing is lost to the
//! cluster when it cannot be written, and it is not synced.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use polyarch_protocol::Event;
use polyarch_protocol::client::EventView;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

/// Events kept in memory.
const EVENTS_MAX: usize = 1_000;
/// A file that has grown to this becomes the one before.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// The same alarm is not noted again within this time: a node that is refused dials on and on.
const REPEAT_MS: u64 = 60_000;
/// Characters of an event that are kept: a custom topology may be long.
const TEXT_CHARS_MAX: usize = 4_096;
/// How many of the last events are looked through for the same one.
const REPEATS_AMONG: usize = 32;

/// One line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    time_ms: u64,
    alarm: bool,
    text: String,
}

#[derive(Debug)]
pub(crate) struct EventLedger {
    recent: VecDeque<EventView>,
    path: PathBuf,
    /// None once it could not be written.
    file: Option<File>,
    bytes: u64,
}

impl EventLedger {
    /// Reads what was noted in this directory before.
    pub(crate) fn open(data_dir: &Path) -> Self {
        let path = data_dir.join("events.jsonl");
        let mut ledger = Self { recent: VecDeque::new(), path, file: None, bytes: 0 };
        let opened = ledger.read_back().and_then(|()| ledger.open_file());
        if let Err(error) = opened {
            warn!(path = %ledger.path.display(), %error, "events are kept in memory only");
        }
        ledger
    }

    /// Notes an event and logs it.
    pub(crate) fn tell(&mut self, event: &Event) {
        let (alarm, text) = (event.is_alarm(), event.to_string());
        match alarm {
            true => warn!("{text}"),
            false => info!("{text}"),
        }
        let text = match text.char_indices().nth(TEXT_CHARS_MAX) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        };
        let time_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let is_repeat = |told: &EventView| told.text == text && time_ms.saturating_sub(told.time_ms) < REPEAT_MS;
        if alarm && self.recent.iter().rev().take(REPEATS_AMONG).any(is_repeat) {
            return;
        }
        let line = Line { time_ms, alarm, text };
        if let Err(error) = self.write(&line) {
            self.file = None;
            warn!(path = %self.path.display(), %error, "events are kept in memory only");
        }
        self.keep(line);
    }

    /// The last events, newest last.
    pub(crate) fn last(&self, limit: usize) -> Vec<EventView> {
        self.recent.iter().skip(self.recent.len().saturating_sub(limit)).cloned().collect()
    }

    fn keep(&mut self, Line { time_ms, alarm, text }: Line) {
        if self.recent.len() == EVENTS_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(EventView { time_ms, alarm, text });
    }

    fn before(&self) -> PathBuf {
        self.path.with_file_name("events.1.jsonl")
    }

    fn read_back(&mut self) -> io::Result<()> {
        for path in [self.before(), self.path.clone()] {
            let file = match File::open(path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for line in BufReader::new(io::Read::take(file, 2 * FILE_BYTES_MAX)).split(b'\n') {
                // A crash may have cut one short, or left anything.
                if let Ok(line) = serde_json::from_slice(&line?) {
                    self.keep(line);
                }
            }
        }
        Ok(())
    }

    fn open_file(&mut self) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.create(true).read(true).append(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&self.path)?;
        self.bytes = file.metadata()?.len();
        if self.bytes > 0 {
            // Whatever was cut short ends here.
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        self.file = Some(file);
        Ok(())
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        if self.bytes >= FILE_BYTES_MAX && self.file.is_some() {
            std::fs::rename(&self.path, self.before())?;
            self.open_file()?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        file.write_all(text.as_bytes())?;
        self.bytes += text.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linked(server_id: u32) -> Event {
        Event::Linked { server_id }
    }

    #[test]
    fn events_outlive_a_restart_and_a_line_that_was_cut_short() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut ledger = EventLedger::open(directory.path());
        ledger.tell(&linked(2));
        ledger.tell(&Event::StorageFailed { reason: "no space".to_owned() });
        let told = ledger.last(10);
        assert_eq!(told.len(), 2);
        let mut file =
            OpenOptions::new().append(true).open(directory.path().join("events.jsonl")).expect("it is there");
        file.write_all(b"\xff{\"time_ms\":17").expect("it is written");
        let mut ledger = EventLedger::open(directory.path());
        assert_eq!(ledger.last(10), told);
        assert_eq!(ledger.last(1), told[1..]);
        ledger.tell(&linked(3));
        let ledger = EventLedger::open(directory.path());
        assert_eq!(ledger.last(10).len(), 3, "what came behind it is read");
        assert_eq!([told[0].alarm, told[1].alarm], [false, true]);
    }

    #[test]
    fn the_same_event_is_noted_once_a_minute_and_memory_and_disk_are_bounded() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut ledger = EventLedger::open(directory.path());
        for _ in 0..5 {
            ledger.tell(&Event::StorageFailed { reason: "no space".to_owned() });
            ledger.tell(&linked(2));
        }
        assert_eq!(ledger.last(10).len(), 6, "an alarm once, and each time that a link is up");
        let reason = "x".repeat(500);
        for server_id in 0..6_000 {
            ledger.tell(&Event::Refused { server_id, reason: reason.clone() });
        }
        assert_eq!(ledger.last(usize::MAX).len(), EVENTS_MAX);
        let bytes = |name| std::fs::metadata(directory.path().join(name)).expect("it is there").len();
        assert!(bytes("events.jsonl") + bytes("events.1.jsonl") < 3 * FILE_BYTES_MAX);
    }
}

use std::fmt::{self, Write};

/// Everything that happened in a run, in order: as a hash always, as text on demand.
///
/// Two runs of one seed have equal hashes, or something in them was not drawn from the seed.
#[derive(Debug, Default)]
pub struct Trace {
    hash: Hash,
    lines: u64,
    sink: Sink,
}

/// Where the text of a trace goes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    /// Nowhere.
    #[default]
    Nowhere,
    /// To standard output, line by line, so that a run which hangs or aborts shows where.
    Stdout,
}

#[derive(Debug)]
struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Write for Hash {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // FNV-1a: a fingerprint of one's own run, nothing that an adversary chooses.
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

impl Trace {
    /// A trace whose text goes to `sink`.
    pub fn new(sink: Sink) -> Self {
        Self { sink, ..Self::default() }
    }

    /// Notes what happened at `now_us`.
    pub fn note(&mut self, now_us: u64, what: fmt::Arguments<'_>) {
        self.lines += 1;
        let written = writeln!(self.hash, "{now_us} {what}");
        written.expect("a hash takes all that is written");
        if self.sink == Sink::Stdout {
            println!("{:>10}.{:03} ms  {what}", now_us / 1_000, now_us % 1_000);
        }
    }

    /// The fingerprint of all that was noted.
    pub fn hash(&self) -> u64 {
        self.hash.0
    }

    /// How much was noted.
    pub fn lines(&self) -> u64 {
        self.lines
    }
}

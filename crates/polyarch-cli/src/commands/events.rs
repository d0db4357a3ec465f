//! `polyarch events`: what a node has told its operator.

use std::num::NonZero;

use clap::Args;
use polyarch_client::EventView;
use time::OffsetDateTime;
use time::format_description::well_known::Iso8601;
use time::format_description::well_known::iso8601::{Config, EncodedConfig, TimePrecision};

use crate::connection::ConnectionArguments;
use crate::failure::Failure;
use crate::json::EventObject;
use crate::terminal::Output;

/// Show what a node has told its operator: links, members, settings, alarms
#[derive(Debug, Args)]
#[command(after_help = "\
Each node keeps its own ledger, of what it saw itself, also over restarts: the last 1,000 are shown at most. The same
alarm is noted once a minute. \"this node\" in it is the one that answers: name it with --node. Newest last; with --json:
  {\"time_ms\", \"alarm\", \"text\"}

Examples:
  polyarch events --node 127.0.0.1:7401 --limit 20
  polyarch events --node 127.0.0.1:7401 --alarms")]
pub(crate) struct Events {
    /// At most so many, the newest
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: u32,
    /// Only those that should wake someone
    #[arg(long)]
    alarms: bool,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

impl Events {
    pub(crate) fn run(self, connection: ConnectionArguments) -> Result<(), Failure> {
        connection.run(async |connection| {
            // Which of them are alarms is known here only.
            let asked = if self.alarms { u32::MAX } else { self.limit };
            let mut events = connection.client.events(asked).await?;
            events.retain(|event| event.alarm || !self.alarms);
            let skipped = events.len().saturating_sub(self.limit as usize);
            let mut output = Output::stdout();
            for event in &events[skipped..] {
                match self.json {
                    true => output.json(&EventObject::from(event))?,
                    false => output.line(described(event))?,
                }
            }
            output.flush()
        })
    }
}

/// As in RFC 3339, with all three digits of the milliseconds: one column.
const TIME: &Iso8601<MILLISECONDS> = &Iso8601;
const MILLISECONDS: EncodedConfig =
    Config::DEFAULT.set_time_precision(TimePrecision::Second { decimal_digits: NonZero::new(3) }).encode();

fn described(event: &EventView) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(event.time_ms) * 1_000_000).ok();
    let time = time.and_then(|time| time.format(TIME).ok()).unwrap_or_else(|| event.time_ms.to_string());
    let alarm = if event.alarm { "ALARM  " } else { "" };
    format!("{time}  {alarm}{}", event.text)
}

//! One file for each family of commands.

pub(crate) mod backup;
pub(crate) mod batch;
pub(crate) mod certs;
pub(crate) mod diff;
pub(crate) mod events;
pub(crate) mod fork;
pub(crate) mod keyspace;
pub(crate) mod left_out;
pub(crate) mod link;
pub(crate) mod log;
pub(crate) mod members;
pub(crate) mod node;
pub(crate) mod quarantine;
pub(crate) mod record;
pub(crate) mod repair;
pub(crate) mod restore;
pub(crate) mod status;
pub(crate) mod topology;
pub(crate) mod transfer;
pub(crate) mod verify;

use polyarch_client::Written;

use crate::failure::Failure;
use crate::json::WrittenObject;
use crate::terminal::Output;

/// Says with `--json` what became of a write, which is done, also when that cannot be said.
fn print_written(written: &Written, json: bool) -> Result<(), Failure> {
    if !json {
        return Ok(());
    }
    let mut output = Output::stdout();
    let printed = output.json(&WrittenObject::from(written)).and_then(|()| output.flush());
    printed.map_err(|failure| failure.after("the write is done"))
}

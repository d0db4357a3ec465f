//! From profile and flags to a client.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use clap::Args;
use polyarch_client::{Client, NodeAddress, Profile, Session};
use tokio::runtime::Builder;

use crate::failure::Failure;

/// How long a command that is done waits for its connections to be closed.
const CLOSE_MAX: Duration = Duration::from_millis(5);

/// Which cluster, as whom, and how long to wait. Of every command; those that ask no node pay no heed.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectionArguments {
    /// The client's profile, TOML: `nodes`, `ca`, `cert`, `key`, `timeout_ms` [default: $POLYARCH_PROFILE]
    #[arg(long, global = true, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Ask this node and no other
    #[arg(long, global = true, value_name = "ADDR")]
    node: Option<NodeAddress>,
    /// How long each call may take, as in 500ms, 5s or 2m [default: the profile's]
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
}

/// A client with what it was made of.
pub(crate) struct Connection {
    pub(crate) client: Client,
    /// The nodes that the command may ask: the one that was picked, or the profile's.
    pub(crate) nodes: Vec<NodeAddress>,
    /// Whether one was picked.
    pub(crate) is_picked: bool,
    /// How long each call may take.
    pub(crate) timeout: Duration,
}

/// The session that a command goes on with.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct SessionArguments {
    /// See at least what the session of this token has seen: "token" of an earlier answer
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
}

impl ConnectionArguments {
    /// Does `work` with a client.
    pub(crate) fn run(self, work: impl AsyncFnOnce(&Connection) -> Result<(), Failure>) -> Result<(), Failure> {
        let (profile, is_picked) = (self.profile()?, self.node.is_some());
        // One thread: a command waits for nodes far more than it computes.
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::system("start", &error))?;
        let ended = runtime.block_on(async {
            let (nodes, timeout) = (profile.nodes.clone(), Duration::from_millis(profile.timeout_ms));
            let connection = Connection { client: Client::connect(profile)?, nodes, is_picked, timeout };
            let ended = work(&connection).await;
            // The nodes are told at once. To wait until they have heard it takes longer than most commands, and one
            // that has not finds out by its idle time-out.
            let _ = tokio::time::timeout(CLOSE_MAX, connection.client.close()).await;
            ended
        });
        // Names that are still being looked up are not waited for.
        runtime.shutdown_background();
        ended
    }

    /// The profile, with what the other flags change in it.
    pub(crate) fn profile(&self) -> Result<Profile, Failure> {
        let mut profile = match &self.profile {
            Some(path) => Profile::load(path)?,
            None => Profile::from_env()?,
        };
        if let Some(timeout) = self.timeout {
            profile = profile.with_timeout(timeout);
        }
        if let Some(node) = &self.node {
            profile.nodes = vec![node.clone()];
        }
        Ok(profile)
    }
}

impl SessionArguments {
    /// A new session, or the one of the token.
    pub(crate) fn session(&self, client: &Client) -> Result<Session, Failure> {
        match &self.token {
            None => Ok(client.session()),
            Some(token) => {
                let refused = || Failure::usage("--token: this is no session's token; pass the \"token\" of an answer");
                client.resume(&BASE64.decode(token).map_err(|_| refused())?).map_err(|_| refused())
            }
        }
    }
}

/// A whole number of `ms`, `s` or `m`; seconds if nothing is said.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let number: u64 = digits.parse().map_err(|_| "a time looks like 500ms, 5s or 2m".to_owned())?;
    let millis = match &text[digits.len()..] {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        _ => return Err("a time looks like 500ms, 5s or 2m".to_owned()),
    };
    match millis {
        Some(millis @ 1..) => Ok(Duration::from_millis(millis)),
        _ => Err("a time is at least 1ms".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_number_and_a_unit() {
        for (text, millis) in [("500ms", 500), ("5s", 5_000), ("5", 5_000), ("2m", 120_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "0", "1h", "-1s", "1.5s", "99999999999999999999", "18446744073709551615m", "5 s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}

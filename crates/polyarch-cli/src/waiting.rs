//! Waiting for what nodes are about to come to.

use std::time::{Duration, Instant};

use polyarch_client::StatusView;
use tokio::time::sleep;

use crate::failure::Failure;

/// How often is asked; the slower one after a second.
const GLANCE: Duration = Duration::from_millis(5);
const SLOW_GLANCE: Duration = Duration::from_millis(50);

/// Asks again and again until it is so; `false` when it was not so within the time.
pub(crate) async fn wait_until(
    at_most: Duration,
    mut is_so: impl AsyncFnMut() -> Result<bool, Failure>,
) -> Result<bool, Failure> {
    let begun = Instant::now();
    while !is_so().await? {
        match begun.elapsed() {
            waited if waited > at_most => return Ok(false),
            waited if waited > Duration::from_secs(1) => sleep(SLOW_GLANCE).await,
            _ => sleep(GLANCE).await,
        }
    }
    Ok(true)
}

/// Waits until nodes have applied the same, and returns how each then is.
pub(crate) async fn wait_until_equal(
    at_most: Duration,
    mut statuses: impl AsyncFnMut() -> Result<Vec<StatusView>, Failure>,
) -> Result<Vec<StatusView>, Failure> {
    let mut last = Vec::new();
    let is_equal = wait_until(at_most, async || {
        last = statuses().await?;
        Ok(last.windows(2).all(|pair| pair[0].applied == pair[1].applied))
    });
    match is_equal.await? {
        true => Ok(last),
        false => Err(Failure::unreachable(format_args!("the nodes are not equal after {} s", at_most.as_secs()))),
    }
}

//! Members that come back: after a long time, from an old image, beside a member that never does, with damaged files.
//!
//! `POLYARCH_RETURN_KEYS` says how many keys are written while a member is away (default 10,000), and
//! `POLYARCH_RETURN_KILLS` how often a donor or the receiver of a snapshot is killed (default 4).

#[path = "../support/mod.rs"]
mod support;

mod away;
mod catch_up;
mod damage;
mod forged;
mod forks;
mod images;
mod load;
mod poison;
mod repair;
mod retention;

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

/// How long nodes may take to be equal once nobody writes.
const EQUAL_WITHIN: Duration = Duration::from_secs(60);

/// One test at a time: each is a cluster under load, and one measures.
static TURNS: Semaphore = Semaphore::const_new(1);

/// Held by a test that runs.
async fn turn() -> SemaphorePermit<'static> {
    TURNS.acquire().await.expect("it is never closed")
}

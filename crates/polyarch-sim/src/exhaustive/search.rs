//! The search through all orders, depth first, on several threads.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use polyarch_protocol::catalog::KeyspaceKind;

use super::machine::Machine;
use super::order::Order;
use super::start::Start;
use crate::bugs::{self, Bug};
use crate::invariants::{Checked, Violation};
use crate::run::message;

/// Orders are shared out among threads by their first events, so many.
const SHARED_EVENTS: usize = 2;

/// What may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// Events of an order.
    pub events: usize,
    /// Keys that clients write, 1 or 2.
    pub keys: usize,
    /// The keyspace they are in.
    pub kind: KeyspaceKind,
    /// Each key has a value on all nodes in the beginning.
    pub has_values: bool,
    /// Clients delete.
    pub deletes: bool,
    /// Processes are killed, and power is cut.
    pub ends: bool,
    /// Writes and feeds may be staged when the next thing happens.
    pub unsynced: bool,
    /// Disks are put back.
    pub set_back: bool,
    /// Nodes write checkpoints.
    pub checkpoints: bool,
    /// Snapshots are fetched.
    pub snapshots: bool,
}

/// A search of all orders within a scope.
#[derive(Debug, Clone, Copy)]
pub struct Search {
    /// What may happen.
    pub scope: Scope,
    /// A bug that is switched on meanwhile.
    pub bug: Option<Bug>,
    /// Threads.
    pub jobs: usize,
    /// Orders that come to the same are run once. Without it all are run, to see that they do.
    pub leaves_out_alike: bool,
}

/// What a search came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Orders that were run, by their number of events.
    pub orders: Vec<u64>,
    /// These with their renamings.
    pub renamed: u64,
    /// The shortest order that broke something.
    pub broken: Option<Broken>,
}

/// An order that broke something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The order.
    pub order: Order,
    /// What it broke.
    pub violation: Violation,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lengths: Vec<String> =
            self.orders.iter().enumerate().map(|(events, n)| format!("{n} of {events}")).collect();
        let (all, renamed) = (self.orders.iter().sum::<u64>(), self.renamed);
        write!(f, "{all} orders of events run ({}), {renamed} with their renamings,", lengths.join(", "))
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` breaks {}", self.order, self.violation)
    }
}

impl Search {
    /// Runs all orders of up to so many events, the shorter ones first, and ends with the first number of
    /// events at which one breaks something.
    ///
    /// # Errors
    /// When the nodes cannot be brought up to begin with.
    pub fn run(&self) -> Result<Found, Violation> {
        let start = Start::new(self.scope.kind, self.scope.keys, self.scope.has_values)?;
        let mut found = Found::default();
        for events in 0..=self.scope.events {
            let tally = self.run_length(&start, events);
            found.orders.push(tally.orders);
            found.renamed += tally.renamed;
            found.broken = tally.broken;
            if found.broken.is_some() {
                break;
            }
        }
        Ok(found)
    }

    /// Runs one order.
    ///
    /// # Errors
    /// When it breaks something.
    pub fn run_order(&self, order: &Order) -> Result<(), Violation> {
        let start = Start::new(self.scope.kind, self.scope.keys, self.scope.has_values)?;
        bugs::switch_on(self.bug);
        let outcome = run_to_end(&start, order);
        bugs::switch_on(None);
        outcome
    }

    /// Runs all orders of exactly so many events: shorter ones are only gone through.
    fn run_length(&self, start: &Start, events: usize) -> Tally {
        let mut tally = Tally::default();
        let mut shared = vec![Order::default()];
        bugs::switch_on(self.bug);
        for begun in 0..events.min(SHARED_EVENTS) {
            shared = shared.iter().flat_map(|order| self.followers(start, order, events - begun, &mut tally)).collect();
        }
        bugs::switch_on(None);
        let (next, is_broken, tally) =
            (AtomicUsize::new(0), AtomicBool::new(tally.broken.is_some()), Mutex::new(tally));
        let work = || {
            bugs::switch_on(self.bug);
            let mut own = Tally::default();
            while let Some(order) = shared.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.explore(start, order, events, &mut own, &is_broken);
            }
            bugs::switch_on(None);
            tally.lock().expect("no thread panics while it holds the lock").join(own);
        };
        thread::scope(|scope| (0..self.jobs.max(1)).for_each(|_| drop(scope.spawn(work))));
        tally.into_inner().expect("all threads have ended")
    }

    fn explore(&self, start: &Start, order: &Order, events: usize, tally: &mut Tally, is_broken: &AtomicBool) {
        if is_broken.load(Ordering::Relaxed) {
            return;
        }
        if order.0.len() == events {
            tally.orders += 1;
            tally.renamed += order.renamings();
            if let Err(violation) = run_to_end(start, order) {
                tally.note(order, violation);
            }
        } else {
            for longer in self.followers(start, order, events - order.0.len(), tally) {
                self.explore(start, &longer, events, tally, is_broken);
            }
        }
        is_broken.fetch_or(tally.broken.is_some(), Ordering::Relaxed);
    }

    /// The orders of one more event, where so many are to come.
    fn followers(&self, start: &Start, order: &Order, left: usize, tally: &mut Tally) -> Vec<Order> {
        let events = match guarded(|| Ok(Machine::after(start, order)?.next_events(&self.scope, left - 1))) {
            Ok(events) => events,
            Err(violation) => {
                tally.note(order, violation);
                return Vec::new();
            }
        };
        let longer = events.into_iter().map(|event| Order([order.0.as_slice(), &[event]].concat()));
        longer.filter(|longer| !self.leaves_out_alike || longer.is_least()).collect()
    }
}

/// What the orders of one length came to.
#[derive(Debug, Default)]
struct Tally {
    orders: u64,
    renamed: u64,
    broken: Option<Broken>,
}

impl Tally {
    fn note(&mut self, order: &Order, violation: Violation) {
        if self.broken.as_ref().is_none_or(|other| *order < other.order) {
            self.broken = Some(Broken { order: order.clone(), violation });
        }
    }

    fn join(&mut self, other: Self) {
        self.orders += other.orders;
        self.renamed += other.renamed;
        if let Some(Broken { order, violation }) = other.broken {
            self.note(&order, violation);
        }
    }
}

/// Runs an order, and lets the nodes become equal.
fn run_to_end(start: &Start, order: &Order) -> Checked {
    guarded(|| Machine::after(start, order)?.heal())
}

/// A panic of the code under test breaks something, too.
fn guarded<T>(run: impl FnOnce() -> Result<T, Violation>) -> Result<T, Violation> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(Violation::new("no_panic", message(&*panic))))
}

//! What can happen next, and would change something.

use super::NODES;
use super::event::{Context, Ending, Event, Feeding};
use super::machine::Machine;
use super::search::Scope;
use super::truth::Writes;
use polyarch_protocol::catalog::KeyspaceKind;

impl Machine<'_> {
    /// The events that may follow here, with `left` more to come behind them.
    ///
    /// While a node has something staged, nothing but a write, or its end, may come between: whatever
    /// else concerns it waits for the sync, and with that it is as if the write had been synced at once.
    pub(super) fn next_events(&self, scope: &Scope, left: usize) -> Vec<Event> {
        let mut events = Vec::new();
        for at in 0..NODES {
            self.add_writes(&mut events, at, scope, left);
            self.add_ends(&mut events, at, scope);
            if scope.checkpoints && self.checkpoints_due[at] > 0 && !self.is_staged(at) && !self.is_merged(at) {
                events.push(Event::Checkpoint { at });
            }
            let others = (0..NODES).filter(|from| *from != at);
            for from in others.filter(|from| !self.is_staged(at) && !self.is_staged(*from)) {
                self.add_feeds(&mut events, at, from, scope, left);
                self.add_fetches(&mut events, at, from, scope, left);
            }
        }
        events
    }

    fn add_writes(&self, events: &mut Vec<Event>, at: usize, scope: &Scope, left: usize) {
        for key in 0..self.start.keys.len() {
            for context in self.contexts(at, key) {
                let deletes = scope.deletes && self.deletes_something(at, key, context);
                for puts in [true, false].into_iter().filter(|puts| *puts || deletes) {
                    events.push(Event::Write { at, key, puts, context, is_synced: true });
                    // With another event behind it that finds it staged.
                    if scope.unsynced && left > 0 && context == Context::Held {
                        events.push(Event::Write { at, key, puts, context, is_synced: false });
                    }
                }
            }
        }
    }

    /// Contexts that name different writes, the least event for each.
    fn contexts(&self, at: usize, key: usize) -> Vec<Context> {
        let own = match self.start.kind {
            KeyspaceKind::Lww => self.truth.live(self.truth.nodes[at].staged, key),
            KeyspaceKind::Mv => 0,
        };
        let mut found: Vec<(Writes, Context)> = Vec::new();
        let shown = (0..NODES).map(Context::ShownBy);
        for context in [Context::Held, Context::Nothing, Context::Stale].into_iter().chain(shown) {
            let names = self.context_of(at, key, context).writes | own;
            if found.iter().all(|(other, _)| *other != names) {
                found.push((names, context));
            }
        }
        found.into_iter().map(|(_, context)| context).collect()
    }

    fn deletes_something(&self, at: usize, key: usize, context: Context) -> bool {
        let staged = self.truth.nodes[at].staged;
        let live = self.truth.live(staged, key);
        let names = self.context_of(at, key, context).writes;
        let names = if self.start.kind == KeyspaceKind::Lww { names | live } else { names };
        names & (live | !staged) != 0
    }

    fn add_ends(&self, events: &mut Vec<Event>, at: usize, scope: &Scope) {
        if scope.ends && self.is_touched[at] {
            events.push(Event::End { at, how: Ending::Cut });
        }
        if scope.ends && self.is_staged(at) {
            events.push(Event::End { at, how: Ending::Killed });
        }
        if scope.set_back && self.truth.nodes[at].staged != self.truth.first {
            events.push(Event::End { at, how: Ending::SetBack });
        }
    }

    fn add_feeds(&self, events: &mut Vec<Event>, to: usize, from: usize, scope: &Scope, left: usize) {
        let lacking = self.lacking(to, from).count_ones();
        if lacking == 0 {
            return;
        }
        events.push(Event::Feed { to, from, how: Feeding::Whole });
        if lacking > 1 {
            events.push(Event::Feed { to, from, how: Feeding::One });
        }
        if scope.unsynced && left > 0 {
            events.push(Event::Feed { to, from, how: Feeding::Unsynced });
        }
    }

    fn add_fetches(&self, events: &mut Vec<Event>, to: usize, from: usize, scope: &Scope, left: usize) {
        if !scope.snapshots {
            return;
        }
        match self.fetches[to].donor() {
            // What is on its way in the end is joined then.
            Some(donor) if donor == from && left > 0 => {
                events.push(Event::Join { to, from });
                if !self.is_merged(to) {
                    events.push(Event::Merge { to, from });
                }
            }
            Some(_) => {}
            None => {
                if self.lacking(to, from) != 0 {
                    events.push(Event::Snapshot { to, from });
                }
                // With something that happens before the join.
                if left > 0 {
                    events.extend((0..=self.start.keys.len()).map(|keys| Event::Walk { to, from, keys }));
                }
            }
        }
    }
}

//! What is to happen, in the order of times, and of one time in the order in which it was scheduled.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::Event;

/// Events that are to come. The heap moves small entries about; the events stay where they are.
#[derive(Debug, Default)]
pub(super) struct Queue {
    order: BinaryHeap<Reverse<Entry>>,
    events: Vec<Option<Event>>,
    free: Vec<usize>,
    scheduled: u64,
}

/// When, the how-manieth that was scheduled, and where it is kept.
type Entry = (u64, u64, usize);

impl Queue {
    pub(super) fn push(&mut self, at_us: u64, event: Event) {
        self.scheduled += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[slot] = Some(event);
        self.order.push(Reverse((at_us, self.scheduled, slot)));
    }

    /// The next event, and when it happens.
    pub(super) fn pop(&mut self) -> Option<(u64, Event)> {
        let Reverse((at_us, _, slot)) = self.order.pop()?;
        self.free.push(slot);
        self.events[slot].take().map(|event| (at_us, event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_the_order_of_times_and_then_as_they_were_scheduled() {
        let mut queue = Queue::default();
        for (at_us, node) in [(5, 0), (3, 1), (5, 2), (3, 3), (1, 4)] {
            queue.push(at_us, Event::Start { at: node });
        }
        let mut came = Vec::new();
        while let Some((at_us, event)) = queue.pop() {
            let Event::Start { at } = event else { unreachable!("nothing else was scheduled") };
            came.push((at_us, at));
            if at == 4 {
                queue.push(4, Event::Start { at: 5 });
            }
        }
        assert_eq!(came, [(1, 4), (3, 1), (3, 3), (4, 5), (5, 0), (5, 2)]);
    }
}

//! A small story of two masters, always the same: cut apart, in conflict, healed, settled.

use std::fmt::{self, Write};

use crate::invariants::Violation;
use crate::trace::Sink;
use crate::world::{Replace, World};

/// The two masters.
const NAMES: [&str; 2] = ["A", "B"];
/// What they share.
const KEYSPACE: &str = "carts";
const KEY: &str = "alice";

/// Tells the story.
///
/// # Errors
/// When an invariant does not hold in it.
pub fn tell() -> Result<String, Violation> {
    let mut story = Story { world: World::scripted(NAMES.len(), Sink::Nowhere)?, text: String::new() };
    story.run()?;
    Ok(story.text)
}

struct Story {
    world: World,
    text: String,
}

impl Story {
    fn run(&mut self) -> Result<(), Violation> {
        self.say(format_args!("Two masters, A and B, run the shipped replica, log and feeds on a simulated"));
        self.say(format_args!("network, clock and disk. Both accept every write.\n"));
        self.put(0, "milk", Replace::Held)?;
        self.world.pass(1_000)?;
        self.show(1)?;

        self.say(format_args!("\nThe network between them is cut. Both go on taking writes of the same key."));
        self.world.cut(0, 1)?;
        self.put(0, "milk and bread", Replace::Shown)?;
        self.put(1, "milk and eggs", Replace::Shown)?;
        self.show(0)?;
        self.show(1)?;
        self.compare();

        self.say(format_args!("\nB loses power, and with it all that was not synced. It acknowledged its write, so"));
        self.say(format_args!("the write is there when it comes back."));
        self.world.power_cut(1)?;
        self.show(1)?;

        self.say(format_args!("\nThe network heals. Neither write saw the other, so neither may win in silence:"));
        self.say(format_args!("both masters show both, as siblings."));
        self.world.mend()?;
        self.show(0)?;
        self.show(1)?;
        self.compare();

        self.say(format_args!("\nA client reads both on B and writes what it makes of them, with the context of that"));
        self.say(format_args!("read: the write replaces exactly what the client saw."));
        self.put(1, "milk, bread and eggs", Replace::Shown)?;
        self.world.pass(1_000)?;
        self.show(0)?;
        self.show(1)?;
        self.compare();
        self.say(format_args!(
            "\nEvery step was checked against all invariants. To see what a hostile world does to it:\n\
             \n  cargo run --release -p polyarch-sim -- run --seeds 0..500\n\
             \nA seed is a run and replays to the same trace hash:\n\
             \n  cargo run --release -p polyarch-sim -- replay 7 --trace"
        ));
        Ok(())
    }

    fn put(&mut self, at: usize, value: &str, replace: Replace) -> Result<(), Violation> {
        let said = self.world.write(at, KEYSPACE, KEY, Some(value), replace)?;
        self.say(format_args!("  {} put {KEY} = {value}   ({said}, synced)", NAMES[at]));
        Ok(())
    }

    fn show(&mut self, at: usize) -> Result<(), Violation> {
        let values = self.world.read_values(at, KEYSPACE, KEY)?;
        self.say(format_args!("  {} get {KEY} -> {}", NAMES[at], values.join("  |  ")));
        Ok(())
    }

    fn compare(&mut self) {
        let standings = [self.world.standing(0), self.world.standing(1)];
        let [(applied_a, digest_a), (applied_b, digest_b)] = &standings;
        let applied = if applied_a == applied_b { "equal" } else { "different" };
        let digests = if digest_a == digest_b { "equal" } else { "different" };
        let (a, b) = (&digest_a[..8], &digest_b[..8]);
        self.say(format_args!("  applied-sets {applied}, digests {digests} (A {a}..., B {b}...)"));
    }

    fn say(&mut self, line: fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("a String takes all that is written");
    }
}

//! A run: clusters, one after the other, each for some rounds of fire, healing and looking.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use polyarch_client::{Client, Dot, StatusView};

use crate::checks::{self, Held, Payloads};
use crate::faults::{Faults, Sweep, topology_name};
use crate::field::{Field, KEYSPACES};
use crate::load::{Load, Story};
use crate::report::Report;
use crate::support::writers::Rng;

/// After healing: until all members are active, take writes and serve every session.
const ALIVE_WITHIN: Duration = Duration::from_secs(90);
/// After the last write: until all nodes are equal.
const EQUAL_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often each node and each session has to come forward to count as alive.
const STEPS_MIN: u64 = 3;
const ROUNDS_MAX: u64 = 8;

/// Fires for so long, and panics if a promise broke.
pub(crate) async fn run(form: &'static str, seed: u64, lasts: Duration) {
    let mut report = Report::new(form, seed);
    let (mut rng, mut sweep) = (Rng(seed), Sweep::default());
    while report.began.elapsed() < lasts {
        report.clusters += 1;
        let mut battle = Battle::begin(&mut report, &mut rng, &mut sweep).await;
        let rounds = 2 + battle.rng.below(ROUNDS_MAX - 1);
        for round in 0..rounds {
            if battle.report.began.elapsed() < lasts {
                battle = battle.round(round).await;
            }
        }
        battle.end();
    }
}

/// One cluster and all that is known of it.
struct Battle<'a> {
    field: Field,
    story: Story,
    payloads: Payloads,
    chains: BTreeSet<Dot>,
    clients: Vec<Client>,
    report: &'a mut Report,
    rng: &'a mut Rng,
    sweep: &'a mut Sweep,
}

impl<'a> Battle<'a> {
    async fn begin(report: &'a mut Report, rng: &'a mut Rng, sweep: &'a mut Sweep) -> Self {
        let (nodes, settings, has_clocks) = (3 + rng.below(3) as u32, settings(rng), rng.below(2) == 0);
        let field = Field::start(nodes, &settings, has_clocks, rng.next(), &report.relayed).await;
        let story = Story::new(&field, rng.next());
        let clients = field.ids().into_iter().map(|id| field.client_of(id)).collect();
        let mut battle =
            Self { field, story, payloads: Payloads::default(), chains: BTreeSet::new(), clients, report, rng, sweep };
        battle.shape().await;
        battle
    }

    /// Sets a topology that is drawn.
    async fn shape(&mut self) {
        let topology = Faults::new(&mut self.field, self.rng, self.sweep).draw_topology();
        self.clients[0].set_topology(&topology).await.expect("nothing is done to the cluster yet");
        let name = format!("{} of {}", topology_name(&topology), self.clients.len());
        println!("[{:>4} s] cluster {}: {topology}", self.report.began.elapsed().as_secs(), self.report.clusters);
        *self.report.topologies.entry(name).or_default() += 1;
    }

    async fn round(mut self, round: u64) -> Self {
        self.report.rounds += 1;
        let load = self.story.start(&self.field, round);
        let mut faults = Faults::new(&mut self.field, self.rng, self.sweep);
        let kinds = faults.draw_kinds();
        let names: Vec<_> = kinds.iter().map(|kind| kind.words()).collect();
        println!("[{:>4} s]   round {round}: {}", self.report.began.elapsed().as_secs(), names.join(", "));
        let end = Instant::now() + faults.draw_length();
        while Instant::now() < end && faults.breaches.is_empty() {
            faults.step(&kinds).await;
            // The time until the next fault, not a wait for anything.
            tokio::time::sleep(faults.draw_pause()).await;
        }
        faults.heal().await;
        let healed = Instant::now();
        until_alive(&mut faults, &load, &self.clients).await;
        let excuse = faults.excuse.take();
        self.report.resident_kib = self.report.resident_kib.max(faults.resident_kib);
        self.report.counted.breaches.append(&mut faults.breaches);
        for (fault, count) in std::mem::take(&mut faults.counts) {
            *self.report.faults.entry(fault).or_default() += count;
        }
        let (story, counted) = load.finish().await;
        self.story = story;
        self.report.counted.add(counted);
        let statuses = self.until_equal().await;
        self.report.longest_to_equality = self.report.longest_to_equality.max(healed.elapsed());
        self.report.digests += statuses.len() as u64;
        self.report.counted.breaches.extend(statuses.iter().flat_map(checks::complaints));
        let applied = &statuses[0].applied;
        let gone = self.story.acked().into_iter().filter(|gtid| !checks::has(applied, *gtid));
        let (excused, lost): (BTreeSet<Dot>, BTreeSet<Dot>) =
            gone.partition(|gtid| excuse.as_ref().is_some_and(|excuse| excuse.excuses(*gtid)));
        self.report.excused += excused.len() as u64;
        let lost = lost.iter().map(|gtid| format!("{gtid} was acknowledged and is on no node"));
        self.report.counted.breaches.extend(lost);
        self.look(applied, &excused).await;
        self.assert_clean();
        self.report.save("not at its end, every promise held so far");
        if excuse.is_some() {
            self.story.renew(&self.field);
        }
        self
    }

    /// Waits until all nodes say that they have applied the same; that they hold the same is asserted.
    async fn until_equal(&mut self) -> Vec<StatusView> {
        let deadline = Instant::now() + EQUAL_WITHIN;
        loop {
            let statuses = statuses(&self.clients).await;
            let is_equal = statuses.windows(2).all(|pair| pair[0].applied == pair[1].applied);
            let is_known = statuses.iter().all(|status| !status.digest.is_empty());
            if statuses.len() == self.clients.len() && is_equal && is_known {
                if statuses.windows(2).any(|pair| pair[0].digest != pair[1].digest) {
                    self.fail(format!("nodes that applied the same hold not the same: {statuses:#?}"));
                }
                return statuses;
            }
            if Instant::now() >= deadline {
                self.fail(format!("nodes are not equal within {EQUAL_WITHIN:?}: {statuses:#?}"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Looks at all that all nodes show.
    async fn look(&mut self, applied: &[Dot], lost: &BTreeSet<Dot>) {
        let mut shown: Vec<[Held; 5]> = Vec::new();
        for client in &self.clients {
            let mut of_node: [Held; 5] = Default::default();
            for (held, (keyspace, _)) in of_node.iter_mut().zip(KEYSPACES) {
                *held = checks::held(client, keyspace).await.expect("a node that is healed answers");
                self.report.gtids_read += held.values().map(|siblings| siblings.len() as u64).sum::<u64>();
                self.report.counted.breaches.extend(self.payloads.note(keyspace, held));
            }
            shown.push(of_node);
        }
        if shown.windows(2).any(|pair| pair[0] != pair[1]) {
            self.fail("nodes with equal digests show not the same".to_owned());
        }
        self.report.counted.breaches.extend(self.story.check(&shown[0], applied, lost));
        self.report.counted.breaches.extend(self.payloads.stamps_rise());
        let chains = checks::chains(&self.clients, applied, &mut self.chains).await;
        self.report.counted.breaches.extend(chains.expect("a node that is healed answers"));
    }

    /// Stops the cluster and compares what is on the disks.
    fn end(mut self) {
        self.field.cluster.stop();
        self.field.cluster.verify_equal_histories();
        let (gtids, breaches) = checks::compare_logs(&self.field.data_dirs());
        self.report.gtids_in_logs += gtids as u64;
        self.report.counted.breaches.extend(breaches);
        for id in self.field.ids() {
            let log = self.field.cluster.node(id).log();
            self.report.counted.breaches.extend(checks::panics(&log));
        }
        self.assert_clean();
    }

    fn assert_clean(&self) {
        let breaches = &self.report.counted.breaches;
        let shown: Vec<&str> = breaches.iter().take(20).map(String::as_str).collect();
        let (count, seed) = (breaches.len(), self.report.seed);
        assert!(breaches.is_empty(), "POLYARCH_SEED={seed}: {count} breaches:\n{}", shown.join("\n"));
    }

    fn fail(&mut self, breach: String) -> ! {
        self.report.counted.breaches.push(breach);
        self.assert_clean();
        unreachable!("there is a breach");
    }
}

/// Waits until all members are active, and every node and every session has come forward.
async fn until_alive(faults: &mut Faults<'_>, load: &Load, clients: &[Client]) {
    let deadline = Instant::now() + ALIVE_WITHIN;
    // Where a disk was replaced, sessions may have seen what is gone.
    let must_come_forward = faults.excuse.is_none();
    while !faults.take_back().await {
        if Instant::now() >= deadline {
            let statuses = statuses(clients).await;
            faults.breaches.push(format!("not all members are active {ALIVE_WITHIN:?} after healing: {statuses:#?}"));
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let (steps, written) = (load.steps(), written(clients).await);
    loop {
        let has_written = written.iter().zip(self::written(clients).await).all(|(was, is)| is >= was + STEPS_MIN);
        let came_forward = load.steps().iter().zip(&steps).all(|(is, was)| *is >= was + STEPS_MIN);
        if has_written && (came_forward || !must_come_forward) {
            return;
        }
        if Instant::now() >= deadline {
            let (is, was) = (load.steps(), &steps);
            faults.breaches.push(format!(
                "not every node takes writes and serves every session {ALIVE_WITHIN:?} after healing: \
                 nodes have written: {has_written}; steps of sessions {was:?}, then {is:?}"
            ));
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What each node has written; nothing of one that does not answer.
async fn written(clients: &[Client]) -> Vec<u64> {
    let mut written = Vec::new();
    for client in clients {
        written.push(client.status().await.map_or(0, |status| status.counters.written));
    }
    written
}

/// Of the nodes that answer.
async fn statuses(clients: &[Client]) -> Vec<StatusView> {
    let mut statuses = Vec::new();
    for client in clients {
        statuses.extend(client.status().await);
    }
    statuses
}

/// Small files, so that faults meet checkpoints and new segments; in some clusters logs that are cut below who is away.
fn settings(rng: &mut Rng) -> String {
    let log_mib_max = [0, 1, 2, 4_096][rng.below(4) as usize];
    let checkpoint = 1 + rng.below(3);
    format!(
        "[storage]\nmemtable_mib = 1\nsegment_mib = 1\ncheckpoint_log_mib = {checkpoint}\n\
         disk_reserve_mib = 16\nlog_mib_max = {log_mib_max}\n"
    )
}

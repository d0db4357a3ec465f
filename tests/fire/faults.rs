//! What is done to a cluster, drawn from a seed, and how it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use polyarch_client::{Dot, MemberChange, MemberStatus, StatusView, Topology};

use crate::apart;
use crate::checks::has;
use crate::field::{Field, Life};
use crate::relay::Rules;
use crate::support::writers::Rng;

/// How far a clock goes, in seconds. Two clocks are never an hour apart, from where on stamps are not taken over.
const CLOCK_MAX: u64 = 25 * 60;
/// How long a member may take to hand over what it has before it is removed all the same.
const DRAINED_WITHIN: Duration = Duration::from_secs(4);

macro_rules! kinds {
    ($($kind:ident $words:literal $needs:ident),* $(,)?) => {
        /// A kind of fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Kind {
            $($kind),*
        }

        impl Kind {
            pub(crate) fn words(self) -> &'static str {
                match self {
                    $(Self::$kind => $words),*
                }
            }

            /// All that can be done here.
            pub(crate) fn all() -> Vec<Self> {
                let mut all = Vec::new();
                $(if $needs() {
                    all.push(Self::$kind);
                })*
                all
            }
        }
    };
}

kinds! {
    Kill "kill -9 of a node" anywhere,
    KillAll "kill -9 of all nodes at once" anywhere,
    Restart "stop in order and start" anywhere,
    Freeze "SIGSTOP, later SIGCONT" anywhere,
    Late "datagrams late" anywhere,
    Lost "datagrams lost at random" anywhere,
    Doubled "datagrams doubled" anywhere,
    Overtaken "datagrams out of order" anywhere,
    Corrupted "datagrams corrupted" anywhere,
    OneWay "one direction blocked" anywhere,
    Isolated "one node isolated" anywhere,
    Halves "two halves" anywhere,
    Flapping "a link that flaps" anywhere,
    Switch "topology switched" anywhere,
    Leave "member drained, removed and taken back" anywhere,
    OldDisk "data directory replaced by an old copy" anywhere,
    EmptyDisk "data directory lost, and joined anew" anywhere,
    PowerCut "power cut of a node" on_machines,
    PowerCutAll "power cut of all nodes at once" on_machines,
    CallError "EIO at the n-th system call" with_strace,
    CallKill "kill at the n-th system call" with_strace,
    DiskFull "disk full" on_machines,
    Clock "wall clock jumps" with_faketime,
    FilterOneWay "one direction dropped by nftables" with_nftables,
    FilterLoss "random loss by nftables" with_nftables,
}

fn anywhere() -> bool {
    true
}

fn on_machines() -> bool {
    apart::is_apart()
}

fn with_strace() -> bool {
    apart::is_apart() && apart::has("strace")
}

fn with_faketime() -> bool {
    apart::is_apart() && apart::faketime().is_some()
}

fn with_nftables() -> bool {
    apart::is_apart() && apart::has_filter()
}

/// Which system call of which kind an error or a kill waits for. Goes on over the whole run.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    next: BTreeMap<Kind, usize>,
    numbers: u64,
}

impl Sweep {
    const CALLS: [&'static str; 5] = ["pwrite64", "fdatasync", "fsync", "rename,renameat,renameat2", "ftruncate"];
    const NTH: [u64; 14] = [1, 2, 3, 5, 8, 12, 18, 27, 40, 60, 90, 135, 200, 300];

    /// System calls, which of them, and a number for the trace.
    fn next(&mut self, kind: Kind) -> (&'static str, u64, u64) {
        let at = self.next.entry(kind).or_default();
        let (calls, nth) = (Self::CALLS[*at % Self::CALLS.len()], Self::NTH[*at / Self::CALLS.len() % Self::NTH.len()]);
        *at += 1;
        self.numbers += 1;
        (calls, nth, self.numbers)
    }
}

/// Of a disk that was replaced: which acknowledged writes may be gone. Those of its server that had reached nobody else.
#[derive(Debug, Clone)]
pub(crate) struct Excuse {
    victim: u32,
    reached: Vec<Vec<Dot>>,
}

impl Excuse {
    /// Of a server whose disk was replaced, when these were the applied-sets of the others.
    pub(crate) fn of(victim: u32, reached: Vec<Vec<Dot>>) -> Self {
        Self { victim, reached }
    }

    pub(crate) fn excuses(&self, gtid: Dot) -> bool {
        gtid.origin.server_id == self.victim && !self.reached.iter().any(|applied| has(applied, gtid))
    }
}

/// The faults of one round.
pub(crate) struct Faults<'a> {
    pub(crate) field: &'a mut Field,
    rng: &'a mut Rng,
    sweep: &'a mut Sweep,
    /// What was done, how often.
    pub(crate) counts: BTreeMap<String, u64>,
    pub(crate) excuse: Option<Excuse>,
    /// What each node that was started with a call to be met was to meet.
    traced: BTreeMap<u32, String>,
    gone: BTreeSet<u32>,
    pub(crate) breaches: Vec<String>,
    pub(crate) resident_kib: u64,
    is_told: bool,
}

impl<'a> Faults<'a> {
    pub(crate) fn new(field: &'a mut Field, rng: &'a mut Rng, sweep: &'a mut Sweep) -> Self {
        let (counts, traced) = (BTreeMap::new(), BTreeMap::new());
        let is_told = std::env::var_os("POLYARCH_FIRE_TRACE").is_some();
        let (gone, breaches) = (BTreeSet::new(), Vec::new());
        Self { field, rng, sweep, counts, excuse: None, traced, gone, breaches, resident_kib: 0, is_told }
    }

    /// Some of the kinds there are.
    pub(crate) fn draw_kinds(&mut self) -> Vec<Kind> {
        let all = Kind::all();
        let mut drawn: Vec<Kind> = all.iter().copied().filter(|_| self.rng.below(3) == 0).collect();
        while drawn.len() < 3 {
            drawn.push(all[self.rng.below(all.len() as u64) as usize]);
        }
        drawn
    }

    /// How long a round lasts.
    pub(crate) fn draw_length(&mut self) -> Duration {
        Duration::from_millis(6_000 + self.rng.below(8_000))
    }

    /// How long it is until the next fault.
    pub(crate) fn draw_pause(&mut self) -> Duration {
        Duration::from_millis(100 + self.rng.below(1_500))
    }

    /// Does one thing of these, or ends one.
    pub(crate) async fn step(&mut self, kinds: &[Kind]) {
        self.look();
        let kind = kinds[self.rng.below(kinds.len() as u64) as usize];
        if self.rng.below(3) == 0 {
            self.relieve_any();
        } else if self.begin(kind).await {
            self.tell(kind.words());
            *self.counts.entry(kind.words().to_owned()).or_default() += 1;
        }
    }

    fn tell(&self, text: &str) {
        if self.is_told {
            println!("    {text}: {:?}", self.field.ids().iter().map(|id| self.field.life(*id)).collect::<Vec<_>>());
        }
    }

    /// Nodes run that nothing is done to; how much memory they have.
    pub(crate) fn look(&mut self) {
        for id in self.field.ended_by_themselves() {
            self.breaches.push(format!("node {id} has ended by itself"));
        }
        self.resident_kib = self.resident_kib.max(self.field.resident_kib());
    }

    /// Ends what is done to one node, or to the network.
    fn relieve_any(&mut self) {
        let ids = self.field.ids();
        let ailing: Vec<u32> = ids.into_iter().filter(|id| self.field.life(*id) != Life::Serves).collect();
        match self.pick(&ailing) {
            Some(id) if self.rng.below(4) > 0 => self.relieve(id),
            _ => self.heal_network(),
        }
    }

    fn relieve(&mut self, id: u32) {
        let (was, what) = (self.field.has_struck(id), self.traced.remove(&id));
        if let Some(what) = what.filter(|_| was) {
            *self.counts.entry(what).or_default() += 1;
        }
        self.field.relieve(id);
        self.tell(&format!("node {id} is relieved"));
    }

    fn heal_network(&mut self) {
        self.field.relay.heal();
        if with_nftables() {
            self.field.ids().into_iter().for_each(apart::lose_nothing);
        }
    }

    /// Ends all.
    pub(crate) async fn heal(&mut self) {
        self.heal_network();
        for id in self.field.ids() {
            self.field.set_clock(id, 0);
            self.relieve(id);
        }
        self.look();
    }

    /// Takes members back until all are active, as far as the others say. Says whether they are.
    pub(crate) async fn take_back(&mut self) -> bool {
        let mut statuses = Vec::new();
        for id in self.field.ids() {
            let Ok(status) = self.field.client_of(id).status().await else { return false };
            statuses.push(status);
        }
        let is_active = |status: &StatusView| {
            let peers = status.peers.iter().all(|peer| peer.status == MemberStatus::Active);
            peers && status.status == Some(MemberStatus::Active) && status.writes_refused.is_none()
        };
        if statuses.iter().all(is_active) {
            return true;
        }
        for id in self.gone.clone() {
            let says = |status: &&StatusView| status.server_id != id;
            let of_it = |status: &StatusView| status.peers.iter().find(|p| p.server_id == id).map(|p| p.status);
            let is_out = |status: &StatusView| of_it(status).is_some_and(|status| !status.takes_writes());
            if let Some(other) = statuses.iter().filter(says).find(|status| is_out(status)) {
                // If it is refused that is seen at the next look.
                let _ = self.field.client_of(other.server_id).change_member(id, MemberChange::Rejoin).await;
            }
        }
        false
    }

    fn pick(&mut self, ids: &[u32]) -> Option<u32> {
        (!ids.is_empty()).then(|| ids[self.rng.below(ids.len() as u64) as usize])
    }

    /// A node to which nothing is done.
    fn victim(&mut self) -> Option<u32> {
        let serving = self.field.serving();
        self.pick(&serving)
    }

    /// Does it, if that is possible now.
    async fn begin(&mut self, kind: Kind) -> bool {
        match kind {
            Kind::Switch => self.switch().await,
            Kind::Leave => self.leave().await,
            Kind::OldDisk | Kind::EmptyDisk => self.replace_disk(kind).await,
            Kind::Kill | Kind::KillAll | Kind::Restart | Kind::Freeze => self.on_process(kind),
            Kind::PowerCut | Kind::PowerCutAll | Kind::CallError | Kind::CallKill | Kind::DiskFull | Kind::Clock => {
                self.on_machine(kind)
            }
            Kind::FilterOneWay | Kind::FilterLoss => self.filter(kind),
            _ => self.on_network(kind),
        }
    }

    fn on_process(&mut self, kind: Kind) -> bool {
        let Some(id) = self.victim() else { return false };
        let stays_down = self.rng.below(2) == 0;
        match kind {
            Kind::Kill => self.field.kill(id),
            Kind::KillAll => {
                let serving = self.field.serving();
                serving.iter().for_each(|id| self.field.kill(*id));
                serving.iter().for_each(|id| self.field.serve(*id));
            }
            Kind::Restart => {
                self.field.cluster.node(id).stop();
                self.field.kill(id);
            }
            _ => self.field.freeze(id),
        }
        if kind != Kind::Freeze && !stays_down && self.field.life(id) == Life::Down {
            self.imagine(id);
            self.field.serve(id);
        }
        true
    }

    /// Copies the data of a node that is down, if there is no copy yet or to have a newer one.
    fn imagine(&mut self, id: u32) {
        if !self.field.has_image(id) || self.rng.below(4) == 0 {
            self.field.take_image(id);
        }
    }

    fn on_machine(&mut self, kind: Kind) -> bool {
        let Some(id) = self.victim() else { return false };
        match kind {
            Kind::PowerCut => self.field.cut_power(&[id]),
            Kind::PowerCutAll => self.field.cut_power(&self.field.serving()),
            Kind::CallError | Kind::CallKill => {
                let (calls, nth, number) = self.sweep.next(kind);
                let what = if kind == Kind::CallError { "error=EIO" } else { "signal=KILL" };
                self.field.trace(id, calls, &format!("{what}:when={nth}"), number);
                let name = calls.split(',').next().unwrap_or_default();
                self.traced.insert(id, format!("... met: {} of {name}", what.trim_start_matches("error=")));
            }
            Kind::DiskFull => {
                let left = [0, 4 << 10, 1 << 20, 20 << 20][self.rng.below(4) as usize];
                self.field.fill(id, left);
                if self.rng.below(3) == 0 {
                    self.field.start_on_full_disk(id);
                }
            }
            _ => {
                let seconds = self.rng.below(2 * CLOCK_MAX + 1) as i64 - CLOCK_MAX as i64;
                return self.field.set_clock(id, seconds);
            }
        }
        true
    }

    fn filter(&mut self, kind: Kind) -> bool {
        let (from, to) = self.pair();
        let (rate, others) = match kind {
            Kind::FilterOneWay => (1_000, vec![from]),
            _ => (50 + self.rng.below(300), self.field.ids()),
        };
        others.into_iter().filter(|other| *other != to).for_each(|other| apart::lose(other, to, rate));
        true
    }

    fn pair(&mut self) -> (u32, u32) {
        let ids = self.field.ids();
        let one = self.rng.below(ids.len() as u64) as usize;
        let other = (one + 1 + self.rng.below(ids.len() as u64 - 1) as usize) % ids.len();
        (ids[one], ids[other])
    }

    fn on_network(&mut self, kind: Kind) -> bool {
        let (one, other) = self.pair();
        let (rate, late) = (10 + self.rng.below(200), 1 + self.rng.below(100));
        let is_all = self.rng.below(2) == 0;
        let of_one = move |from: u32, to: u32| is_all || from == one || to == one;
        let change = move |rules: &mut Rules| match kind {
            Kind::Late => rules.late_ms = (late / 2, late),
            Kind::Lost => rules.lost = rate,
            Kind::Doubled => rules.doubled = rate,
            Kind::Overtaken => rules.overtaken = rate,
            Kind::Corrupted => rules.corrupted = rate,
            Kind::Flapping => rules.flaps_ms = Some(100 + 10 * rate),
            _ => rules.is_blocked = true,
        };
        let relay = &self.field.relay;
        match kind {
            Kind::OneWay => relay.rule(one, other, change),
            Kind::Isolated => relay.rule_where(|from, to| from == one || to == one, change),
            Kind::Flapping => relay.rule_where(|from, to| [(one, other), (other, one)].contains(&(from, to)), change),
            Kind::Halves => {
                let side = |id: u32| (one..one + self.field.ids().len() as u32 / 2).contains(&id);
                relay.rule_where(|from, to| side(from) != side(to), change);
            }
            _ => relay.rule_where(of_one, change),
        }
        true
    }

    async fn switch(&mut self) -> bool {
        let (topology, Some(at)) = (self.draw_topology(), self.victim()) else { return false };
        let is_set = self.field.client_of(at).set_topology(&topology).await.is_ok();
        if is_set {
            *self.counts.entry(format!("... to {}", topology_name(&topology))).or_default() += 1;
        }
        is_set
    }

    pub(crate) fn draw_topology(&mut self) -> Topology {
        let mut ids = self.field.ids();
        for at in (1..ids.len()).rev() {
            ids.swap(at, self.rng.below(at as u64 + 1) as usize);
        }
        let text = match self.rng.below(4) {
            0 => "mesh".to_owned(),
            1 => "ring".to_owned(),
            2 => format!("star:{},{}", ids[0], ids[1]),
            _ => {
                let links: Vec<String> = ids.windows(2).map(|pair| format!("{}-{}", pair[0], pair[1])).collect();
                format!("custom:{}", links.join(","))
            }
        };
        text.parse().expect("it is a topology")
    }

    async fn leave(&mut self) -> bool {
        let serving = self.field.serving();
        if !self.gone.is_empty() || serving.len() < 2 {
            return false;
        }
        let Some(id) = self.victim() else { return false };
        let others: Vec<u32> = serving.into_iter().filter(|other| *other != id).collect();
        let client = self.field.client_of(others[0]);
        if client.change_member(id, MemberChange::Drain).await.is_err() {
            return false;
        }
        self.gone.insert(id);
        let deadline = tokio::time::Instant::now() + DRAINED_WITHIN;
        let mut is_down = false;
        while !is_down && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let status = client.status().await;
            let peers = status.map(|status| status.peers).unwrap_or_default();
            is_down = peers.iter().any(|peer| peer.server_id == id && peer.status == MemberStatus::Down);
        }
        let removed = client.change_member(id, MemberChange::Remove { force: !is_down }).await;
        let how = if is_down { "... once it was drained" } else { "... by force" };
        *self.counts.entry(how.to_owned()).or_default() += u64::from(removed.is_ok());
        true
    }

    /// Once in a round, so that it is known what may be lost: all nodes were equal when it began.
    async fn replace_disk(&mut self, kind: Kind) -> bool {
        let ids = self.field.ids();
        let candidates: Vec<u32> = match kind {
            Kind::OldDisk => ids.iter().copied().filter(|id| self.field.has_image(*id)).collect(),
            // The first founds a cluster, the others join one.
            _ => ids.iter().copied().filter(|id| *id != 1).collect(),
        };
        let Some(id) = self.pick(&candidates) else { return false };
        if self.excuse.is_some() || self.field.life(id) != Life::Serves || self.gone.contains(&id) {
            return false;
        }
        // Somebody has to answer the one that joins.
        if kind == Kind::EmptyDisk && self.field.serving().len() < 2 {
            return false;
        }
        self.field.kill(id);
        let mut reached = Vec::new();
        for other in ids.into_iter().filter(|other| *other != id) {
            reached.extend(self.field.client_of(other).status().await.map(|status| status.applied));
        }
        match kind {
            Kind::OldDisk => self.field.put_image_back(id),
            _ => self.field.join_anew(id),
        }
        self.field.serve(id);
        self.excuse = Some(Excuse::of(id, reached));
        true
    }
}

/// For the report.
pub(crate) fn topology_name(topology: &Topology) -> &'static str {
    match topology {
        Topology::Mesh => "mesh",
        Topology::Ring => "ring",
        Topology::Star { .. } => "star",
        Topology::Custom { .. } => "custom",
    }
}

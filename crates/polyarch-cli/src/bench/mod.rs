//! `polyarch bench`: what a cluster does with a load, and what it costs.
//!
//! - `plan`: what is asked for: one point of load, or the points of the suite.
//! - `cluster`: three nodes started for the occasion, or one that runs already.
//! - `load`: clients that put and get, and how long each call took.
//! - `lag`: how long until a write can be read everywhere.
//! - `process`: what the system says of a process: CPU time, memory, disk.
//! - `report`: figures, as text and as JSON.
//!
//! The load is a closed loop: a client asks again once it was answered. So a latency here is that of a cluster that is
//! as busy as its clients can make it, and a stall holds requests back instead of piling them up.

mod cluster;
mod lag;
mod load;
mod plan;
mod process;
mod report;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum, value_parser};
use polyarch_client::NodeAddress;
use tokio::runtime::Builder;

use self::cluster::{Cluster, Sample};
use self::plan::{Load, Point, Workload};
use self::report::{Figures, Report};
use crate::connection::ConnectionArguments;
use crate::failure::Failure;
use crate::signals::{StopSignal, StopSignals};
use crate::terminal::{self, Output};

/// Measure a cluster under load.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP, after_long_help = AFTER_LONG_HELP)]
pub(crate) struct Bench {
    /// What the clients do
    #[arg(long, value_enum, default_value = "put")]
    workload: Workload,
    /// Measure a fixed series instead: put by 1, 16 and 64 clients, put by 16 clients with 16 requests each, get by 64, lag
    #[arg(long, conflicts_with_all = ["workload", "clients", "pipeline", "requests", "sustained"])]
    suite: bool,
    /// Clients that ask at the same time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = value_parser!(u32).range(1..=4_096))]
    clients: u32,
    /// Requests that each client keeps under way
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u32).range(1..=1_024))]
    pipeline: u32,
    /// Connections that the clients share [default: one for every 16 clients]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=256))]
    connections: Option<u32>,
    /// The node that is asked: the first, or each client one of them in turn
    #[arg(long, value_enum, default_value = "one")]
    at: Placement,
    /// Bytes of a value; random, so they do not compress
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = value_parser!(u32).range(1..=1_048_576))]
    value_bytes: u32,
    /// Bytes of a key
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = value_parser!(u32).range(2..=1_024))]
    key_bytes: u32,
    /// How many keys there are; each request takes one at random, all alike
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = value_parser!(u64).range(1..=100_000_000))]
    keys: u64,
    /// End after so many requests, or an hour
    #[arg(long, value_name = "N", conflicts_with = "seconds", value_parser = value_parser!(u64).range(1..=1_000_000_000))]
    requests: Option<u64>,
    /// End after so long [default: 10; with --sustained 60]
    #[arg(long, value_name = "S", value_parser = value_parser!(u64).range(1..=3_600))]
    seconds: Option<u64>,
    /// Run for at least 60 s, and on until every node has finished two checkpoints, at most 15 minutes
    #[arg(long, conflicts_with = "requests")]
    sustained: bool,
    /// The same load for so many seconds before anything counts
    #[arg(long, value_name = "S", default_value_t = 2, value_parser = value_parser!(u64).range(0..=600))]
    warm_up: u64,
    #[command(flatten)]
    started: StartedCluster,
    #[command(flatten)]
    running: RunningCluster,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// How the three nodes are kept that are started for the run.
#[derive(Debug, Args)]
#[command(next_help_heading = "The nodes that it starts")]
struct StartedCluster {
    /// When a write is acknowledged: synced, or before that
    #[arg(long, value_enum, default_value = "sync")]
    durability: DurabilityArgument,
    /// A checkpoint is due after so much log, in MiB [default: the node's; with --sustained 32]
    #[arg(long, value_name = "MIB", value_parser = value_parser!(u64).range(1..=1_048_576))]
    checkpoint_log_mib: Option<u64>,
    /// A checkpoint is due when so much is in memory, in MiB [default: the node's]
    #[arg(long, value_name = "MIB", value_parser = value_parser!(u64).range(1..=65_536))]
    memtable_mib: Option<u64>,
    /// Where their data is for the time of the run; on a memory file system a sync costs nothing [default: the system's
    /// directory for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// A cluster that runs already.
#[derive(Debug, Args)]
#[command(next_help_heading = "A cluster that runs already")]
struct RunningCluster {
    /// Measure the nodes of the profile, which must be all of the cluster; its client must be an admin. Writes into a
    /// keyspace `bench`, and leaves it there
    #[arg(long, conflicts_with_all = ["durability", "checkpoint_log_mib", "memtable_mib", "dir"])]
    running: bool,
    /// Other addresses than the profile's, in the order in which they are to be asked
    #[arg(long, value_name = "NODE,..", value_delimiter = ',', requires = "running")]
    nodes: Vec<NodeAddress>,
    /// The nodes' process ids on this machine, in the same order, for CPU time and memory
    #[arg(long, value_name = "PID,..", value_delimiter = ',', requires = "running")]
    pids: Vec<u32>,
}

/// Which nodes are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Placement {
    /// The first
    One,
    /// Each client one of them, in turn
    All,
}

/// See [`StartedCluster::durability`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DurabilityArgument {
    /// Synced first: it survives a power cut
    Sync,
    /// Synced every 100 ms
    Interval,
}

const AFTER_HELP: &str = "\
Without --running it starts three nodes on 127.0.0.1, measures them, and removes them.

Examples:
  polyarch bench --clients 16 --seconds 20
  polyarch bench --suite --json > figures.json
  polyarch bench --sustained --clients 64
  polyarch bench --running --profile client.toml --workload get";

const AFTER_LONG_HELP: &str = "\
Without --running it starts three nodes on 127.0.0.1, measures them, and removes them.

What is measured:
  acked       requests answered in a second
  sustained   the same, but the clock runs on until every node has applied every write
  CPU s       user and system time of the processes for 100,000 requests, also until then; checkpoints that begin later
              are not in it, so use --sustained for what they cost
  link bytes  what nodes sent each other for a write, answers included, as UDP payload; UDP and IP headers are 28 bytes
              a datagram more
  group       write sets that shared one sync of the log
  lag         (--workload lag) one write at a time, with pauses; from its start until a read at each node has shown it,
              the way back of the slowest answer included

--json prints one object; what could not be measured is null:
  {\"version\", \"unix_time\",
   \"cluster\": {\"nodes\", \"started_here\", \"durability\", \"file_system\", \"checkpoint_log_mib\", \"memtable_mib\"},
   \"runs\": [{\"workload\", \"clients\", \"pipeline\", \"connections\", \"at\", \"key_bytes\", \"value_bytes\", \"keys\",
             \"operations\", \"seconds\", \"acked_per_s\", \"sustained_seconds\", \"sustained_per_s\",
             \"latency_ms\": {\"p50\", \"p99\", \"p999\", \"max\"},
             \"cpu_s_per_100k\": {\"nodes\": [..], \"sum\", \"client\"},
             \"link_bytes_per_write\",
             \"nodes\": [{\"server_id\", \"syncs\", \"group\", \"log_bytes_per_write\", \"checkpoints\", \"rss_bytes\",
                        \"disk_bytes\"}]}],
   \"lag\": {\"probes\", \"acked_ms\": {\"p50\", \"p99\", \"p999\", \"max\"}, \"visible_ms\": {..}}}

Examples:
  polyarch bench --clients 16 --seconds 20
  polyarch bench --suite --json > figures.json
  polyarch bench --sustained --clients 64
  polyarch bench --running --profile client.toml --workload get";

/// How long the nodes may take to become equal after the last answer.
const EQUAL_MAX: Duration = Duration::from_secs(300);

impl Bench {
    pub(crate) fn run(self, connection: &ConnectionArguments) -> Result<(), Failure> {
        let plan = self.plan()?;
        // One thread: the clients are to leave the cores to the nodes.
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::system("start threads", &error))?;
        let report = runtime.block_on(self.run_until_stopped(plan, connection))?;
        let mut output = Output::stdout();
        match self.json {
            true => output.json(&report)?,
            false => output.bytes(report.to_string().as_bytes())?,
        }
        output.flush()
    }

    fn plan(&self) -> Result<Vec<Load>, Failure> {
        let base = Point {
            workload: self.workload,
            clients: self.clients,
            pipeline: self.pipeline,
            connections: self.connections,
            placement: self.at,
            value_bytes: self.value_bytes as usize,
            key_bytes: self.key_bytes as usize,
            keys: self.keys,
            requests: self.requests,
            seconds: self.seconds,
            warm_up: Duration::from_secs(self.warm_up),
            sustained: self.sustained,
        };
        base.check()?;
        Ok(match self.suite {
            true => plan::suite(&base),
            false => vec![base.load()],
        })
    }

    /// Whatever ends the run, the nodes that it started end with it.
    async fn run_until_stopped(&self, plan: Vec<Load>, connection: &ConnectionArguments) -> Result<Report, Failure> {
        // Each of them must remove the nodes.
        let mut stop_signals = StopSignals::listen()?.and_hang_up()?;
        let cluster = tokio::select! {
            cluster = self.cluster(connection) => cluster?,
            signal = stop_signals.next() => return Err(interrupted(signal)),
        };
        let report = tokio::select! {
            report = measure_all(&cluster, plan) => report,
            signal = stop_signals.next() => Err(interrupted(signal)),
        };
        cluster.stop().await;
        report
    }

    async fn cluster(&self, connection: &ConnectionArguments) -> Result<Cluster, Failure> {
        match self.running.running {
            true => Cluster::running(connection.profile()?, &self.running.nodes, &self.running.pids),
            false => Cluster::start(&self.started, self.sustained).await,
        }
    }
}

async fn measure_all(cluster: &Cluster, plan: Vec<Load>) -> Result<Report, Failure> {
    cluster.prepare().await?;
    if cluster.is_in_memory() {
        terminal::note("the nodes' data is in memory, where a sync costs nothing; --dir names another place");
    }
    let mut report = Report::of(cluster);
    for load in plan {
        match load {
            Load::Requests(point) => report.runs.push(measure(cluster, &point).await?),
            Load::Lag(probes) => report.lag = Some(lag::measure(cluster, &probes).await?),
        }
    }
    Ok(report)
}

/// One point: everything is equal before it begins, and the count ends when everything is equal again.
async fn measure(cluster: &Cluster, point: &Point) -> Result<Figures, Failure> {
    let load = load::Clients::connect(cluster, point)?;
    if point.workload.reads() {
        load.fill().await?;
    }
    load.warm_up().await?;
    cluster.wait_until_equal(EQUAL_MAX).await?;
    let before = cluster.sample().await?;
    let client_before = process::cpu(std::process::id());
    let begun = Instant::now();
    let outcome = load.run(cluster).await?;
    cluster.wait_until_equal(EQUAL_MAX).await?;
    let sustained = begun.elapsed();
    let client_cpu = cluster::difference(client_before, process::cpu(std::process::id()));
    let after = cluster.sample().await?;
    load.close().await;
    let samples: Vec<(Sample, Sample)> = before.into_iter().zip(after).collect();
    Ok(Figures::of(point, &outcome, sustained, client_cpu, &samples))
}

fn interrupted(signal: StopSignal) -> Failure {
    Failure::stopped(signal, format_args!("the run was ended by {}; nothing of it is left", signal.name()))
}

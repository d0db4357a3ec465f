//! Figures, as text and as JSON.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::Placement;
use super::cluster::{Cluster, Sample, difference};
use super::lag::Lag;
use super::load::Outcome;
use super::plan::Point;

/// All that a command has measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    version: &'static str,
    unix_time: u64,
    cluster: ClusterFigures,
    pub(super) runs: Vec<Figures>,
    #[serde(serialize_with = "lag_figures")]
    pub(super) lag: Option<Lag>,
}

#[derive(Debug, Serialize)]
struct ClusterFigures {
    nodes: usize,
    started_here: bool,
    durability: Option<&'static str>,
    file_system: Option<String>,
    checkpoint_log_mib: Option<u64>,
    memtable_mib: Option<u64>,
}

/// What one point came to.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    workload: &'static str,
    clients: u32,
    pipeline: u32,
    connections: usize,
    at: &'static str,
    key_bytes: usize,
    value_bytes: usize,
    keys: u64,
    operations: u64,
    seconds: f64,
    acked_per_s: f64,
    sustained_seconds: f64,
    sustained_per_s: f64,
    latency_ms: LatencyFigures,
    cpu_s_per_100k: CpuFigures,
    link_bytes_per_write: Option<f64>,
    nodes: Vec<NodeFigures>,
}

#[derive(Debug, Serialize)]
struct LatencyFigures {
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

#[derive(Debug, Serialize)]
struct CpuFigures {
    nodes: Vec<Option<f64>>,
    sum: Option<f64>,
    client: Option<f64>,
}

#[derive(Debug, Serialize)]
struct NodeFigures {
    server_id: u32,
    syncs: u64,
    group: Option<f64>,
    log_bytes_per_write: Option<f64>,
    checkpoints: u64,
    rss_bytes: Option<u64>,
    disk_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct LagFigures {
    probes: u64,
    acked_ms: LatencyFigures,
    visible_ms: LatencyFigures,
}

impl Report {
    pub(super) fn of(cluster: &Cluster) -> Self {
        let settings = cluster.settings().clone();
        let cluster = ClusterFigures {
            nodes: cluster.nodes().len(),
            started_here: settings.started_here,
            durability: settings.durability,
            file_system: settings.file_system,
            checkpoint_log_mib: settings.checkpoint_log_mib,
            memtable_mib: settings.memtable_mib,
        };
        let unix_time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { version: env!("CARGO_PKG_VERSION"), unix_time, cluster, runs: Vec::new(), lag: None }
    }
}

impl Figures {
    pub(super) fn of(
        point: &Point,
        outcome: &Outcome,
        sustained: Duration,
        client_cpu: Option<Duration>,
        samples: &[(Sample, Sample)],
    ) -> Self {
        let operations = outcome.operations as f64;
        let per_100k = |cpu: Duration| cpu.as_secs_f64() / operations * 100_000.0;
        let cpu: Vec<Option<f64>> =
            samples.iter().map(|(before, after)| difference(before.cpu, after.cpu).map(per_100k)).collect();
        let link_bytes: u64 = samples.iter().map(|pair| grown(pair, |c| c.link_bytes_sent)).sum();
        Self {
            workload: point.workload.name(),
            clients: point.clients,
            pipeline: point.pipeline,
            connections: outcome.connections,
            at: match point.placement {
                Placement::One => "one",
                Placement::All => "all",
            },
            key_bytes: point.key_bytes,
            value_bytes: point.value_bytes,
            keys: point.keys,
            operations: outcome.operations,
            seconds: outcome.elapsed.as_secs_f64(),
            acked_per_s: operations / outcome.elapsed.as_secs_f64(),
            sustained_seconds: sustained.as_secs_f64(),
            sustained_per_s: operations / sustained.as_secs_f64(),
            latency_ms: LatencyFigures::of(&outcome.latencies),
            cpu_s_per_100k: CpuFigures { sum: cpu.iter().copied().sum(), nodes: cpu, client: client_cpu.map(per_100k) },
            link_bytes_per_write: ratio(link_bytes, outcome.writes),
            nodes: samples.iter().map(NodeFigures::of).collect(),
        }
    }
}

impl LatencyFigures {
    fn of(latencies: &Histogram<u64>) -> Self {
        let ms = |ns: u64| ns as f64 / 1e6;
        let at = |quantile| ms(latencies.value_at_quantile(quantile));
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: ms(latencies.max()) }
    }
}

impl NodeFigures {
    fn of(samples: &(Sample, Sample)) -> Self {
        let syncs = grown(samples, |c| c.syncs);
        let write_sets = grown(samples, |c| c.written) + grown(samples, |c| c.received);
        let (_, after) = samples;
        Self {
            server_id: after.status.server_id,
            syncs,
            group: ratio(write_sets, syncs),
            log_bytes_per_write: ratio(grown(samples, |c| c.log_bytes), write_sets),
            checkpoints: grown(samples, |c| c.checkpoints),
            rss_bytes: after.rss_bytes,
            disk_bytes: after.disk_bytes,
        }
    }
}

impl LagFigures {
    fn of(lag: &Lag) -> Self {
        Self {
            probes: lag.probes,
            acked_ms: LatencyFigures::of(&lag.acked),
            visible_ms: LatencyFigures::of(&lag.visible),
        }
    }
}

fn lag_figures<S: serde::Serializer>(lag: &Option<Lag>, serializer: S) -> Result<S::Ok, S::Error> {
    lag.as_ref().map(LagFigures::of).serialize(serializer)
}

/// What a counter grew by. A node that was restarted meanwhile counts from zero.
fn grown(samples: &(Sample, Sample), counter: fn(&polyarch_client::CountersView) -> u64) -> u64 {
    let (before, after) = samples;
    counter(&after.status.counters).saturating_sub(counter(&before.status.counters))
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.cluster)?;
        match self.runs.as_slice() {
            [] => {}
            [only] => write!(f, "{only}")?,
            several => write_table(f, several)?,
        }
        match &self.lag {
            Some(lag) => write!(f, "{}", LagFigures::of(lag)),
            None => Ok(()),
        }
    }
}

impl fmt::Display for ClusterFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.started_here {
            true => write!(f, "{} nodes on this machine, mutual TLS", self.nodes)?,
            false => write!(f, "{} nodes that ran already, mutual TLS", self.nodes)?,
        }
        let durability = self.durability.map(|durability| format!("durability {durability}"));
        let file_system = self.file_system.as_ref().map(|kind| format!("data on {kind}"));
        let checkpoint = self.checkpoint_log_mib.map(|mib| format!("a checkpoint every {mib} MiB of log"));
        let memtable = self.memtable_mib.map(|mib| format!("a checkpoint every {mib} MiB of memtable"));
        [durability, file_system, checkpoint, memtable].iter().flatten().try_for_each(|text| write!(f, ", {text}"))
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { clients, pipeline, connections, key_bytes, value_bytes, .. } = self;
        writeln!(
            f,
            "{}: {clients} clients × {pipeline} on {connections} connections to {}, keys of {key_bytes} B out of {}, \
             values of {value_bytes} B",
            self.workload,
            if self.at == "all" { "all nodes" } else { "one node" },
            grouped(self.keys)
        )?;
        writeln!(f)?;
        let rate = |rate: f64| grouped(rate.round() as u64);
        let operations = grouped(self.operations);
        writeln!(f, "acked      {:>10}/s  {operations} in {:.2} s", rate(self.acked_per_s), self.seconds)?;
        writeln!(
            f,
            "sustained  {:>10}/s  until every node had applied everything, {:.2} s",
            rate(self.sustained_per_s),
            self.sustained_seconds
        )?;
        writeln!(f, "latency    {}", self.latency_ms)?;
        writeln!(f, "CPU        {}", self.cpu_s_per_100k)?;
        if let Some(bytes) = self.link_bytes_per_write {
            writeln!(f, "links      {bytes:>10.0} B for a write, UDP payload; headers are 28 B a datagram more")?;
        }
        writeln!(f)?;
        writeln!(f, "node     syncs    group  log B/write  checkpoints  resident MiB  disk MiB")?;
        self.nodes.iter().try_for_each(|node| writeln!(f, "{node}"))
    }
}

impl fmt::Display for LatencyFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p99, p999, max } = self;
        write!(f, "p50 {p50:.3} ms  p99 {p99:.3} ms  p99.9 {p999:.3} ms  max {max:.3} ms")
    }
}

impl fmt::Display for CpuFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<String> = self.nodes.iter().map(|node| or_unknown(*node, 2)).collect();
        let (sum, client) = (or_unknown(self.sum, 2), or_unknown(self.client, 2));
        write!(f, "{sum:>10} s for 100,000 = {}; besides, the clients {client}", nodes.join(" + "))
    }
}

impl fmt::Display for NodeFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: Option<u64>| or_unknown(bytes.map(|bytes| bytes as f64 / f64::from(1 << 20)), 0);
        write!(
            f,
            "{:<4} {:>9} {:>8} {:>12} {:>12} {:>13} {:>9}",
            self.server_id,
            grouped(self.syncs),
            or_unknown(self.group, 1),
            or_unknown(self.log_bytes_per_write, 0),
            self.checkpoints,
            mib(self.rss_bytes),
            mib(self.disk_bytes)
        )
    }
}

impl fmt::Display for LagFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nlag: {} single writes on an idle cluster", self.probes)?;
        writeln!(f, "acked      {}", self.acked_ms)?;
        writeln!(f, "visible    {}, at every node", self.visible_ms)
    }
}

/// One line for each point.
fn write_table(f: &mut fmt::Formatter<'_>, runs: &[Figures]) -> fmt::Result {
    writeln!(f)?;
    writeln!(f, "                     acked  sustained   p50   p99  p99.9     max   CPU s per 100,000     links")?;
    writeln!(f, "                        /s         /s    ms    ms     ms      ms  nodes  clients    B/write  group")?;
    for run in runs {
        let rate = |rate: f64| grouped(rate.round() as u64);
        let LatencyFigures { p50, p99, p999, max } = run.latency_ms;
        writeln!(
            f,
            "{:<6} {:>4} × {:<4} {:>9} {:>10} {p50:>5.2} {p99:>5.2} {p999:>6.2} {max:>7.2} {:>6} {:>8} {:>10} {:>6}",
            run.workload,
            run.clients,
            run.pipeline,
            rate(run.acked_per_s),
            rate(run.sustained_per_s),
            or_unknown(run.cpu_s_per_100k.sum, 2),
            or_unknown(run.cpu_s_per_100k.client, 2),
            or_unknown(run.link_bytes_per_write, 0),
            or_unknown(run.nodes.first().and_then(|node| node.group), 1),
        )?;
    }
    Ok(())
}

fn or_unknown(figure: Option<f64>, digits: usize) -> String {
    figure.map_or("-".to_owned(), |figure| format!("{figure:.digits$}"))
}

/// A number with a comma after every three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_three_digits() {
        let numbers = [0, 12, 123, 1_234, 123_456, 1_234_567];
        assert_eq!(numbers.map(grouped), ["0", "12", "123", "1,234", "123,456", "1,234,567"]);
    }

    #[test]
    fn the_object_has_the_documented_fields_and_what_is_unknown_is_null() {
        let cpu = CpuFigures { nodes: vec![Some(1.5), None], sum: None, client: Some(0.5) };
        assert_eq!(serde_json::to_string(&cpu).unwrap(), r#"{"nodes":[1.5,null],"sum":null,"client":0.5}"#);
        assert_eq!(cpu.to_string(), "         - s for 100,000 = 1.50 + -; besides, the clients 0.50");
    }
}

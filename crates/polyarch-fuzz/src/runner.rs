//! The command line: what is built, which processes run, and what is said of them.

use std::collections::VecDeque;
use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{self, Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::thread;

use clap::{Parser, Subcommand};
use polyarch_fuzz::{TARGETS, Target};

use crate::TARGET_VARIABLE;

/// What cargo-fuzz passes too, but for what needs an unstable toolchain: no sanitizer looks on.
const INSTRUMENTATION: &str = "--cfg libfuzzer -Ccodegen-units=1 -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";
/// Wall-clock seconds after which an input hangs. What is merely slow is seen by its processor time.
const HANGS_AFTER: u32 = 30;
/// Memory of a whole process, with libFuzzer's own.
const PROCESS_MIB_MAX: u32 = 1_024;
/// Inputs of a corpus at most: it is for people and repositories, not a copy of all that was ever found.
const INPUTS_MAX: usize = 150;
/// Lines of a log that are shown of a process that failed.
const LINES_SHOWN: usize = 40;

/// Fuzz all that reads bytes from outside
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the targets
    List,
    /// Build the targets instrumented, and run each for a while
    Run {
        /// Seconds for each target
        #[arg(long, default_value_t = 20)]
        seconds: u32,
        /// Only this target; may be given several times
        #[arg(long = "target", value_parser = target_named)]
        targets: Vec<&'static Target>,
        /// Processes at a time
        #[arg(long, default_value_t = 2)]
        jobs: usize,
    },
    /// Run a target on inputs, without libFuzzer
    Replay {
        /// The target
        #[arg(value_parser = target_named)]
        target: &'static Target,
        /// Files, each an input
        files: Vec<PathBuf>,
    },
    /// Put into `corpus/` what was found and is worth keeping: some inputs that together reach the most
    Minimise {
        /// Only this target; may be given several times
        #[arg(long = "target", value_parser = target_named)]
        targets: Vec<&'static Target>,
    },
}

fn target_named(name: &str) -> Result<&'static Target, String> {
    let names = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
    Target::find(name).ok_or_else(|| format!("there is no target `{name}`; there are {}", names()))
}

pub(crate) fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Action::List => {
            TARGETS.iter().for_each(|target| println!("{}", target.name));
            Ok(true)
        }
        Action::Run { seconds, targets, jobs } => run(&chosen(targets), seconds, jobs),
        Action::Replay { target, files } => replay(target, &files),
        Action::Minimise { targets } => minimise(&chosen(targets)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn chosen(targets: Vec<&'static Target>) -> Vec<&'static Target> {
    match targets.is_empty() {
        true => TARGETS.iter().collect(),
        false => targets,
    }
}

fn replay(target: &Target, files: &[PathBuf]) -> io::Result<bool> {
    for path in files {
        let data = fs::read(path).map_err(|error| named(path, &error))?;
        let cost = target.check(&data);
        println!("{}: {} bytes, {} held, {:?}", path.display(), data.len(), cost.peak_bytes, cost.time);
    }
    Ok(true)
}

/// Where a target's files are.
struct Places {
    /// The inputs that are committed.
    corpus: PathBuf,
    /// What is found, from one run to the next.
    found: PathBuf,
    seeds: PathBuf,
    artifacts: PathBuf,
    log: PathBuf,
}

impl Places {
    fn of(target: &Target) -> io::Result<Self> {
        let place = |what: &str| fuzz_directory().join(what).join(target.name);
        let places = Self {
            corpus: Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name),
            found: place("found"),
            seeds: place("seeds"),
            artifacts: place("artifacts"),
            log: fuzz_directory().join(format!("{}.log", target.name)),
        };
        for directory in [&places.corpus, &places.found, &places.seeds, &places.artifacts] {
            fs::create_dir_all(directory).map_err(|error| named(directory, &error))?;
        }
        for (number, seed) in (target.seeds)().iter().enumerate() {
            fs::write(places.seeds.join(format!("{number:03}")), seed)?;
        }
        Ok(places)
    }
}

/// The directory of the instrumented build, and of all that runs leave.
fn fuzz_directory() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"));
    path::absolute(&target).unwrap_or(target).join("fuzz")
}

/// Builds the program that libFuzzer drives. The target is named, so that build scripts are not instrumented.
fn build() -> io::Result<PathBuf> {
    let rustc = Command::new("rustc").arg("-vV").output()?;
    let said = String::from_utf8_lossy(&rustc.stdout).into_owned();
    let host = said
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .ok_or_else(|| io::Error::other("rustc names no host"))?;
    let directory = fuzz_directory();
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--locked", "--profile", "fuzz", "--bin", "fuzz", "--target", host])
        .env("CARGO_TARGET_DIR", &directory)
        .env("RUSTFLAGS", INSTRUMENTATION)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()?;
    match status.success() {
        true => Ok(directory.join(host).join("fuzz").join("fuzz")),
        false => Err(io::Error::other("the instrumented build failed; it needs g++")),
    }
}

/// What came of a run.
struct Outcome {
    target: &'static Target,
    succeeded: bool,
    executions: String,
    executions_per_second: String,
    new_inputs: String,
    peak_mib: String,
    log: PathBuf,
    artifacts: Vec<PathBuf>,
}

fn run(targets: &[&'static Target], seconds: u32, jobs: usize) -> io::Result<bool> {
    let program = build()?;
    let queue: Mutex<VecDeque<_>> = Mutex::new(targets.iter().copied().collect());
    let outcomes = Mutex::new(Vec::new());
    let next = || queue.lock().expect("no worker panics with it").pop_front();
    let work = || -> io::Result<()> {
        while let Some(target) = next() {
            println!("{}: {seconds} s", target.name);
            let outcome = fuzz(&program, target, seconds)?;
            outcomes.lock().expect("no worker panics with it").push(outcome);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })?;
    let outcomes = outcomes.into_inner().expect("no worker panicked with it");
    println!("\n| target | executions | per second | new inputs | MiB |\n|---|---:|---:|---:|---:|");
    for Outcome { target, executions, executions_per_second, new_inputs, peak_mib, .. } in &outcomes {
        println!("| `{}` | {executions} | {executions_per_second} | {new_inputs} | {peak_mib} |", target.name);
    }
    outcomes.iter().filter(|outcome| !outcome.succeeded).try_for_each(explain)?;
    Ok(outcomes.iter().all(|outcome| outcome.succeeded))
}

fn fuzz(program: &Path, target: &'static Target, seconds: u32) -> io::Result<Outcome> {
    let places = Places::of(target)?;
    let log = File::create(&places.log).map_err(|error| named(&places.log, &error))?;
    let mut artifact_prefix = places.artifacts.clone().into_os_string();
    artifact_prefix.push("/");
    let status = Command::new(program)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={}", target.len_max))
        .arg(format!("-timeout={HANGS_AFTER}"))
        .arg(format!("-rss_limit_mb={PROCESS_MIB_MAX}"))
        .arg(format!("-artifact_prefix={}", artifact_prefix.display()))
        .args(["-print_final_stats=1", "-len_control=20"])
        .args([&places.found, &places.corpus, &places.seeds])
        .env(TARGET_VARIABLE, target.name)
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()?;
    let said = fs::read(&places.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())?;
    let statistic = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix("stat::")?.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or("?").trim().to_owned()
    };
    let artifact = |line: &str| line.split_once("Test unit written to ").map(|(_, path)| PathBuf::from(path.trim()));
    Ok(Outcome {
        target,
        succeeded: status.success(),
        executions: statistic("number_of_executed_units"),
        executions_per_second: statistic("average_exec_per_sec"),
        new_inputs: statistic("new_units_added"),
        peak_mib: statistic("peak_rss_mb"),
        artifacts: said.lines().filter_map(artifact).collect(),
        log: places.log,
    })
}

/// What a run failed with, and how to see it again.
fn explain(outcome: &Outcome) -> io::Result<()> {
    let name = outcome.target.name;
    let said = fs::read(&outcome.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())?;
    let lines: Vec<&str> = said.lines().collect();
    println!("\n{name} failed; the end of {}:", outcome.log.display());
    lines[lines.len().saturating_sub(LINES_SHOWN)..].iter().for_each(|line| println!("    {line}"));
    for path in &outcome.artifacts {
        println!("replay it:  cargo run -p polyarch-fuzz -- replay {name} {}", path.display());
        println!("keep it:    cp {} crates/polyarch-fuzz/corpus/{name}/WHAT-IT-SHOWS", path.display());
    }
    Ok(())
}

/// Replaces each corpus by some inputs of it, of the seeds and of what was found: those that together reach the most.
/// What somebody gave a name stays too: what showed a fault may reach nothing new once that is mended.
fn minimise(targets: &[&'static Target]) -> io::Result<bool> {
    let program = build()?;
    for target in targets {
        let places = Places::of(target)?;
        let inputs = chosen_inputs(&merged(&program, target, &places)?);
        let kept: Vec<Vec<u8>> = inputs.iter().map(fs::read).collect::<io::Result<_>>()?;
        for entry in fs::read_dir(&places.corpus)? {
            let path = entry?.path();
            if !is_named(&path) {
                fs::remove_file(path)?;
            }
        }
        for (path, data) in inputs.iter().zip(&kept) {
            let name = path.file_name().ok_or_else(|| io::Error::other("an input has a name"))?;
            fs::write(places.corpus.join(name), data)?;
        }
        println!("{}: {} inputs, {} bytes", target.name, kept.len(), kept.iter().map(Vec::len).sum::<usize>());
    }
    Ok(true)
}

/// Whether somebody gave an input its name: libFuzzer calls what it finds by its hash, and seeds have numbers.
fn is_named(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let is_hash = name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    !is_hash && !name.bytes().all(|byte| byte.is_ascii_digit())
}

/// Lets libFuzzer tell what each input reaches, in its control file.
fn merged(program: &Path, target: &Target, places: &Places) -> io::Result<String> {
    let directory = fuzz_directory().join("merged").join(target.name);
    let control = fuzz_directory().join(format!("{}.merge", target.name));
    for path in [&directory, &control] {
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(path)?,
            Ok(_) => fs::remove_file(path)?,
            Err(_) => {}
        }
    }
    fs::create_dir_all(&directory)?;
    let log = File::create(&places.log).map_err(|error| named(&places.log, &error))?;
    // How often an edge is taken counts while one looks for inputs, and not when few are to be kept.
    let status = Command::new(program)
        .args(["-merge=1", "-use_counters=0"])
        .arg(format!("-merge_control_file={}", control.display()))
        .arg(format!("-max_len={}", target.len_max))
        .args([&directory, &places.corpus, &places.found, &places.seeds])
        .env(TARGET_VARIABLE, target.name)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()?;
    match status.success() {
        true => fs::read_to_string(&control).map_err(|error| named(&control, &error)),
        false => Err(io::Error::other(format!("{} was not merged: see {}", target.name, places.log.display()))),
    }
}

/// Of the inputs that a control file tells of, those that add most to what shorter ones reach, at most [`INPUTS_MAX`].
///
/// It has the number of inputs, a number that says nothing here, their paths, and then, among other lines, `FT` with the
/// number of an input and each thing that it reaches and none before it did, shorter ones first.
fn chosen_inputs(control: &str) -> Vec<PathBuf> {
    let mut lines = control.lines();
    let count: usize = lines.next().and_then(|line| line.parse().ok()).unwrap_or(0);
    let paths: Vec<&str> = lines.by_ref().skip(1).take(count).collect();
    let adds = |line: &str| -> Option<(usize, usize)> {
        let mut numbers = line.strip_prefix("FT ")?.split_whitespace();
        Some((numbers.next()?.parse().ok()?, numbers.count()))
    };
    let mut inputs: Vec<(usize, usize)> = lines.filter_map(adds).filter(|(_, added)| *added > 0).collect();
    inputs.sort_by_key(|(_, added)| std::cmp::Reverse(*added));
    inputs.truncate(INPUTS_MAX);
    inputs.iter().filter_map(|(at, _)| paths.get(*at)).map(PathBuf::from).collect()
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inputs_that_add_most_are_chosen() {
        let control = "3\n0\n/a\n/b\n/c\nSTARTED 0 1\nFT 0 7\nCOV 0 7\nSTARTED 1 2\nFT 1\nSTARTED 2 3\nFT 2 8 9 \n";
        assert_eq!(chosen_inputs(control), [Path::new("/c"), Path::new("/a")]);
        assert!(chosen_inputs("").is_empty());
    }

    #[test]
    fn what_libfuzzer_found_has_no_name() {
        assert!(is_named(Path::new("a/a-log-that-opens")) && is_named(Path::new("a/abc")));
        assert!(!is_named(Path::new("a/0087447d153ed2413bf7dcbaaf9ea396e774b415")) && !is_named(Path::new("a/012")));
    }

    #[test]
    fn a_target_that_is_not_there_is_named_with_those_that_are() {
        assert!(target_named("x").unwrap_err().contains("wire_frames, "));
    }
}

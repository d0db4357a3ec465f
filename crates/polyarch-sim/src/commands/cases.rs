//! Runs one case again, and makes cases of seeds that fail.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use polyarch_sim::Sink;
use polyarch_sim::bugs::Bug;
use polyarch_sim::case::{Case, CaseFile};
use polyarch_sim::run::{run_case, take_panics};
use polyarch_sim::shrink::{self, Shrunken};

use super::outside;

/// Runs a seed or a case again.
pub(crate) fn replay(which: &str, trace: bool, bug: Option<Bug>) -> ExitCode {
    let (case, file) = match which.parse() {
        Ok(seed) => (Case::of_seed(seed, bug), None),
        Err(_) => match CaseFile::read(Path::new(which)) {
            Ok(file) => (file.case.clone(), Some(file)),
            Err(error) => return refuse(&format!("`{which}` is neither a seed nor a case: {error}")),
        },
    };
    let known = match case.known_bug() {
        Ok(known) => bug.or(known),
        Err(error) => return refuse(&error.to_string()),
    };
    let run = run_case(&case, known, if trace { Sink::Stdout } else { Sink::Nowhere });
    let script = shrink::tell(&case, &run);
    if let Some(file) = file {
        println!("{script}");
        if !file.tells(&script) {
            println!("This is not what happened when the case was written, at {}:\n{}", file.commit, file.script);
        }
    } else if !trace {
        println!("{:#?}", run.report);
    }
    match run.violation {
        None => {
            println!("{which} passes, trace hash {:016x}", run.report.trace_hash);
            ExitCode::SUCCESS
        }
        Some(violation) => {
            println!("{which} breaks {violation}\n  trace hash {:016x}", run.report.trace_hash);
            ExitCode::FAILURE
        }
    }
}

/// Shrinks a seed that fails and writes what is left.
pub(crate) fn shrink(seed: u64, bug: Option<Bug>, seconds: u64, out: Option<PathBuf>) -> ExitCode {
    take_panics();
    let Some(shrunken) = shrink_within(seed, bug, Duration::from_secs(seconds)) else {
        println!("seed {seed} passes");
        return ExitCode::SUCCESS;
    };
    let path = out.unwrap_or_else(|| regressions().join(name(&shrunken)));
    print!("{}", told(&shrunken));
    match keep(&shrunken, &path) {
        Ok(()) => {
            println!("written to {}", path.display());
            ExitCode::FAILURE
        }
        Err(error) => refuse(&error),
    }
}

/// Shrinks a seed for so long at most. `None` when it passes.
pub(crate) fn shrink_within(seed: u64, bug: Option<Bug>, time: Duration) -> Option<Shrunken> {
    let begun = Instant::now();
    shrink::shrink(&Case::of_seed(seed, bug), bug, &|_| begun.elapsed() < time)
}

/// What shrinking came to, and what is left in words.
pub(crate) fn told(shrunken: &Shrunken) -> String {
    let (before, after) = (shrunken.before, shrunken.after);
    format!(
        "{} nodes, {} faults and {} steps of clients before; {} nodes, {} faults and {} steps after {} runs:\n\n{}\n",
        before.nodes,
        before.faults,
        before.steps,
        after.nodes,
        after.faults,
        after.steps,
        shrunken.runs,
        shrink::tell(&shrunken.case, &shrunken.run)
    )
}

/// Writes a case to a file.
pub(crate) fn keep(shrunken: &Shrunken, path: &Path) -> Result<(), String> {
    let file = CaseFile {
        invariant: shrunken.violation.invariant.to_owned(),
        what: shrunken.violation.what.clone(),
        commit: outside::commit(),
        script: shrink::tell(&shrunken.case, &shrunken.run),
        case: shrunken.case.clone(),
    };
    file.write(path).map_err(|error| error.to_string())
}

/// Where cases are kept that must pass from now on.
pub(crate) fn regressions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions")
}

/// A file's name that says what it shows.
pub(crate) fn name(shrunken: &Shrunken) -> String {
    let (case, invariant) = (&shrunken.case, shrunken.violation.invariant);
    match &case.bug {
        Some(bug) => format!("{bug}.toml"),
        None => format!("{invariant}-{}.toml", case.seed),
    }
}

fn refuse(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::from(2)
}

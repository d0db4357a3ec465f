//! `fuzz`: builds the targets instrumented and lets libFuzzer run them, replays inputs, and keeps the corpora small.
//!
//! Built with `--cfg libfuzzer`, which `fuzz run` does, this is instead the program that libFuzzer drives. One program
//! serves all targets, so that one build is enough: the environment variable `POLYARCH_FUZZ_TARGET` says which it is.
#![cfg_attr(libfuzzer, no_main)]

#[cfg(not(libfuzzer))]
mod runner;

/// Names the target to the instrumented program.
const TARGET_VARIABLE: &str = "POLYARCH_FUZZ_TARGET";

#[cfg(libfuzzer)]
mod driven {
    use std::env;
    use std::sync::LazyLock;

    use polyarch_fuzz::Target;

    static TARGET: LazyLock<&Target> = LazyLock::new(|| {
        let name = env::var(crate::TARGET_VARIABLE).expect("the variable names a target");
        Target::find(&name).expect("there is such a target")
    });

    libfuzzer_sys::fuzz_target!(|data: &[u8]| {
        TARGET.check(data);
    });
}

#[cfg(not(libfuzzer))]
fn main() -> std::process::ExitCode {
    runner::main()
}

//! The `polyarch` binary.

fn main() -> std::process::ExitCode {
    polyarch_cli::main()
}

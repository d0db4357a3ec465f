//! The program, as CI runs it.

use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_polyarch-sim")).args(arguments).output().expect("it can be started")
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("it prints text")
}

#[test]
fn a_run_ends_in_time_and_goes_into_the_ledger() {
    let directory = tempfile::tempdir().expect("there is a place for files");
    let ledger = directory.path().join("ledger.md");
    let path = ledger.to_str().expect("its name is text");
    for _ in 0..2 {
        let output = run(&["run", "--seeds", "100..1000000", "--minutes", "0.02", "--jobs", "2", "--ledger", path]);
        assert!(output.status.success(), "{}", text(&output));
    }
    let table = std::fs::read_to_string(&ledger).expect("it was written");
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 4, "{table}");
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let (head, row) = (cells(lines[0]), cells(lines[3]));
    assert_eq!(head.len(), row.len(), "{table}");
    let cell = |name: &str| row[head.iter().position(|column| column == name).expect("it is a column")].clone();
    let seeds = cell("seeds");
    let (first, end) = seeds.split_once("..").expect("it is a range");
    assert_eq!(first, "100");
    let count = end.parse::<u64>().expect("it is a number") - 100;
    assert_eq!(cell("count"), count.to_string());
    assert_eq!((cell("failed").as_str(), cell("run twice").as_str()), ("0", "1"));
}

#[test]
fn fresh_seeds_are_other_seeds_each_time_and_are_told() {
    let first = || {
        let output = run(&["run", "--fresh", "--minutes", "0", "--json"]);
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
        json["seeds"]["start"].as_u64().expect("it is a seed")
    };
    assert_ne!(first(), first());
}

#[test]
fn a_seed_replays_to_the_hash_that_it_had() {
    let hash = || text(&run(&["replay", "7"])).lines().last().map(str::to_owned);
    assert!(hash().is_some_and(|line| line.starts_with("7 passes, trace hash ")), "{:?}", hash());
    assert_eq!(hash(), hash());
    assert_eq!(run(&["replay", "no-such-case.toml"]).status.code(), Some(2));
}

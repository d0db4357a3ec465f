//! What users see of concurrent writes, as scripts: the interface may change, these stay.

/// A script and what it prints.
const SCRIPTS: &[(&str, &str, &str)] = &[
    (
        "concurrent writes are kept side by side",
        "a put k=1 | b put k=2; a <-> b; a get k; b get k",
        "a k={1,2}; b k={1,2}",
    ),
    (
        "a write without a context replaces what its node holds",
        "a put k=1; a <-> b; b put k=2; wait 200; a get k",
        "a k={2}",
    ),
    ("an empty context adds a sibling", "a put k=1; a put k=2 over nothing; a get k", "a k={1,2}"),
    (
        "two writes with one context are concurrent",
        "a put k=1; a see k as C; a put k=2 over C; a put k=3 over C; a get k",
        "a k={2,3}",
    ),
    (
        "a context settles what it was shown",
        "a put k=1 | b put k=2; a <-> b; a see k as C; b put k=4 over nothing; a put k=3 over C; wait 200; a get k; b get k",
        "a k={3,4}; b k={3,4}",
    ),
    (
        "a context read at another node absorbs what has not come yet",
        "b put k=1; b see k as C; a put k=2 over C; a get k; a <-> b; a get k; b get k",
        "a k={2}; a k={2}; b k={2}",
    ),
    (
        "a delete with a context from another node absorbs too",
        "b put k=1; b see k as C; a del k over C; a <-> b; a get k; b get k",
        "a k={}; b k={}",
    ),
    (
        "a delete keeps the write it never saw",
        "a put k=1; a <-> b; a -x- b; a del k | b put k=2; a <-> b; a get k; b get k",
        "a k={2}; b k={2}",
    ),
    ("a delete of nothing writes nothing", "a del k; a put k=1; a del k; a del k; a get k", "nothing; nothing; a k={}"),
    (
        "a stale context replaces nothing that came since",
        "a put k=1; a see k as C; a put k=2; a put k=3 over C; a get k",
        "a k={2,3}",
    ),
    (
        "a delete with a stale context has nothing to do",
        "a put k=1; a see k as C; a put k=2; a del k over C; a get k",
        "nothing; a k={2}",
    ),
    (
        "lww shows one of two concurrent values, the same everywhere",
        "a put l/k=1; wait 100; b put l/k=2; a <-> b; a get l/k; b get l/k",
        "a l/k={2}; b l/k={2}",
    ),
    (
        "lww supersedes all it holds, whatever the client says",
        "a put l/k=1; a see l/k as C; a put l/k=2; a put l/k=3 over C; a put l/k=4 over nothing; a del l/k over C; a get l/k",
        "a l/k={}",
    ),
    (
        "a batch arrives whole",
        "a put i=1 j=1 l/k=1; a <-> b; b get i; b get j; b get l/k",
        "b i={1}; b j={1}; b l/k={1}",
    ),
    ("a batch changes a key once", "a put k=1 k=2; a get k", "refused: a write changes a key at most once; a k={}"),
    (
        "what was not synced is lost in a crash, and what was is not",
        "a put k=1; a stage; a put k=2; a crash; a get k",
        "a k={1}",
    ),
    (
        "a restarted node goes on where it was",
        "a put k=1; a restart; a put k=2; a get k; a <-> b; b get k",
        "a k={2}; b k={2}",
    ),
    (
        "a write reaches a node without a link of its own",
        "a <-> b; b <-> c; a put k=1; wait 300; c get k; c put k=2; wait 1500; a get k; equal",
        "c k={1}; a k={2}; equal",
    ),
    (
        "a lost link is replaced by a way around",
        "a <-> b; b <-> c; a <-> c; a put k=1; wait 200; a -x- c; a put k=2; wait 300; c get k; a -x- b; b put k=3; \
         wait 300; c get k; a get k; a <-> c; wait 300; equal",
        "c k={2}; c k={3}; a k={2}; equal",
    ),
    (
        "all heals after all were alone",
        "a put k=1 | b put k=2 | c put k=3; c del k; a <-> b; b <-> c; wait 1500; a get k; equal",
        "a k={1,2}; equal",
    ),
];

#[test]
fn each_script_prints_what_it_should() {
    for (what, script, expected) in SCRIPTS {
        assert_eq!(crate::support::run(script), *expected, "{what}: {script}");
    }
}

//! Scripts as data: the API may change under them, the scripts stay.

use polyarch_sim::script;

struct Script {
    name: &'static str,
    nodes: usize,
    script: &'static str,
    prints: &'static [&'static str],
}

const SCRIPTS: &[Script] = &[
    Script {
        name: "concurrent puts are siblings on all nodes, and a put with their context settles them",
        nodes: 2,
        script: "cut a b; a put carts/k=1; b put carts/k=2; a get carts/k; b get carts/k; digests
                 heal; a get carts/k; b get carts/k; digests
                 b put carts/k=3 as shown; heal; a get carts/k; b get carts/k; digests",
        prints: &[
            "a carts/k: 1",
            "b carts/k: 2",
            "digests: different",
            "a carts/k: 1, 2",
            "b carts/k: 1, 2",
            "digests: equal",
            "a carts/k: 3",
            "b carts/k: 3",
            "digests: equal",
        ],
    },
    Script {
        name: "a delete keeps the write it never saw",
        nodes: 2,
        script: "a put carts/k=1; heal; cut a b; b put carts/k=2; a delete carts/k; a get carts/k; heal; a get carts/k; b get carts/k",
        prints: &["a carts/k: nothing", "a carts/k: 2", "b carts/k: 2"],
    },
    Script {
        name: "a put beside the others supersedes nothing",
        nodes: 2,
        script: "a put carts/k=1; a put carts/k=2 beside; a get carts/k; a put carts/k=3; a get carts/k",
        prints: &["a carts/k: 1, 2", "a carts/k: 3"],
    },
    Script {
        name: "a stale context removes only what it saw",
        nodes: 2,
        script: "a put carts/k=1; a get carts/k; a put carts/k=2; a put carts/k=3 as shown; a get carts/k",
        prints: &["a carts/k: 1", "a carts/k: 2, 3"],
    },
    Script {
        name: "in lww one value is shown, the same everywhere",
        nodes: 2,
        script: "cut a b; a put settings/k=1; b put settings/k=2; heal; a get settings/k; b get settings/k; digests",
        prints: &["a settings/k: 2", "b settings/k: 2", "digests: equal"],
    },
    Script {
        name: "an acknowledged write survives a power cut and still reaches everyone",
        nodes: 3,
        script: "cut a b; cut a c; a put carts/k=1; power-cut a; a get carts/k; heal; b get carts/k; c get carts/k; digests",
        prints: &["a carts/k: 1", "b carts/k: 1", "c carts/k: 1", "digests: equal"],
    },
    Script {
        name: "a write that saw a value which its node lacks absorbs it when it comes",
        nodes: 3,
        script: "cut a b; cut b c; cut a c; a put carts/k=1; a get carts/k; b put carts/k=2 as shown
                 b get carts/k; heal; a get carts/k; b get carts/k; c get carts/k; digests",
        prints: &["a carts/k: 1", "b carts/k: 2", "a carts/k: 2", "b carts/k: 2", "c carts/k: 2", "digests: equal"],
    },
    Script {
        name: "what one node wrote reaches another through a third",
        nodes: 3,
        script: "cut a c; a put carts/k=1; rest; a put carts/k=2; rest; b get carts/k; c get carts/k",
        prints: &["b carts/k: 2", "c carts/k: 2"],
    },
    Script {
        name: "a topology is switched while the cluster serves, and what is written goes on to everyone",
        nodes: 4,
        script: "links; a topology ring; heal; links; a put carts/k=1; rest; c get carts/k
                 c topology star:2; heal; links; a put carts/k=2; rest; d get carts/k
                 d topology custom:1-2,2-3,3-4; heal; links; a put carts/k=3; rest; d get carts/k; digests",
        prints: &[
            "links: a-b a-c a-d b-c b-d c-d",
            "links: a-b a-d b-c c-d",
            "c carts/k: 1",
            "links: a-b b-c b-d",
            "d carts/k: 2",
            "links: a-b b-c c-d",
            "d carts/k: 3",
            "digests: equal",
        ],
    },
    Script {
        name: "a ring that is broken is bypassed, and closes again",
        nodes: 4,
        script: "a topology ring; heal; cut b c; cut b a; a put carts/k=1; b put carts/j=1; rest; rest; links
                 b get carts/k; c get carts/j; heal; links; digests",
        prints: &["links: a-d b-d c-d", "b carts/k: 1", "c carts/j: 1", "links: a-b a-d b-c c-d", "digests: equal"],
    },
    Script {
        name: "a topology that cannot serve the members is refused",
        nodes: 3,
        script: "a topology custom:1-2; b topology star:9; links",
        prints: &[
            "a: no way leads from member 1 to member 3; add a link that joins the two parts",
            "b: 9 is not a member of this cluster",
            "links: a-b a-c b-c",
        ],
    },
    Script {
        name: "a drained member takes no writes until it rejoins",
        nodes: 3,
        script: "a drain c; rest; c put carts/k=1; c get carts/k; c rejoin c; rest; c put carts/k=2; c get carts/k",
        prints: &[
            "c carts/k=1: this member is down; ask another, or let it take writes again: tell another member with `polyarch node rejoin`",
            "c carts/k: nothing",
            "c carts/k: 2",
        ],
    },
    Script {
        name: "what only a removed member has stays with it, and comes when it rejoins",
        nodes: 3,
        script:
            "cut a c; cut b c; c put carts/k=1; a remove c; c put carts/k=2 beside; heal; a get carts/k; c put carts/k=3
                 b rejoin c; heal; a get carts/k; digests; links",
        prints: &[
            "a carts/k: nothing",
            "c carts/k=3: this member is removed; ask another, or let it take writes again: tell another member with `polyarch node rejoin`",
            "a carts/k: 1, 2",
            "digests: equal",
            "links: a-b a-c b-c",
        ],
    },
];

#[test]
fn scripts_print_what_they_should() {
    for Script { name, nodes, script, prints } in SCRIPTS {
        let printed = script::run(*nodes, script).unwrap_or_else(|violation| panic!("{name}: {violation}"));
        assert_eq!(printed.lines().collect::<Vec<_>>(), *prints, "{name}");
    }
}

#[test]
fn a_script_that_cannot_be_read_is_refused() {
    for text in ["z get carts/k", "a get nowhere/k", "a put carts/k", "a put carts/k=1 maybe", "do something"] {
        assert!(script::run(2, text).is_err(), "{text}");
    }
}

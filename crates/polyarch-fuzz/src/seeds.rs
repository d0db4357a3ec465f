//! Inputs to begin with: the golden bytes of the formats, and texts as the documentation has them.

use polyarch_store::files::simulated::SplitMix64;

use crate::script::WALL_MS;

const FIXTURES: [&str; 7] = [
    include_str!("../../polyarch-protocol/tests/fixtures/client_request.v1.hex"),
    include_str!("../../polyarch-protocol/tests/fixtures/client_response.v1.hex"),
    include_str!("../../polyarch-protocol/tests/fixtures/feed_group.v1.hex"),
    include_str!("../../polyarch-protocol/tests/fixtures/peer_message.v1.hex"),
    include_str!("../../polyarch-protocol/tests/fixtures/snapshot.v1.hex"),
    include_str!("../../polyarch-protocol/tests/fixtures/system_record.v1.hex"),
    include_str!("../../polyarch-protocol/tests/fixtures/write_set.v1.hex"),
];

/// Scripts: no bytes are better than others, but a script of some length comes further.
pub fn scripts() -> Vec<Vec<u8>> {
    let script = |seed: u64| -> Vec<u8> {
        let mut random = SplitMix64::new(seed);
        let small = seed.is_multiple_of(2);
        let choice = |_| if small { random.below(16) as u8 } else { random.next_u64() as u8 };
        (0..40 * (seed + 1)).map(choice).collect()
    };
    (0..12).map(script).collect()
}

/// Each frozen message, and all of them as a stream.
pub fn frames() -> Vec<Vec<u8>> {
    let lines = FIXTURES.iter().flat_map(|fixture| fixture.lines());
    let mut frames: Vec<Vec<u8>> = lines.filter_map(|line| line.split_once(' ')).map(|(_, hex)| unhex(hex)).collect();
    let framed = frames.iter().flat_map(|frame| [&(frame.len() as u32).to_le_bytes()[..], frame].concat());
    let stream: Vec<u8> = framed.collect();
    frames.extend(stream.chunks(2_000).map(<[u8]>::to_vec));
    frames
}

/// Groups that are worth compressing, without kind and version.
pub fn compressed_groups() -> Vec<Vec<u8>> {
    use polyarch_protocol::peer::FeedGroup;
    let of = |bytes: Vec<u8>| FeedGroup { subscription: 7, write_sets: vec![bytes.into(); 3] }.encode_compressed();
    let groups = [of(vec![7; 200]), of(b"polyarch ".repeat(20)), of(frames().concat()[..900].to_vec())];
    groups.into_iter().flatten().map(|frame| frame[2..].to_vec()).collect()
}

/// A file of each kind, with the byte that says which.
pub fn configurations() -> Vec<Vec<u8>> {
    let node = "listen = \"127.0.0.1:7400\"\nname = \"db1\"\ndata_dir = \"data\"\nca = \"ca.pem\"\ncert = \"node-1.pem\"\nkey = \
                \"node-1.key\"\npeers = [\"db2:7400\"]\n[storage]\ndurability = \"sync\"\n[limits]\nvalue_bytes_max = 100\n";
    let profile =
        "nodes = [\"127.0.0.1:7400\"]\nca = \"ca.pem\"\ncert = \"c.pem\"\nkey = \"c.key\"\ntimeout_ms = 100\n";
    let manifest = "format = 1\ncluster = \"c\"\ncluster_id = \"07\"\ndonor = 1\nversion = \"0.2.0\"\ntime = \"2026\"\n\
                    records = 1\nwrite_sets = 2\nbytes = 3\nblake3 = \"00\"\nbegan_with = []\nholds = [\"1-00000001:1\"]\n";
    let identity = "format = 1\ncluster = \"c\"\ncluster_id = \"000102030405060708090a0b0c0d0e0f\"\nserver_id = 1\n";
    let marks = ["version = 1\nsegment = 0\noffset = 0\n", "version = 1\nbegins = 1\n"];
    let files = [node, profile, manifest, identity, marks[0], marks[1]];
    files.iter().enumerate().map(|(kind, text)| [&[kind as u8], text.as_bytes()].concat()).collect()
}

/// A name of each kind, with the byte that says which.
pub fn names() -> Vec<Vec<u8>> {
    let names = [
        "polyarch://demo/node/1",
        "polyarch://demo/ca",
        "demo",
        "app-1",
        "[::1]:7400",
        "3-9f2c01ab:42",
        "3-9f2c01ab:42.0",
        "custom:1-2,2-3",
    ];
    names.iter().enumerate().map(|(kind, name)| [&[kind as u8], name.as_bytes()].concat()).collect()
}

/// Lines of `batch` and `import`.
pub fn command_lines() -> Vec<Vec<u8>> {
    let context = "AQEAAAAAAAAAAAAAAAAAAAAAAAAAAA==";
    let lines = [
        r#"{"op":"put","keyspace":"s","key":"k","value_base64":"/w==","nothing_seen":true}"#.to_owned(),
        format!(r#"{{"op":"delete","keyspace":"s","key_base64":"/w==","context":"{context}"}}"#),
        r#"{"key":"k","value":"v"}"#.to_owned(),
        format!(
            r#"{{"key":"k","siblings":[{{"value":"v","gtid":"3-9f2c01ab:42","hlc":"{WALL_MS}.3","server_id":3}}],"context":"{context}"}}"#
        ),
    ];
    lines.into_iter().map(String::into_bytes).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).expect("fixtures are in hex") as u8;
    text.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

//! The tree as it is read: files, and the manifests among them.

use std::fs;
use std::path::Path;
use std::process::Command;

/// A file of the repository.
pub(crate) struct RepositoryFile {
    /// From the root of the repository, with `/`.
    pub(crate) path: String,
    pub(crate) bytes: Vec<u8>,
}

impl RepositoryFile {
    /// A made-up file, for counter-examples.
    pub(crate) fn example(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), bytes: text.as_bytes().to_vec() }
    }

    /// The content; bytes that are no UTF-8 are replaced.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    pub(crate) fn has_extension(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|found| found == extension)
    }
}

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files that are tracked, or new and not ignored.
pub(crate) fn files() -> Vec<RepositoryFile> {
    let listed = output(Command::new("git").current_dir(root()).args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]));
    let mut paths: Vec<_> = listed.split('\0').filter(|path| !path.is_empty()).collect();
    paths.sort_unstable();
    paths.dedup();
    let files: Vec<_> = paths
        .into_iter()
        // Deleted and not yet committed: listed, and gone.
        .filter_map(|path| Some(RepositoryFile { path: path.to_owned(), bytes: fs::read(root().join(path)).ok()? }))
        .collect();
    assert!(files.iter().any(|file| file.path == "Cargo.toml"), "git lists no files here: is this a clone?");
    files
}

/// One file, by its path from the root.
pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What a command prints; a failure ends the test with what it says.
pub(crate) fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("paths and names are UTF-8")
}

/// This machine's cargo, without network and without changing `Cargo.lock`.
pub(crate) fn cargo(command: &str) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(root()).args([command, "--offline", "--locked"]);
    cargo
}

/// A `Cargo.toml` of a package.
pub(crate) struct Manifest {
    pub(crate) path: String,
    pub(crate) package: String,
    pub(crate) table: toml::Table,
}

/// What a manifest says of one dependency.
pub(crate) struct Dependency<'a> {
    pub(crate) name: &'a str,
    pub(crate) is_dev: bool,
    pub(crate) spec: &'a toml::Value,
}

impl Dependency<'_> {
    /// Whether its version stands in the root's `[workspace.dependencies]`.
    pub(crate) fn is_of_workspace(&self) -> bool {
        self.spec.get("workspace").and_then(toml::Value::as_bool) == Some(true)
    }

    /// The features that are asked for.
    pub(crate) fn features(&self) -> impl Iterator<Item = &str> {
        strings(self.spec.get("features"))
    }
}

impl Manifest {
    pub(crate) fn parse(path: &str, text: &str) -> Self {
        let table: toml::Table = text.parse().unwrap_or_else(|error| panic!("{path}: {error}"));
        let name = table.get("package").and_then(|package| package.get("name")).and_then(toml::Value::as_str);
        Self { path: path.to_owned(), package: name.unwrap_or_default().to_owned(), table }
    }

    /// The manifests of all packages.
    pub(crate) fn all() -> Vec<Self> {
        let files = files();
        let manifests = files.iter().filter(|file| file.path == "Cargo.toml" || file.path.ends_with("/Cargo.toml"));
        manifests.map(|file| Self::parse(&file.path, &file.text())).collect()
    }

    /// All dependencies, also those for one platform only, and of build scripts.
    pub(crate) fn dependencies(&self) -> Vec<Dependency<'_>> {
        let platforms = self.table.get("target").and_then(toml::Value::as_table).into_iter().flatten();
        let platforms = platforms.filter_map(|(_, platform)| platform.as_table());
        let mut dependencies = Vec::new();
        for table in std::iter::once(&self.table).chain(platforms) {
            for (kind, is_dev) in [("dependencies", false), ("build-dependencies", false), ("dev-dependencies", true)] {
                let of_kind = table.get(kind).and_then(toml::Value::as_table).into_iter().flatten();
                dependencies.extend(of_kind.map(|(name, spec)| Dependency { name, is_dev, spec }));
            }
        }
        dependencies
    }

    /// The features that this package offers, each with what it switches on.
    pub(crate) fn features(&self) -> impl Iterator<Item = (&str, Vec<&str>)> {
        let features = self.table.get("features").and_then(toml::Value::as_table).into_iter().flatten();
        features.map(|(name, enables)| (name.as_str(), strings(Some(enables)).collect()))
    }
}

/// The strings of an array; none if there is no array.
pub(crate) fn strings(array: Option<&toml::Value>) -> impl Iterator<Item = &str> {
    array.and_then(toml::Value::as_array).into_iter().flatten().filter_map(toml::Value::as_str)
}

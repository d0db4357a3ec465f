//! A run by its seed and by what is left out of it.
//!
//! Each part of a run draws from a stream of its own, so that leaving something out changes nothing
//! of what the others draw. What is kept is named by number: the n-th fault that the seed draws, the
//! n-th act of its operators, the n-th step of a client.
//!
//! A case is written to a file that says in words what happens in it, so that it can be read without
//! being run. The words are not read back: a simulator that draws something else in the same places has
//! made the case another one, and [`CaseFile::tells`] is there to notice that.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::bugs::{self, Bug};
use crate::quiet::{Quiet, leave_nodes};
use crate::rng::Rng;
use crate::scenario::Scenario;

/// A run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Draws all that happens.
    pub seed: u64,
    /// A bug that is switched on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bug: Option<String>,
    /// How many nodes there are, where not as many as the seed draws. It draws for all of them anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<usize>,
    /// When all faults end, in microseconds, where not after so many operations and faults as the seed draws.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heals_at_us: Option<u64>,
    /// What the seed draws for the world and does not happen in this one.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub quiet: BTreeSet<Quiet>,
    /// The faults that happen; all, where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faults: Option<BTreeSet<u64>>,
    /// The acts of operators that happen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acts: Option<BTreeSet<u64>>,
    /// The steps of clients that happen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<BTreeSet<Step>>,
}

/// The n-th step of a client, written `client.step`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Step {
    /// Which client.
    pub client: usize,
    /// Which of its steps, from 1 on.
    pub step: u64,
}

impl Case {
    /// All that a seed draws.
    pub fn of_seed(seed: u64, bug: Option<Bug>) -> Self {
        Self { seed, bug: bug.map(|bug| bug.name.to_owned()), ..Self::default() }
    }

    /// The world in which it happens.
    pub fn scenario(&self) -> Scenario {
        let mut scenario = Scenario::draw(&mut Rng::stream(self.seed, "scenario", &[]));
        if let Some(nodes) = self.nodes {
            leave_nodes(&mut scenario, nodes);
        }
        self.quiet.iter().for_each(|quiet| quiet.calm(&mut scenario));
        scenario
    }

    /// The bug that is switched on, of those that this build has.
    ///
    /// # Errors
    /// When it has none of that name.
    pub fn known_bug(&self) -> Result<Option<Bug>, UnknownBug> {
        let Some(name) = &self.bug else { return Ok(None) };
        let known = bugs::find(name).filter(|_| bugs::are_built_in());
        known.map(Some).ok_or_else(|| UnknownBug { name: name.clone() })
    }

    /// Whether the n-th fault happens.
    pub fn keeps_fault(&self, nth: u64) -> bool {
        self.faults.as_ref().is_none_or(|kept| kept.contains(&nth))
    }

    /// Whether the n-th act happens.
    pub fn keeps_act(&self, nth: u64) -> bool {
        self.acts.as_ref().is_none_or(|kept| kept.contains(&nth))
    }

    /// Whether a step happens.
    pub fn keeps_step(&self, step: Step) -> bool {
        self.steps.as_ref().is_none_or(|kept| kept.contains(&step))
    }
}

/// A case names a bug that this build cannot switch on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this build has no bug `{name}` to switch on; build it with `--features seeded-bugs`")]
pub struct UnknownBug {
    name: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.client, self.step)
    }
}

impl From<Step> for String {
    fn from(step: Step) -> Self {
        step.to_string()
    }
}

impl TryFrom<String> for Step {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let numbers = text.split_once('.').and_then(|(client, step)| Some((client.parse().ok()?, step.parse().ok()?)));
        let (client, step) = numbers.ok_or_else(|| format!("`{text}` is not of the form CLIENT.STEP"))?;
        Ok(Self { client, step })
    }
}

/// A case with what it showed, as it is kept in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseFile {
    /// The invariant that broke.
    pub invariant: String,
    /// What was seen instead.
    pub what: String,
    /// The commit it was found at.
    pub commit: String,
    /// What happens, in words.
    pub script: String,
    /// The run.
    pub case: Case,
}

/// Why a file does not say which case it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaseFileError {
    /// It cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// Which file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// It is not of the form of a case.
    #[error("{path}: {error}")]
    Form {
        /// Which file.
        path: String,
        /// Where and what.
        error: Box<toml::de::Error>,
    },
}

impl CaseFile {
    /// Reads a file.
    ///
    /// # Errors
    /// When there is none, or it is of another form.
    pub fn read(path: &Path) -> Result<Self, CaseFileError> {
        let name = || path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| CaseFileError::Io { path: name(), error })?;
        toml::from_str(&text).map_err(|error| CaseFileError::Form { path: name(), error: Box::new(error) })
    }

    /// Writes it to a file, in the place of what was there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), CaseFileError> {
        let at = |error| CaseFileError::Io { path: path.display().to_string(), error };
        path.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(at)?;
        std::fs::write(path, self.to_text()).map_err(at)
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        toml::to_string(self).expect("a case is a table of plain values")
    }

    /// Whether a run tells the same story, word by word, as the one that the case was made of.
    pub fn tells(&self, script: &str) -> bool {
        self.script == script
    }
}

//! What holds for the tree as a whole, and no compiler checks: which crate may name which, what may come into the
//! build, what the pure crates may not know, what documents may point to.
//!
//! Each rule is a pure function from what was read to a list of violations, one line each, that says where and what to
//! do. Each has a test over the tree and a counter-example that it must object to: a rule that cannot fail is no rule.
//!
//! Nothing here needs a network. Which files count is asked of git: tracked ones, and new ones that are not ignored.

mod code;
mod documents;
mod features;
mod layers;
mod licences;
mod lockfile;
mod promises;
mod purity;
mod text;
mod tree;
mod versions;

/// Fails with all violations at once, so that one run shows all there is to do.
#[track_caller]
fn assert_clean(violations: &[String]) {
    assert!(violations.is_empty(), "{} violation(s):\n  {}", violations.len(), violations.join("\n  "));
}

/// Fails unless exactly one violation was found, and it names what is wrong.
#[track_caller]
fn assert_objects(violations: &[String], naming: &str) {
    assert!(
        matches!(violations, [only] if only.contains(naming)),
        "expected one violation that names `{naming}`, got {violations:?}"
    );
}

//! Documents that can be reached, and links that lead somewhere.

use std::collections::BTreeSet;

use crate::tree::{RepositoryFile, files};
use crate::{assert_clean, assert_objects};

/// Where readers start. What stands in `docs/` is reached from one of them.
const INDEXES: &[&str] = &["README.md", "docs/README.md"];

/// A relative link of a document.
struct Link {
    line: usize,
    /// From the root of the repository; the document itself for a bare `#heading`.
    path: String,
    heading: Option<String>,
}

/// The relative links of a document, outside of code.
fn links(document: &RepositoryFile) -> Vec<Link> {
    let mut links = Vec::new();
    for (line, text) in lines_outside_code(&document.text()) {
        for target in targets(&text).filter(|target| !target.contains("://") && !target.starts_with("mailto:")) {
            let (path, heading) =
                target.split_once('#').map_or((target, None), |(path, heading)| (path, Some(heading)));
            let path = if path.is_empty() { document.path.clone() } else { resolve(&document.path, path) };
            links.push(Link { line, path, heading: heading.map(str::to_owned) });
        }
    }
    links
}

/// `[text](target)` wherever it stands, and `[name]: target` at the beginning of a line.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    let defined = line.strip_prefix('[').and_then(|rest| rest.split_once("]: ")).map(|(_, target)| target);
    let inline = line.match_indices("](").map(|(start, _)| &line[start + 2..]);
    defined.into_iter().chain(inline).map(|target| target.split([')', ' ']).next().unwrap_or_default())
}

/// Numbered lines, without fenced blocks and without what stands between back-ticks.
fn lines_outside_code(text: &str) -> Vec<(usize, String)> {
    let mut in_fence = false;
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_fence = !in_fence;
        } else if !in_fence {
            lines.push((index + 1, line.split('`').step_by(2).collect::<Vec<_>>().join("`")));
        }
    }
    lines
}

/// A path relative to a document, as a path from the root.
fn resolve(document: &str, relative: &str) -> String {
    let mut parts: Vec<_> = document.split('/').collect();
    parts.pop();
    for part in relative.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The names under which a document's headings can be linked, as the usual hosts make them.
fn headings(text: &str) -> BTreeSet<String> {
    let mut in_fence = false;
    let mut headings = BTreeSet::new();
    for line in text.lines() {
        in_fence ^= line.trim_start().starts_with("```");
        if !in_fence && line.starts_with('#') {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            headings.insert(kept.map(|c| if c == ' ' { '-' } else { c }).collect());
        }
    }
    headings
}

fn check_links(files: &[RepositoryFile]) -> Vec<String> {
    let mut violations = Vec::new();
    for document in files.iter().filter(|file| file.has_extension("md")) {
        for link in links(document) {
            let at = format!("{}:{}", document.path, link.line);
            let directory = format!("{}/", link.path);
            let target = files.iter().find(|file| file.path == link.path);
            if target.is_none() && !link.path.is_empty() && !files.iter().any(|file| file.path.starts_with(&directory))
            {
                violations.push(format!("{at}: links to {}, which does not exist", link.path));
            }
            if let (Some(target), Some(heading)) = (target, link.heading)
                && target.has_extension("md")
                && !headings(&target.text()).contains(&heading)
            {
                violations.push(format!("{at}: {} has no heading `{heading}`", target.path));
            }
        }
    }
    violations
}

fn check_reachable(files: &[RepositoryFile]) -> Vec<String> {
    let indexes = files.iter().filter(|file| INDEXES.contains(&file.path.as_str()));
    let linked: BTreeSet<_> = indexes.flat_map(links).map(|link| link.path).collect();
    let pages = files.iter().filter(|file| file.path.starts_with("docs/") && !INDEXES.contains(&file.path.as_str()));
    let lost = pages.filter(|page| !linked.contains(&page.path));
    lost.map(|page| format!("{}: neither {} links to it", page.path, INDEXES.join(" nor "))).collect()
}

#[test]
fn every_relative_link_leads_somewhere() {
    assert_clean(&check_links(&files()));
}

#[test]
fn every_page_of_the_docs_can_be_reached() {
    assert_clean(&check_reachable(&files()));
}

#[test]
fn a_dead_link_is_seen() {
    let page = |text: &str| RepositoryFile::example("docs/a.md", text);
    let other = || RepositoryFile::example("b.md", "# What, *this*?\n");
    assert_objects(&check_links(&[page("x [y](gone.md)"), other()]), "docs/a.md:1: links to docs/gone.md");
    assert_objects(&check_links(&[page("\n[y](../b.md#that)"), other()]), "docs/a.md:2: b.md has no heading `that`");
    assert_objects(&check_links(&[page("[y](#none)"), other()]), "has no heading `none`");
    assert_objects(&check_links(&[page("[y](../../b.md)"), other()]), "does not exist");
    assert_objects(&check_links(&[page("see [y]\n\n[y]: gone.md")]), "docs/a.md:3: links to docs/gone.md");
    for good in ["[y](../b.md#what-this)", "[y](../docs/)", "[y](..)", "[y](https://example.org/x)", "`[y](gone.md)`"] {
        assert_clean(&check_links(&[page(good), other()]));
    }
    assert_clean(&check_links(&[page("```\n[y](gone.md)\n```\n")]));
}

#[test]
fn a_page_that_nothing_links_to_is_seen() {
    let index = |text: &str| RepositoryFile::example("docs/README.md", text);
    let page = || RepositoryFile::example("docs/a.md", "");
    assert_objects(&check_reachable(&[index("`a.md`"), page()]), "docs/a.md");
    assert_clean(&check_reachable(&[index("[a](a.md)"), page()]));
}

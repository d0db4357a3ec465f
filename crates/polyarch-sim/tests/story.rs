//! The story that is told without a command happens as it says.

#[test]
fn two_masters_conflict_heal_and_settle() {
    let story = polyarch_sim::story::tell().expect("the story keeps all invariants");
    let at = |text: &str| story.find(text).unwrap_or_else(|| panic!("`{text}` is not in the story:\n{story}"));
    let acts = [
        at("A get alice -> milk and bread\n"),
        at("applied-sets different, digests different"),
        at("B loses power"),
        at("A get alice -> milk and bread  |  milk and eggs"),
        at("applied-sets equal, digests equal"),
        at("A get alice -> milk, bread and eggs"),
        at("replay 7 --trace"),
    ];
    assert!(acts.is_sorted(), "{story}");
    assert_eq!(story, polyarch_sim::story::tell().expect("as before"), "it is always the same");
}

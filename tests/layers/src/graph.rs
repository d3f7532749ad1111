//! Circles in a graph of names.

use std::collections::{BTreeMap, BTreeSet};

/// One circle, as `a → b → a`.
pub(crate) fn circle(edges: &BTreeMap<String, BTreeSet<String>>) -> Option<String> {
    let mut done = BTreeSet::new();
    edges
        .keys()
        .find_map(|start| visit(start, edges, &mut Vec::new(), &mut done))
}

fn visit<'a>(
    name: &'a str,
    edges: &'a BTreeMap<String, BTreeSet<String>>,
    path: &mut Vec<&'a str>,
    done: &mut BTreeSet<&'a str>,
) -> Option<String> {
    if let Some(start) = path.iter().position(|on_path| *on_path == name) {
        let mut circle: Vec<&str> = path.iter().skip(start).copied().collect();
        circle.push(name);
        return Some(circle.join(" → "));
    }
    if !done.insert(name) {
        return None;
    }
    path.push(name);
    let found = edges
        .get(name)
        .into_iter()
        .flatten()
        .find_map(|next| visit(next, edges, path, done));
    path.pop();
    found
}

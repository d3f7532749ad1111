/// The headers that the README says are removed from every request, as it writes them: a name, or a prefix with `*`.
pub(crate) fn removed_headers() -> Vec<&'static str> {
    let readme = include_str!("../../../README.md");
    let row = readme
        .lines()
        .find_map(|line| line.strip_prefix("| removed from every request"));
    let names = row.expect("the row").split('`').skip(1).step_by(2);
    // Hop-by-hop headers, which have rules of their own.
    names
        .filter(|name| !["te", "trailers", "Connection"].contains(name))
        .collect()
}

/// A header for each of these, in the spellings that programs may read alike.
pub(crate) fn spellings_of_removed_headers() -> Vec<String> {
    let mut all = Vec::new();
    for name in removed_headers() {
        let name = name.replace('*', "example");
        all.push(name.replace('-', "."));
        all.push(name.replacen('-', "~", 1));
        all.push(name);
    }
    all.extend(["merlon-caller", "merlon-user", "proxy-authorization"].map(str::to_owned));
    all.sort();
    all.dedup();
    all
}

//! Checks a crate against the tables in its README: allowed imports and log events.
#![doc = include_str!("../README.md")]

mod graph;
pub mod log_events;
mod sources;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    path::{Path, PathBuf},
};

pub use self::{
    sources::{Import, imports},
    table::Table,
};

/// The modules that are not in the table: the crate root and shared test code.
const EXEMPT: [&str; 2] = ["lib", "tests"];

/// What [`check`] found. [`fmt::Display`] prints one violation per line.
#[derive(Debug, Default)]
pub struct Report {
    /// How many `crate::…`, `super::…` and `pub(in …)` paths were read.
    pub paths: usize,
    /// What the table does not allow, with file and path.
    pub violations: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} paths", self.paths)?;
        self.violations
            .iter()
            .try_for_each(|violation| writeln!(f, "{violation}"))
    }
}

/// Checks the crate in `crate_dir`, the directory of its `Cargo.toml`.
///
/// # Errors
/// A file that cannot be read.
pub fn check(crate_dir: &Path) -> io::Result<Report> {
    let src = crate_dir.join("src");
    let mut sources = Vec::new();
    for file in sources::rust_files(&src)? {
        let text = fs::read_to_string(&file)?;
        let file = file.strip_prefix(&src).map_or(file.clone(), PathBuf::from);
        sources.push((file, text));
    }
    let readme = fs::read_to_string(crate_dir.join("README.md"))?;
    Ok(check_sources(&readme, &sources))
}

/// Checks sources that are in memory: paths relative to `src`, and their text.
#[must_use]
pub fn check_sources(readme: &str, sources: &[(PathBuf, String)]) -> Report {
    let mut report = Report::default();
    let table = match Table::parse(readme) {
        Ok(table) => table,
        Err(problem) => {
            report.violations.push(format!("README.md: {problem}"));
            return report;
        }
    };
    let modules: BTreeSet<String> = sources
        .iter()
        .filter_map(|(file, _)| sources::module_path(file).into_iter().next())
        .filter(|module| !EXEMPT.contains(&module.as_str()))
        .collect();
    for module in &modules {
        if !table.contains(module) {
            let problem = format!("README.md: the table has no row for the module `{module}`");
            report.violations.push(problem);
        }
    }
    for module in table.modules().filter(|module| !modules.contains(*module)) {
        let problem = format!("README.md: the table names `{module}`, and there is no such module");
        report.violations.push(problem);
    }
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (file, text) in sources {
        let module_path = sources::module_path(file);
        let from = module_path.first().cloned().unwrap_or_default();
        for import in imports(&module_path, text) {
            report.paths += 1;
            let to = import.target();
            if EXEMPT.contains(&from.as_str()) || to == Some(&from) || to == Some("tests") {
                continue;
            }
            let place = format!("{}:{}: `{}`", file.display(), import.line, import.written);
            let Some(to) = to else {
                let problem = format!("{place} imports from the crate root");
                report.violations.push(problem);
                continue;
            };
            if table.contains(&from) && !table.allows(&from, to) {
                let problem = format!("{place}: `{from}` may not import `{to}`");
                report.violations.push(problem);
            }
            edges.entry(from.clone()).or_default().insert(to.to_owned());
        }
    }
    if let Some(circle) = graph::circle(&edges) {
        let problem = format!("modules import each other in a circle: {circle}");
        report.violations.push(problem);
    }
    report
}

#[cfg(test)]
mod tests;

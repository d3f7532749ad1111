//! The table of allowed imports.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph;

const SECTION: &str = "## Where things are";

/// Which top-level module may import which.
#[derive(Debug)]
pub struct Table {
    allowed: BTreeMap<String, BTreeSet<String>>,
}

struct Row {
    modules: Vec<String>,
    everything: bool,
    below: bool,
    named: Vec<String>,
}

impl Table {
    /// Reads the first table of the section "Where things are".
    ///
    /// # Errors
    /// A sentence: the table is missing, ambiguous, or not free of circles.
    pub fn parse(readme: &str) -> Result<Self, String> {
        let rows = rows(readme)?;
        let mut row_of: BTreeMap<&str, usize> = BTreeMap::new();
        for (index, row) in rows.iter().enumerate() {
            for module in &row.modules {
                if row_of.insert(module, index).is_some() {
                    return Err(format!("the table has two rows for `{module}`"));
                }
            }
        }
        let ground = rows.len() - 1;
        let mut direct: Vec<BTreeSet<usize>> = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            let mut imported: BTreeSet<usize> = if row.everything {
                (0..rows.len()).collect()
            } else {
                BTreeSet::from([ground])
            };
            for name in &row.named {
                let named = row_of
                    .get(name.as_str())
                    .ok_or_else(|| format!("`{name}` may be imported and has no row"))?;
                imported.insert(*named);
            }
            imported.remove(&index);
            direct.push(imported);
        }
        let label = |index: usize| {
            let first = rows.get(index).and_then(|row| row.modules.first());
            first.cloned().unwrap_or_default()
        };
        let edges = direct.iter().enumerate().map(|(index, imported)| {
            let imported = imported.iter().copied().map(label).collect();
            (label(index), imported)
        });
        if let Some(circle) = graph::circle(&edges.collect()) {
            return Err(format!("the table has a circle: {circle}"));
        }
        let allowed = rows.iter().enumerate().flat_map(|(index, row)| {
            let rows_allowed = reach(index, &direct, &rows);
            let modules: BTreeSet<String> = rows_allowed
                .into_iter()
                .chain([index])
                .filter_map(|index| rows.get(index))
                .flat_map(|row| row.modules.iter().cloned())
                .collect();
            row.modules
                .iter()
                .map(move |module| (module.clone(), modules.clone()))
        });
        Ok(Self {
            allowed: allowed.collect(),
        })
    }

    /// Whether `from` may import `to`. A module may always import itself.
    #[must_use]
    pub fn allows(&self, from: &str, to: &str) -> bool {
        self.allowed
            .get(from)
            .is_some_and(|allowed| allowed.contains(to))
    }

    /// Whether the table has a row for `module`.
    #[must_use]
    pub fn contains(&self, module: &str) -> bool {
        self.allowed.contains_key(module)
    }

    pub(crate) fn modules(&self) -> impl Iterator<Item = &String> {
        self.allowed.keys()
    }
}

/// The rows that row `index` may import: those that it names, and with `and below` also what these name, and so on.
fn reach(index: usize, direct: &[BTreeSet<usize>], rows: &[Row]) -> BTreeSet<usize> {
    let mut reached = direct.get(index).cloned().unwrap_or_default();
    if rows.get(index).is_some_and(|row| row.below) {
        let mut open: Vec<usize> = reached.iter().copied().collect();
        while let Some(row) = open.pop() {
            let next = direct.get(row).into_iter().flatten().copied();
            open.extend(next.filter(|row| reached.insert(*row)));
        }
    }
    reached
}

fn rows(readme: &str) -> Result<Vec<Row>, String> {
    let lines = readme
        .lines()
        .skip_while(|line| line.trim() != SECTION)
        .skip(1)
        .take_while(|line| !line.starts_with("## "))
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'));
    let mut rows = Vec::new();
    // The header and the line below it.
    for line in lines.skip(2) {
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').collect();
        let [folder, _, imports] = cells.as_slice() else {
            return Err(format!("a row does not have three cells: {line}"));
        };
        let imports = imports.split(';').next().unwrap_or_default().trim();
        let modules = names(folder);
        if modules.is_empty() {
            return Err(format!("a row names no module in backticks: {line}"));
        }
        rows.push(Row {
            modules,
            everything: imports.starts_with("everything"),
            below: imports.ends_with("and below"),
            named: names(imports),
        });
    }
    if rows.is_empty() {
        return Err(format!("no table in a section \"{SECTION}\""));
    }
    Ok(rows)
}

/// The names in backticks, without `.rs` and `/`, each once.
fn names(cell: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for quoted in cell.split('`').skip(1).step_by(2) {
        let name = quoted.trim_end_matches('/');
        let name = name.strip_suffix(".rs").unwrap_or(name).to_owned();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

//! Compiles resources into a mesh.

use std::sync::Arc;

use merlon_config::{
    Resources,
    contain::{self, contain},
    load::Loaded,
    report::{Problem, Report},
    resource::MeshConfigSpec,
};

use crate::{assemble::assemble, check, mesh::Mesh};

/// Compiles resources into a mesh. It keeps the last valid one, so policies that did not change are not checked again.
#[derive(Debug, Default)]
pub struct Compiler {
    last: Option<Arc<Mesh>>,
    good: check::Good,
}

impl Compiler {
    /// A compiler without a mesh.
    pub fn new() -> Self {
        Self::default()
    }

    /// Compiles all resources. Cedar text and JSON Schema are compiled, too, so a policy that a proxy would reject is
    /// rejected here, at its source.
    ///
    /// # Errors
    /// Every problem, with file, line and column. [`Compiler::last`] still returns the last valid mesh.
    pub fn compile(&mut self, resources: &Resources) -> Result<Arc<Mesh>, Report> {
        let Some((_, config)) = resources.mesh() else {
            let problem = Problem::error("", "there is no `MeshConfig`, so the mesh has no name")
                .hint(
                    "write one: `kind: MeshConfig` with `spec.trustDomain`, in the root namespace",
                );
            return Err(Report::from_iter([problem]));
        };
        let assembled = assemble(&resources.list, config);
        let (report, good) = check::check(resources, &assembled, &self.good);
        if report.has_errors() {
            return Err(report);
        }
        self.good = good;
        let mesh = Arc::new(assembled.mesh);
        self.last = Some(Arc::clone(&mesh));
        Ok(mesh)
    }

    /// Compiles loaded resources. If loading found errors, the remaining resources are checked and all problems are
    /// reported.
    ///
    /// # Errors
    /// The problems found by loading, followed by those of [`Compiler::compile`]. A panic is one of them.
    pub fn compile_loaded(&mut self, loaded: Loaded) -> Result<(Resources, Arc<Mesh>), Report> {
        // What a panic leaves is used only if it is complete: the compiler changes at the end of a compilation.
        contain(|| self.compile_all(loaded)).unwrap_or_else(|panic| {
            let problem = contain::problem("", "compiling the resources", &panic);
            Err(Report::from_iter([problem]))
        })
    }

    fn compile_all(&mut self, loaded: Loaded) -> Result<(Resources, Arc<Mesh>), Report> {
        if !loaded.report.has_errors() {
            let resources = loaded.into_result()?;
            let mesh = self.compile(&resources)?;
            return Ok((resources, mesh));
        }
        // Policies can be checked without a `MeshConfig`.
        let unnamed = unnamed();
        let config = loaded.resources.mesh().map(|(_, config)| config);
        let config = config.or(unnamed.as_ref());
        let others = config.map(|config| {
            let assembled = assemble(&loaded.resources.list, config);
            check::other_problems(&loaded, &assembled)
        });
        let mut report = loaded.report;
        report.extend(others.unwrap_or_default());
        Err(report)
    }

    /// The last valid mesh.
    pub fn last(&self) -> Option<&Arc<Mesh>> {
        self.last.as_ref()
    }
}

fn unnamed() -> Option<MeshConfigSpec> {
    serde_json::from_value(serde_json::json!({ "trustDomain": "unnamed.invalid" })).ok()
}

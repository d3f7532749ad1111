//! Resources in, the mesh out.

use std::sync::Arc;

use merlon_config::{
    Resources,
    load::Loaded,
    report::{Problem, Report},
    resource::MeshConfigSpec,
};

use crate::{assemble::assemble, check, mesh::Mesh};

/// Turns resources into a mesh, and remembers the last good one so as not to check twice what did not change.
#[derive(Debug, Default)]
pub struct Compiler {
    last: Option<Arc<Mesh>>,
    good: check::Good,
}

impl Compiler {
    /// A compiler that has compiled nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Compiles all resources: also what they say that only the decision point can read, Cedar text and JSON Schema,
    /// so that what a proxy would refuse is refused at its source.
    ///
    /// # Errors
    /// Every problem, at its file, line and column. The last good mesh stays what [`Compiler::last`] gives.
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

    /// Compiles what was read. Where something is wrong with it, says also everything else that is.
    ///
    /// # Errors
    /// As [`Compiler::compile`], after what reading found.
    pub fn compile_loaded(&mut self, loaded: Loaded) -> Result<(Resources, Arc<Mesh>), Report> {
        if !loaded.report.has_errors() {
            let resources = loaded.into_result()?;
            let mesh = self.compile(&resources)?;
            return Ok((resources, mesh));
        }
        // Policies of a mesh without a name are still Cedar or not.
        let unnamed = unnamed();
        let config = loaded.resources.mesh().map(|(_, config)| config);
        let config = config.or(unnamed.as_ref());
        let more = config.map(|config| {
            let assembled = assemble(&loaded.resources.list, config);
            check::more(&loaded, &assembled)
        });
        let mut report = loaded.report;
        report.extend(more.unwrap_or_default());
        Err(report)
    }

    /// The last good mesh.
    pub fn last(&self) -> Option<&Arc<Mesh>> {
        self.last.as_ref()
    }
}

fn unnamed() -> Option<MeshConfigSpec> {
    serde_json::from_value(serde_json::json!({ "trustDomain": "unnamed.invalid" })).ok()
}

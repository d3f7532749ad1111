//! Vault secrets by the workload that they are granted to.

use std::collections::BTreeMap;

use merlon_config::{
    name::{ServiceName, WorkloadId},
    resource::{Resource, SecretGrantSpec, Spec},
    snapshot::GrantedSecret,
};

use crate::gateway::name_of;

/// All grants, by name and by workload.
#[derive(Debug, Default)]
pub(crate) struct Grants<'a> {
    all: BTreeMap<ServiceName, &'a SecretGrantSpec>,
    by_workload: BTreeMap<WorkloadId, Vec<ServiceName>>,
}

impl<'a> Grants<'a> {
    pub(crate) fn new(resources: &'a [Resource]) -> Self {
        let mut grants = Self::default();
        for resource in resources {
            let Spec::SecretGrant(spec) = &resource.spec else {
                continue;
            };
            let name = name_of(resource);
            if grants.all.insert(name.clone(), spec).is_some() {
                continue;
            }
            // A grant applies only to workloads of its own namespace.
            let workload = WorkloadId {
                namespace: resource.namespace.clone(),
                service_account: spec.service_account.clone(),
            };
            grants.by_workload.entry(workload).or_default().push(name);
        }
        grants
    }

    /// The secrets of a workload, in order of name.
    pub(crate) fn of(&self, workload: &WorkloadId) -> Vec<GrantedSecret> {
        let mut names = self.by_workload.get(workload).cloned().unwrap_or_default();
        names.sort();
        let granted = names.into_iter().filter_map(|name| {
            let spec = self.all.get(&name)?;
            Some(GrantedSecret {
                name,
                path: spec.path.clone(),
                files: spec.files.clone(),
                headers: spec.headers.clone(),
            })
        });
        granted.collect()
    }
}

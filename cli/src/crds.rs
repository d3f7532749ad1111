//! `merlon crds`: the custom resource definitions, to install them without Helm.

use clap::Args;
use merlon_config::crd;

use crate::{
    failure::Failure,
    output::{Output, print_json, print_line},
};

/// Print the custom resource definitions of Merlon's kinds.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merlon crds | kubectl apply --server-side -f -
  merlon crds --output json | jq -r '.items[].metadata.name'

The chart `charts/merlon-crds` contains the same definitions.")]
pub(crate) struct CrdsArgs {
    /// Output format: YAML documents, or one JSON list.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) fn run(args: &CrdsArgs) -> Result<(), Failure> {
    let definitions = crd::definitions();
    if args.output == Output::Json {
        let items: Vec<_> = definitions.iter().map(|(_, crd)| crd).collect();
        print_json(&serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": items }));
        return Ok(());
    }
    for (_, definition) in &definitions {
        let text = crd::yaml(definition).map_err(|error| {
            Failure::runtime(format!("cannot write a definition as YAML: {error}"))
        })?;
        print_line("---");
        print_line(text.trim_end());
    }
    Ok(())
}

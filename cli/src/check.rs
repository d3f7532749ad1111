//! `merlon policy check`: reports every problem of a directory of resources before it is deployed.

use std::path::{Path, PathBuf};

use clap::Args;
use merlon_compile::Compiler;
use merlon_config::{
    load::read_dir,
    report::{Report, Severity},
};

use crate::{
    failure::Failure,
    output::{Output, print_json, print_line},
};

/// Read and compile a directory of resource files as the control plane does.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merlon policy check config/examples
  merlon policy check --output json ./resources | jq '.problems[].message'

Exit codes: 0 no problems (warnings are printed), 2 the control plane would reject these files.")]
pub(crate) struct CheckArgs {
    /// Directory of resource files.
    directory: PathBuf,
    /// Output format.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let (found, report) = match compile(&args.directory) {
        Ok((found, warnings)) => (Some(found), warnings),
        Err(report) => (None, report),
    };
    if args.output == Output::Json {
        print_json(&serde_json::json!({
            "ok": found.is_some(), "resources": found, "problems": report.problems(),
        }));
    }
    match found {
        None if args.output == Output::Json => Err(Failure::usage(tally(&report))),
        // The report is the error. It ends with its own count.
        None => Err(Failure::usage(format!(
            "the control plane would reject {}\n\n{report}",
            args.directory.display()
        ))),
        Some(_) if args.output == Output::Json => Ok(()),
        Some(found) => {
            if !report.is_empty() {
                print_line(&report.to_string());
            }
            print_line(&format!(
                "{}: {found} resources, no problems",
                args.directory.display()
            ));
            Ok(())
        }
    }
}

/// Why the control plane would reject these files; `None` if it would accept them.
pub(crate) fn problems(directory: &Path) -> Option<String> {
    compile(directory).err().map(|report| report.to_string())
}

/// The number of resources and the warnings, or the errors.
fn compile(directory: &Path) -> Result<(usize, Report), Report> {
    let (resources, _) = Compiler::new().compile_loaded(read_dir(directory))?;
    Ok((resources.list.len(), resources.warnings))
}

fn tally(report: &Report) -> String {
    match report.count(Severity::Error) {
        1 => "1 problem".to_owned(),
        many => format!("{many} problems"),
    }
}

//! `merlon policy check`: everything that is wrong with a directory of resources, before anybody runs on it.

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

/// Reads and compiles a directory of resource files as the control plane would.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  merlon policy check config/examples
  merlon policy check --output json ./resources | jq '.problems[].message'

Exit codes: 0 nothing is wrong (warnings are told), 2 the control plane would refuse these files.")]
pub(crate) struct CheckArgs {
    /// The directory.
    directory: PathBuf,
    /// How the result is written.
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let (found, report) = match look_at(&args.directory) {
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
        // The report is the error: it ends with its own count.
        None => Err(Failure::usage(format!(
            "{} would be refused\n\n{report}",
            args.directory.display()
        ))),
        Some(_) if args.output == Output::Json => Ok(()),
        Some(found) => {
            if !report.is_empty() {
                print_line(&report.to_string());
            }
            print_line(&format!(
                "{}: {found} resources, nothing wrong",
                args.directory.display()
            ));
            Ok(())
        }
    }
}

/// What the control plane would refuse these files for; none: it would take them.
pub(crate) fn problems(directory: &Path) -> Option<String> {
    look_at(directory).err().map(|report| report.to_string())
}

/// How many resources there are, with warnings; or what is wrong.
fn look_at(directory: &Path) -> Result<(usize, Report), Report> {
    let (resources, _) = Compiler::new().compile_loaded(read_dir(directory))?;
    Ok((resources.list.len(), resources.warnings))
}

fn tally(report: &Report) -> String {
    match report.count(Severity::Error) {
        1 => "1 problem".to_owned(),
        many => format!("{many} problems"),
    }
}

//! `merlon inject`: the change of the admission webhook, offline.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use clap::Args;
use merlon_config::injection::InjectionSettings;
use merlon_inject::{HookKeys, Injection, inject};
use serde_json::Value;

use crate::{
    failure::Failure,
    output::{eprint_line, print_line, printable},
};

/// Add the sidecar to the pods of Kubernetes documents, as the admission webhook does. Other documents are unchanged.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  kubectl get configmap merlon-injection -n merlon-system -o jsonpath='{.data.injection\\.yaml}' > injection.yaml
  merlon inject -f orders.yaml --settings injection.yaml | kubectl apply -f -
  kustomize build . | merlon inject -f - --settings injection.yaml > meshed.yaml

Kinds: Pod, Deployment, ReplicaSet, StatefulSet, DaemonSet, Job, CronJob, List. Comments and anchors are lost.
Exit codes: 0 success, 1 a file cannot be read, 2 a pod cannot join the mesh or the input is not YAML (nothing is written).")]
pub(crate) struct InjectArgs {
    /// File of YAML documents; `-` for standard input.
    #[arg(long, short = 'f', value_name = "FILE")]
    file: PathBuf,
    /// The injector's settings: the entry `injection.yaml` of the ConfigMap `merlon-injection`. Required.
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Namespace of documents without `metadata.namespace`.
    #[arg(long, short = 'n', value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
    /// File with a secret of at least 16 random bytes. The keys that authenticate calls to pods' lifecycle hooks (HTTP, TCP
    /// or gRPC) are derived from it, so documents with a name give the same output on each run. Without it keys are random
    /// and only kept if the output is injected again.
    #[arg(long, value_name = "FILE")]
    hook_seed: Option<PathBuf>,
}

/// The command that fetches the settings of a cluster.
const GET_SETTINGS: &str = "kubectl get configmap merlon-injection -n merlon-system -o jsonpath='{.data.injection\\.yaml}' > injection.yaml";

pub(crate) fn run(args: &InjectArgs) -> Result<(), Failure> {
    let Some(settings) = &args.settings else {
        return Err(Failure::usage(
            "`--settings FILE` is missing: the settings of the cluster's injector",
        )
        .hint(GET_SETTINGS));
    };
    let settings = InjectionSettings::load(settings).map_err(|report| {
        Failure::usage(format!("the settings are invalid\n\n{report}")).hint(GET_SETTINGS)
    })?;
    let keys = match &args.hook_seed {
        Some(file) => seeded(file)?,
        None => HookKeys::Random,
    };
    let options = Options {
        settings: &settings,
        keys: &keys,
    };
    let text = read(&args.file)?;
    let name = if args.file.as_os_str() == "-" {
        "standard input".to_owned()
    } else {
        args.file.display().to_string()
    };
    let output = inject_all(&text, &name, &args.namespace, options)?;
    for warning in output.warnings {
        eprint_line(&format!("warning: {warning}"));
    }
    print_line(output.text.trim_end());
    Ok(())
}

fn seeded(file: &Path) -> Result<HookKeys, Failure> {
    let failed = |why: String| Failure::runtime(format!("{}: {why}", file.display()));
    let seed = fs::read(file).map_err(|error| failed(error.to_string()))?;
    let keys = HookKeys::seeded(&seed).map_err(|error| failed(error.to_string()));
    keys.map_err(|failure| failure.hint("openssl rand -out hook-seed 32"))
}

/// How pods are injected.
#[derive(Debug, Clone, Copy)]
struct Options<'a> {
    settings: &'a InjectionSettings,
    keys: &'a HookKeys,
}

/// The injected documents.
#[derive(Debug)]
struct Injected {
    text: String,
    warnings: Vec<String>,
}

/// Injects every document, or returns why each refused one cannot join the mesh.
fn inject_all(
    text: &str,
    name: &str,
    namespace: &str,
    options: Options<'_>,
) -> Result<Injected, Failure> {
    // Read as the tools of Kubernetes do: `defaultMode: 0755` is octal.
    let as_kubernetes = serde_saphyr::options! { legacy_octal_numbers: true };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, as_kubernetes)
        .map_err(|error| {
            let error = error.to_string();
            Failure::usage(format!(
                "{name} is not YAML: {}",
                error.trim_start_matches("error: ")
            ))
        })?;
    let mut messages = Messages::default();
    let mut out = String::new();
    for (index, mut document) in documents.into_iter().enumerate() {
        if document.is_null() {
            continue;
        }
        let place = format!("{name}, document {}", index + 1);
        let namespace = namespace_of(&document, namespace).to_owned();
        walk(&mut document, &place, &namespace, options, &mut messages);
        // Do not fold long lines, as those tools do not.
        let unfolded = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
        let text = serde_saphyr::to_string_with_options(&document, unfolded)
            .map_err(|error| Failure::runtime(format!("cannot write {place}: {error}")))?;
        out.push_str("---\n");
        out.push_str(text.trim_end_matches('\n'));
        out.push('\n');
    }
    if !messages.refused.is_empty() {
        return Err(Failure::usage(messages.refused.join("\nerror: ")));
    }
    Ok(Injected {
        text: out,
        warnings: messages.warnings,
    })
}

/// Warnings and refusals about documents, each with its place.
#[derive(Debug, Default)]
struct Messages {
    warnings: Vec<String>,
    refused: Vec<String>,
}

fn read(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let done = if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).map(|_| ())
    } else {
        fs::read_to_string(file).map(|read| text = read)
    };
    done.map_err(|error| Failure::runtime(format!("{}: {error}", file.display())))?;
    Ok(text)
}

fn namespace_of<'a>(document: &'a Value, otherwise: &'a str) -> &'a str {
    let named = document.pointer("/metadata/namespace");
    named.and_then(Value::as_str).unwrap_or(otherwise)
}

/// JSON pointer to the pod or pod template in a document of this kind.
fn pod_in(group: &str, kind: &str) -> Option<&'static str> {
    match (group, kind) {
        ("", "Pod") => Some(""),
        ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet") | ("batch", "Job") => {
            Some("/spec/template")
        }
        ("batch", "CronJob") => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

fn walk(
    document: &mut Value,
    place: &str,
    namespace: &str,
    options: Options<'_>,
    messages: &mut Messages,
) {
    let kind = document.get("kind").and_then(Value::as_str);
    let kind = kind.unwrap_or_default().to_owned();
    if kind == "List" {
        let items = document.get_mut("items").and_then(Value::as_array_mut);
        for (index, item) in items.into_iter().flatten().enumerate() {
            let place = format!("{place}, item {}", index + 1);
            let namespace = namespace_of(item, namespace).to_owned();
            walk(item, &place, &namespace, options, messages);
        }
        return;
    }
    let metadata = |field: &str| {
        let text = document.get("metadata")?.get(field)?.as_str()?;
        (!text.is_empty()).then(|| text.to_owned())
    };
    // The place distinguishes documents that get their name from the cluster.
    let name = metadata("name");
    let owner = name.clone().unwrap_or_else(|| {
        let prefix = metadata("generateName").unwrap_or_default();
        format!("{prefix} {place}")
    });
    let name = name.unwrap_or_default();
    let what = format!("{place} ({kind} `{name}`)");
    let version = document.get("apiVersion").and_then(Value::as_str);
    let group = version.and_then(|version| Some(version.split_once('/')?.0));
    let Some(pod) =
        pod_in(group.unwrap_or_default(), &kind).and_then(|path| document.pointer_mut(path))
    else {
        return;
    };
    let Ok(key) = options.keys.of([&kind, namespace, &owner]) else {
        let why = "the system provides no random numbers";
        return messages.refused.push(format!("{what}: {why}"));
    };
    match inject(pod, namespace, options.settings, &key) {
        Ok(Injection::Unchanged(_)) => {}
        Ok(Injection::Changed { object, warnings }) => {
            let warnings = warnings.iter();
            let warnings = warnings.map(|warning| printable(&format!("{what}: {warning}")));
            messages.warnings.extend(warnings);
            *pod = object;
        }
        Err(why) => messages.refused.push(printable(&format!("{what}: {why}"))),
    }
}

#[cfg(test)]
mod tests;
